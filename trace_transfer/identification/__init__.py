"""Warm start → deltas and Fisher information → scores → core set of the source."""
