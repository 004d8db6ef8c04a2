"""What answers on a device: a model in a process of its own, and the ways to ask it.

``worker`` is that process, ``supervisor`` keeps it alive within limits (``limits``), and both talk in frames
(``frames``). Applications ask over HTTP (``api``, ``http``), from Python (``call``) or with files in a folder
(``inbox``). The agent itself holds no model and imports no numpy, so it stays small and nothing a model does
takes it down.
"""
