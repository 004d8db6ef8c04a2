"""Batching: requests that meet share one engine call.

``Batcher`` decides on the event loop when the engine starts, ``waiting`` who comes next, ``running`` takes a
batch through the engine, ``speed`` learns how long that takes. It knows nothing of models, HTTP or Ray: rows
go in as checked tensors, answers come out.
"""

from __future__ import annotations

from serve.batching.batcher import Batcher

__all__ = ["Batcher"]
