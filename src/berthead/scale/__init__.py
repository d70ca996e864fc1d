"""Beyond one machine: the parts of a job computed by others."""
