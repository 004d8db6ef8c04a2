"""What this machine draws, where its hardware measures that: RAPL counters, or a board's power monitor.

A battery's gauge is no meter: it knows the whole machine, over minutes. Neither counters nor monitors can
tell one process from another, so a figure of theirs holds for a machine that does nothing else. Runs on a
device: standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kit.errors import UnavailableError

SYSTEM = Path("/sys")
"""Where Linux shows its hardware."""

_LOOK_S = 0.05  # a look at a monitor takes a millisecond on its slow bus
#: Drivers of monitors that sit on a board's supply.
_MONITORS = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina3221", "power_meter")
#: Labels of a rail that feeds all others; without one of these, all rails are added up.
_TOTALS = ("VDD_IN", "POM_5V_IN")


class Meter(Protocol):
    """Something that measures energy.

    Attributes:
        source: What it is, and what it includes.
    """

    source: str

    def joules(self) -> float:
        """Give the energy since the meter was made; look at least every minute."""


@dataclass(frozen=True)
class Energy:
    """What some work took.

    Attributes:
        joules: Of the whole of what the meter includes.
        seconds: How long the work lasted.
        n_calls: How often it was done.
    """

    joules: float
    seconds: float
    n_calls: int


def find_meter(root: Path, *, on_cpu: bool) -> Meter:
    """Find what measures this machine's power.

    Args:
        root: Where the system shows its hardware.
        on_cpu: Whether the work is the processor's; its own counters know nothing of a GPU.

    Raises:
        UnavailableError: Nothing does, or this user may not read it.
    """
    rails: dict[str, Callable[[], float]] = {}
    for folder in sorted(root.glob("class/hwmon/hwmon*")):
        if _text(folder / "name") in _MONITORS:
            rails.update(_rails(folder))
    if rails:
        totals = {label: rail for label, rail in rails.items() if label in _TOTALS}
        return Monitor(totals or rails)
    if not on_cpu:
        raise UnavailableError("there is no power monitor that includes the GPU")
    zones = [
        folder
        for folder in sorted(root.glob("class/powercap/intel-rapl:*"))
        if _text(folder / "name").startswith("package")  # the zones inside one are part of it
    ]
    if not zones:
        raise UnavailableError("this hardware has no RAPL counter and no power monitor")
    try:
        return Counters(zones)
    except PermissionError as error:
        raise UnavailableError("root alone may read the RAPL counters here") from error
    except (OSError, ValueError) as error:
        raise UnavailableError(f"the RAPL counters cannot be read: {error}") from error


def measure_energy(meter: Meter, work: Callable[[], object], *, for_s: float) -> Energy:
    """Do some work again and again, and measure what it takes.

    Args:
        meter: What measures.
        work: What is done.
        for_s: How long, in seconds; at least once.

    Raises:
        UnavailableError: The meter cannot be read any more.
    """
    try:
        before = meter.joules()
        began_s = looked_s = time.perf_counter()
        n_calls = 0
        while True:
            work()
            n_calls += 1
            now_s = time.perf_counter()
            if now_s - began_s >= for_s:
                return Energy(meter.joules() - before, now_s - began_s, n_calls)
            if now_s - looked_s >= _LOOK_S:
                meter.joules()
                looked_s = now_s
    except (OSError, ValueError) as error:
        raise UnavailableError(f"the power meter cannot be read: {error}") from error


class Counters:
    """Energy counters of processors (RAPL); they start again at 0 when they are full."""

    source = "RAPL, the whole processor"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._full = [_whole(zone / "max_energy_range_uj") for zone in zones]
        self._last = [_whole(zone / "energy_uj") for zone in zones]
        self._total_uj = 0

    def joules(self) -> float:
        """Give the energy since the counters were first read."""
        for index, zone in enumerate(self._zones):
            now = _whole(zone / "energy_uj")
            step = now - self._last[index]
            self._total_uj += step if step >= 0 else step + self._full[index]
            self._last[index] = now
        return self._total_uj / 1e6


class Monitor:
    """Power monitors of the board: what they show at each look, over the time between looks."""

    def __init__(self, rails: Mapping[str, Callable[[], float]]) -> None:
        self._rails = tuple(rails.values())
        self.source = f"power monitor, {' + '.join(rails)}"
        self._total_j = 0.0
        self._watts = self._look()
        self._at_s = time.perf_counter()

    def joules(self) -> float:
        """Give the energy since the monitor was first looked at."""
        watts, now_s = self._look(), time.perf_counter()
        self._total_j += (watts + self._watts) / 2 * (now_s - self._at_s)
        self._watts, self._at_s = watts, now_s
        return self._total_j

    def _look(self) -> float:
        return sum(rail() for rail in self._rails)


def _rails(folder: Path) -> dict[str, Callable[[], float]]:
    """Give what reads each rail of a monitor, in watts, by the rail's name."""
    name = f"{_text(folder / 'name')} ({folder.name})"
    for power in (folder / "power1_average", folder / "power1_input"):
        if _readable(power):
            return {name: _reader_of(power)}
    rails: dict[str, Callable[[], float]] = {}
    for number in (1, 2, 3):
        volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
        if _readable(volts) and _readable(amperes):
            label = _text(folder / f"in{number}_label") or f"{name}, rail {number}"
            rails[label] = _product_of(volts, amperes)
    return rails


def _reader_of(microwatts: Path) -> Callable[[], float]:
    return lambda: _whole(microwatts) / 1e6


def _product_of(volts: Path, amperes: Path) -> Callable[[], float]:
    return lambda: _whole(volts) * _whole(amperes) / 1e6  # in mV and mA


def _readable(path: Path) -> bool:
    try:
        _whole(path)
    except (OSError, ValueError):
        return False
    return True


def _whole(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
