"""Scoring a model on benchmarks and on the user's own data; `suites/` holds the shipped suites."""
