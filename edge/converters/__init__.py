"""Converters: one module per engine that makes its model files; see ``edge.core.Converter``."""
