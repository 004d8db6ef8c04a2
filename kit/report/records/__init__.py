"""The records of past runs, read back with the fields the report shows; one module per kind of work."""
