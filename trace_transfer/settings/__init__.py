"""The settings of each command, their defaults and why: one table for the command line, Python and the files.

Nothing here loads torch, so that `--help` can read it.
"""
