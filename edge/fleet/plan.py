"""What a rollout is told to do: its waves, its shares and its deadlines, read from a command line's words.

Pure, like ``edge.fleet.rollout``, which does it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from kit.errors import InputError

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")
_COUNT = re.compile(r"[1-9]\d*")


@dataclass(frozen=True)
class Wave:
    """How many devices, counted from the first, a wave reaches.

    Attributes:
        count: As a number; None when it is a share.
        share: As a share of the whole order, above 0 and at most 1; None when it is a number.
    """

    count: int | None = None
    share: Fraction | None = None

    def bound(self, n_devices: int) -> int:
        """Say how many of ``n_devices`` it reaches; a share is rounded up, so that it reaches somebody."""
        if self.share is not None:
            return math.ceil(self.share * n_devices)
        return min(self.count or 0, n_devices)

    def __str__(self) -> str:
        return str(self.count) if self.share is None else _percent(self.share)


@dataclass(frozen=True)
class Plan:
    """What a rollout was told to do.

    Attributes:
        waves: How far each wave reaches; the last reaches every device.
        success: Share of a wave's devices that must have confirmed, for it to pass.
        errors: Share of errors in a device's answers above which it counts as failed; the same for all
            answers of a wave together.
        silence_s: How long a device may take to confirm, and be unheard afterwards, before it counts as
            failed.
        soak_s: How long a wave that has its share must hold it.
    """

    waves: tuple[Wave, ...]
    success: Fraction
    errors: Fraction
    silence_s: float
    soak_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Give the plan as a JSON object."""
        return {
            "waves": ",".join(map(str, self.waves)),
            "success": _percent(self.success),
            "errors": _percent(self.errors),
            "silence_s": self.silence_s,
            "soak_s": self.soak_s,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Read what ``to_json`` gave.

        Raises:
            InputError: It is something else.
        """
        return cls(
            parse_waves(value["waves"]),
            parse_share(value["success"]),
            parse_share(value["errors"]),
            float(value["silence_s"]),
            float(value["soak_s"]),
        )


def parse_waves(text: str) -> tuple[Wave, ...]:
    """Read ``1,10%,50%,100%``.

    Raises:
        InputError: A part is neither a number nor a share, a share comes again or shrinks, or the last wave
            leaves devices out.
    """
    waves = []
    for part in (each.strip() for each in text.split(",")):
        if _COUNT.fullmatch(part):
            waves.append(Wave(count=int(part)))
        elif _SHARE.fullmatch(part) and 0 < Fraction(part[:-1]) <= 100:
            waves.append(Wave(share=Fraction(part[:-1]) / 100))
        else:
            raise InputError(
                f"{part!r} is not a wave", hint="write numbers and shares of devices: 1,10%,50%,100%"
            )
    for kind in ("count", "share"):
        sizes = [size for wave in waves if (size := getattr(wave, kind)) is not None]
        if sizes != sorted(set(sizes)):
            raise InputError(
                f"the waves {text!r} do not grow", hint="a wave holds the ones before it: 1,10%,50%,100%"
            )
    if waves[-1].share != 1:
        raise InputError(f"the last wave of {text!r} leaves devices out", hint=f"end with 100%: {text},100%")
    return tuple(waves)


def parse_share(text: str) -> Fraction:
    """Read ``95%``.

    Raises:
        InputError: It is not a share from 0 to 100 %.
    """
    if not _SHARE.fullmatch(text) or Fraction(text[:-1]) > 100:
        raise InputError(f"{text!r} is not a share", hint="write it in percent: 95%")
    return Fraction(text[:-1]) / 100


def parse_duration_s(text: str) -> float:
    """Read ``30m``, in seconds.

    Raises:
        InputError: It is not a number and one of s, m, h and d.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not a duration", hint="write a number and s, m, h or d: 30m")
    return float(match[1]) * _UNITS_S[match[2]]


def in_order(devices: Iterable[str], *, salt: str) -> tuple[str, ...]:
    """Put devices in the order in which waves reach them.

    Args:
        devices: Their ids.
        salt: What the order depends on beside them; the bundle's digest, so that another bundle begins
            elsewhere.
    """
    return tuple(
        sorted(devices, key=lambda each: (hashlib.sha256(f"{salt}\0{each}".encode()).digest(), each))
    )


def _percent(share: Fraction) -> str:
    """Write a share as it is read: what was typed has few digits, so nothing is lost."""
    return f"{float(share * 100):.10g}%"
