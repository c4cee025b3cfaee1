"""Races, printed and never asserted: `python -m tests.benchmarks` runs all, `python -m tests.benchmarks.NAME` one.

`--small` runs each at a fraction of its size, to see that it works.
"""
