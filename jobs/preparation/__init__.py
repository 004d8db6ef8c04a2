"""What is fitted to columns before a network reads them, and how it gets into the graph."""
