"""What runs on Ray and stays up: the endpoint, its protocol, its presets.

Sees ``kit``; ``jobs`` and ``edge`` are none of its business.
"""
