"""The report's plots, as SVG that takes its colours and its font from the page; one module per theme."""
