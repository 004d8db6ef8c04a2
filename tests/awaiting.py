"""Waiting for what another process or thread does, where no event reaches the test."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

_PAUSE_S = 0.01


#: A busy machine takes long; what never happens is not waited for much longer.
_LONGEST_S = 60.0


def await_true(
    holds: Callable[[], object], *, within_s: float = _LONGEST_S, why: str = "it does not hold"
) -> float:
    """Wait until something holds; gives the seconds it took, and fails the test when they are too many."""
    began_s = time.monotonic()
    while not holds():
        if time.monotonic() - began_s > within_s:
            pytest.fail(f"not within {within_s} s: {why}")
        time.sleep(_PAUSE_S)
    return time.monotonic() - began_s
