"""FILES <-> ROWS: one module a file format."""
