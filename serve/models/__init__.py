"""The versions a replica holds in memory: how one is loaded, proven right and kept.

Knows the store and the engines. It does not know requests, releases or HTTP: who needs which version is told
to the pool from outside.
"""

from __future__ import annotations

from serve.models.loading import EngineChoice, Loaded, Loader, prime
from serve.models.pool import Pool
from serve.models.versions import State
from serve.version_key import VersionKey

__all__ = ["EngineChoice", "Loaded", "Loader", "Pool", "State", "VersionKey", "prime"]
