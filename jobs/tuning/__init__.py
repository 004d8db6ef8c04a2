"""A study: what is varied, what is tried next, what each trial gave, and where that is written down."""
