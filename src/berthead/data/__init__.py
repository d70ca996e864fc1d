"""ROWS -> EXAMPLES: columns, labels, tags, and the held-out split."""
