"""Scoring a model on benchmarks and on the user's own data.

`preparing` reads and checks an evaluation's data and gives what can be run; `losses`, `multiple_choice` and
`exact_match` are ours and read a prompt exactly as training does; `harness` is the door to lm-evaluation-harness, which
nothing else here imports. `batching` and `outcome` are below them all; `suites/` holds the shipped suites.
"""
