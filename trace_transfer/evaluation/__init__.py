"""Scoring a model on benchmarks and on the user's own data.

`losses`, `multiple_choice` and `exact_match` are ours and read a prompt exactly as training does (`reading`);
`harness` is the door to lm-evaluation-harness. `suites/` holds the shipped suites.
"""
