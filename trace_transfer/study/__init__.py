"""From task data to report: a run file, its cells, the graph of their steps, and running what is not up to date."""
