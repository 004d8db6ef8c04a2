"""The Open Inference Protocol v2 over HTTP: what endpoints and devices both read and answer.

Bytes to requests and answers to bytes, so that an application can move between a cloud and a device. Paths
(``paths``), requests (``rest``, ``request``, ``binary``), what is said of a model (``metadata``), errors and
their statuses (``errors``, ``failures``). It opens no socket and runs no model. How JSON is parsed and
written is the caller's: an endpoint has a fast package for it, a device the standard library. Runs on a
device: standard library and numpy.
"""
