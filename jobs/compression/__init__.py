"""Making a fitted network smaller or easier to quantise, and measuring whether it was worth it."""
