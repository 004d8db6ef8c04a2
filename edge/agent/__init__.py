"""The agent: what installs bundles on a device and answers from them.

It runs where neither Ray nor torch is: the standard library, numpy, cryptography and one engine,
on Python 3.9 and later. From the kit it takes the device core only, and nothing from the rest of
``edge``.
"""
