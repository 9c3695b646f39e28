"""Inputs of all kinds for everything that takes in what others send; see `fuzzing.__main__`."""
