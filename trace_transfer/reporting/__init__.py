"""A finished study: its numbers, verdicts, and one document as a page and as Markdown."""
