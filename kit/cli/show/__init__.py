"""How results look on a terminal: one function per command, tables where a table says it better."""
