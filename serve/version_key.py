"""What a version of a served model is called, wherever it matters which one is meant."""

from __future__ import annotations

from typing import NamedTuple


class VersionKey(NamedTuple):
    """Name one version of a model: clients see its number in the registry, the digest is what is loaded."""

    model: str
    number: int
    digest: str

    def __str__(self) -> str:
        """Write it as a model reference, like ``digits@3``."""
        return f"{self.model}@{self.number}"
