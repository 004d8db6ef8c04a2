"""Fitting a model to prepared rows: networks on Ray Train, estimators, the loop itself."""
