"""One fitted function as a value and as a folder."""
