"""The evaluation: experiments as data, backends that carry them out, and what they found.

An `Experiment` is a file in ``experiments/``. It says which `Run`s there are: each a row of
parameters and a seed. A backend carries one out and returns a `Result`; the `Store` keeps them as
tables, one row per run, relocation and request; the report is made of these tables alone.
"""
