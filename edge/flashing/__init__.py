"""Flashing: the ways a bundle is carried to a device folder, and what is done there.

``onsite`` runs on the device, as text that is handed to its interpreter; ``hand`` calls it through whatever
starts a program there; ``path`` and ``ssh`` say what that is; ``checks`` refuses early. What a flash is,
``edge.flash`` says.
"""
