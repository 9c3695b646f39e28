"""Mutation testing: are mistakes in the code noticed by the tests? `make mutants PART=...`."""
