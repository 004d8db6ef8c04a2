"""What ``jobs.evaluate`` measures besides the metrics: slices, explanations, folds and curves."""
