"""How a version stands in a replica."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["UNAVAILABLE", "LOADING", "READY", "FAILED"]


@dataclass(frozen=True)
class State:
    """How a version stands in this replica.

    Attributes:
        status: ``READY`` answers; ``LOADING`` will; ``FAILED`` could not be loaded; ``UNAVAILABLE`` is not
            loaded, or leaves as soon as its last user has.
        reason: Why it failed or is unavailable; may name places of this machine, so it is for operators only.
        wanted: Whether a release needs it.
        bytes: What it takes; 0 while it is not loaded.
        users: Who uses it at this moment.
        loaded_at_s: Unix time since when it answers; None before.
    """

    status: Status
    reason: str = ""
    wanted: bool = False
    bytes: int = 0
    users: int = 0
    loaded_at_s: float | None = None

    @classmethod
    def absent(cls) -> State:
        """Give the state of a version that was never asked for."""
        return cls("UNAVAILABLE", "not loaded")
