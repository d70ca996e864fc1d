"""FILES -> EXAMPLES: readers and writers, labels, and rows as examples."""
