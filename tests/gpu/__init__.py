"""What a GPU computes beside what a CPU does, and how fast: `make gpu`.

Everything takes a device, so that the same code runs on CPUs in the ordinary tests.
"""
