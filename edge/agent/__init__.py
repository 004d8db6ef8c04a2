"""The agent: what installs bundles on a device and answers from them.

It runs where neither Ray nor torch is: the standard library, numpy, cryptography and one engine,
on Python 3.9 and later. From the kit it takes the device core only, and nothing from the rest of
``edge``.

    from edge.agent import connect
    model = connect("/var/lib/kit")
    model.predict([{"width": 1.0, "height": 0.5}])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.agent.running.call import Model, connect

__all__ = ["Model", "connect"]


def __getattr__(name: str) -> Any:  # the agent's own process has no use for them, nor for numpy
    if name in __all__:
        from edge.agent.running import call

        return getattr(call, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
