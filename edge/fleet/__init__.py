"""The fleet: many devices, the groups they are in, and rollouts that reach them wave by wave.

``rollout`` and ``offers`` decide and open nothing; ``store`` remembers; ``desk`` answers devices and
``server`` carries its answers over HTTP. How a device installs is for ``edge.agent`` to know.
"""
