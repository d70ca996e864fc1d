"""FILES <-> ROWS: one file a format, with one record that says all that is known of it."""
