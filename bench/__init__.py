"""Benchmarks: noded beside Ray, concurrent.futures and plain memcpy, in one run on one machine.

Start with `run.py` (what is measured, in which order) and `rows.py` (the table of rows). Nothing here is
imported by noded. See README.md for how to run it and how to read the numbers.
"""
