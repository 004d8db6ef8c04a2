"""What runs on Ray and ends: train, predict, submit.

Sees ``kit`` only. Each command is a function of a project and its settings that returns a frozen
result; nothing here prints.
"""
