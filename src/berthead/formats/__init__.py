"""FILES <-> ROWS: one file a format, with one record that describes it."""
