"""Admission: whether this device can run a bundle, said before its slot is touched and before it is loaded.

Every refusal names what was found, what is needed and the next step. Whether a bundle is genuine is for
``kit.bundle``; whether it answers rightly, for ``edge.agent.trial``.
"""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.engines import ENGINES
from kit.errors import (
    ConflictError,
    InputError,
    MissingDependencyError,
    UnavailableError,
    VerificationError,
    install_line,
)
from kit.files import disk_errors

if TYPE_CHECKING:
    from edge.agent.state import State
    from kit.bundle import Bundle
    from kit.override import Override

_FOR_THE_STATE_BYTES = 1 << 16
_RULE = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9]+(?:\.[0-9]+)*)")
_RELEASE = re.compile(r"[0-9]+(?:\.[0-9]+)*")
#: The same processor under the names that systems give it.
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvhost-gpu"))


def admit(bundle: Bundle, *, state: State, override: Override | None, device_id: str) -> None:
    """Refuse a verified bundle that this device cannot run, or has gone past.

    Args:
        bundle: What was unpacked, verified.
        state: The device's.
        override: What lets an older release in; None without.
        device_id: Whom an override may name.

    Raises:
        ConflictError: Its release is not above the device's, and no override lets it in.
        VerificationError: It needs another processor, runtime or version.
        UnavailableError: There is not enough memory now; it may be tried again.
    """
    require_release(bundle, state=state, override=override, device_id=device_id)
    require_runs(bundle.manifest)
    require_memory(bundle.manifest)


def require_release(bundle: Bundle, *, state: State, override: Override | None, device_id: str) -> None:
    """Refuse a replay: an older bundle, however well it is signed, may hold a mended fault.

    Raises:
        ConflictError: Its release is not above the device's, and no override lets it in.
    """
    # The same bundle may come again at its own release: that is how a damaged slot is repaired.
    repeated = bundle.release == state.release and bundle.digest == state.release_digest
    if bundle.release > state.release or repeated:
        return
    if override is not None and override.allows(bundle.digest, device_id):
        return
    raise ConflictError(
        f"release {bundle.release} is not above release {state.release}, which this device has confirmed",
        hint="export the model again with a higher release, or sign an override for this one",
    )


def require_runs(manifest: Mapping[str, Any]) -> None:
    """Refuse what this machine's processor or runtimes cannot run.

    Args:
        manifest: The bundle's.

    Raises:
        VerificationError: The processor is another, or no runtime has a version that answers rightly.
        MissingDependencyError: No runtime of the engine is installed.
    """
    requirements = manifest.get("requirements") or {}
    target, engine = manifest["target"], manifest["engine"]
    if engine not in ENGINES:
        raise VerificationError(
            f"the bundle needs the engine {str(engine)[:40]!r}, which this agent does not know",
            hint="bring the agent up to date",
        )
    here = platform.machine().lower()
    machines = [str(each) for each in requirements.get("machines", ())]
    if machines and _MACHINES.get(here, here) not in machines:
        raise VerificationError(
            f"the bundle for {target} runs on {' or '.join(machines)}; this machine is {here or 'unknown'}",
            hint="flash a bundle of a target that this machine can run",
        )
    if struct.calcsize("P") < 8:
        raise VerificationError(
            f"the bundle for {target} needs 64 bits; this Python has {8 * struct.calcsize('P')}",
            hint="use a 64-bit system",
        )
    if requirements.get("gpu") and not any(place.exists() for place in _NVIDIA):
        raise VerificationError(
            f"the bundle for {target} needs an NVIDIA GPU, and this machine shows none",
            hint="flash a bundle of a target for processors",
        )
    packages = requirements.get("packages") or {}
    if not packages:
        return
    found = {name: _version(name) for name in packages}
    present = {name: version for name, version in found.items() if version is not None}
    if any(_holds(version, str(packages[name])) for name, version in present.items()):
        return
    wanted = " or ".join(f"{name} {rule}".strip() for name, rule in packages.items())
    if not present:
        raise MissingDependencyError(
            f"the bundle for {target} needs {wanted}; none is installed",
            hint=install_line(ENGINES[engine][2]),
        )
    shown = ", ".join(f"{name} {version}" for name, version in present.items())
    raise VerificationError(
        f"the bundle for {target} answers rightly with {wanted}; this device has {shown}",
        hint=f"install a version in that range: {install_line(ENGINES[engine][2])}",
    )


def require_memory(manifest: Mapping[str, Any]) -> None:
    """Refuse what needs more memory than there is.

    Args:
        manifest: The bundle's.

    Raises:
        VerificationError: The machine's whole memory is too little.
        UnavailableError: There is too little now; it may be tried again.
    """
    requirements = manifest.get("requirements") or {}
    target = manifest["target"]
    needed_mb = _number(requirements.get("memory_mb"))
    total_mb, free_mb = _memory_mb()
    if total_mb is not None and needed_mb > total_mb:
        raise VerificationError(
            f"the bundle for {target} needs {needed_mb:.0f} MB of memory; this machine has {total_mb:.0f}",
            hint="flash a smaller model",
        )
    if free_mb is not None and needed_mb > free_mb:
        raise UnavailableError(
            f"the bundle for {target} needs {needed_mb:.0f} MB of memory; {free_mb:.0f} are free",
            hint="end what takes memory on the device",
        )


def require_disk(archive: Path, *, folder: Path) -> None:
    """Refuse to unpack what the disk has no room for; its files take what the archive takes.

    Args:
        archive: The bundle's file.
        folder: Where its slot will lie.

    Raises:
        UnavailableError: There is too little room now; it may be tried again.
    """
    with disk_errors(folder):
        needed_bytes = archive.lstat().st_size + _FOR_THE_STATE_BYTES
        stats = os.statvfs(folder)
    free_bytes = stats.f_bavail * stats.f_frsize
    if free_bytes < needed_bytes:
        raise UnavailableError(
            f"{folder} has {free_bytes} bytes free; the slot of {archive.name} needs {needed_bytes}",
            hint="free some space on the device",
        )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _holds(version: str, rules: str) -> bool:
    """Say whether a version keeps every rule; of a version only its release counts, not what follows it.

    Raises:
        InputError: A rule is none that the exporter writes.
    """
    match = _RELEASE.match(version)
    if match is None:
        return False
    release = _parts(match.group())
    for rule in filter(None, (each.strip() for each in rules.split(","))):
        read = _RULE.fullmatch(rule)
        if read is None:
            raise InputError(f"the bundle asks for version {rule[:40]!r}, which this agent cannot read")
        sign, bound = read.group(1), _parts(read.group(2))
        width = max(len(release), len(bound))
        ours, theirs = _padded(release, width), _padded(bound, width)
        kept = {
            ">=": ours >= theirs,
            "<=": ours <= theirs,
            "==": ours == theirs,
            "!=": ours != theirs,
            "<": ours < theirs,
            ">": ours > theirs,
        }[sign]
        if not kept:
            return False
    return True


def _parts(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split("."))


def _padded(parts: tuple[int, ...], width: int) -> tuple[int, ...]:
    return parts + (0,) * (width - len(parts))


def _memory_mb() -> tuple[float | None, float | None]:
    """Read the machine's memory, all of it and what is free for use, in MB; None where it cannot be read."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None, None
    found = {line.partition(":")[0]: line.split() for line in lines}

    def read(name: str) -> float | None:
        words = found.get(name)
        return int(words[1]) * 1024 / 1e6 if words and words[1].isdigit() else None

    return read("MemTotal"), read("MemAvailable")
