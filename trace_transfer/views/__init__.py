"""What people look at: the heatmap, the summary of a run, artefacts drawn in the terminal."""
