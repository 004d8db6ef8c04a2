"""Pulling: ask a source what to run, fetch it, and tell a fleet server how it went.

The device opens every connection. ``offer`` reads what a source says, ``puller`` decides when to ask and
whether to believe it, ``download`` brings files, ``uplink`` delivers reports and telemetry, ``notices`` wakes
the puller, ``enrol`` makes a device known to a server; ``client`` is the one door to the network. What is
installed is for ``edge.agent.install`` to say. See docs/device-protocol.md.
"""
