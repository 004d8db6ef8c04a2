"""What a device tells of itself: counts, never rows unless it was told to keep them.

``counts`` and ``latencies`` add up what one window of time was like, ``ring`` keeps such records in bounds
until somebody takes them.
"""
