"""Task data: `tasks.yaml` → records of three shapes → token ids with the answers supervised, in that order."""
