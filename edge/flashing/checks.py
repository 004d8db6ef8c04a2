"""Refuse a flash early: what a look at the device says before anything is written there.

These are the refusals the device's own agent would come to after the upload; it decides all the same. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kit import keypair
from kit.bundle import Bundle
from kit.errors import (
    ConflictError,
    InputError,
    MissingDependencyError,
    NotFoundError,
    UnavailableError,
    VerificationError,
    install_line,
)

OLDEST_PYTHON = (3, 9)

#: Engine to the distributions that bring it, the one the kit's extra installs first.
ENGINES = {
    "litert": ("ai-edge-litert", "tflite-runtime"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
}
PACKAGES = ("batch-edge-kit", *(name for names in ENGINES.values() for name in names))

#: The same processor under the names that systems give it.
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

_BOUND = re.compile(r"(>=|<=|==|<|>)([0-9.]+)")


@dataclass(frozen=True)
class Found:
    """What a look at a device has found.

    Attributes:
        python, machine, system, bits: The interpreter and the machine.
        memory_bytes: Its memory; 0 where it does not tell.
        agent: Whether the interpreter can import the agent.
        packages: Distribution to version, of those asked for.
        place: ``device``, ``empty``, ``absent``, ``nowhere``, ``file`` or ``other``.
        other: A file that makes the folder none of a device's.
        free_bytes: Room on its disk.
        writable: Whether the folder, or its parent, can be written.
        keys: File name to a key that counts there, PEM.
        state: What ``state.json`` holds; None before the first pass of an agent.
        running: Whether an agent holds the device.
    """

    python: str
    machine: str
    system: str
    bits: int
    memory_bytes: int
    agent: bool
    packages: Mapping[str, str]
    place: str
    other: str
    free_bytes: int
    writable: bool
    keys: Mapping[str, str]
    state: Mapping[str, Any] | None
    running: bool

    @property
    def release(self) -> int:
        """The highest release the device has confirmed; 0 for none."""
        release = (self.state or {}).get("release")
        return release if isinstance(release, int) else 0

    @property
    def keyring_counter(self) -> int:
        """The counter of the keyring that counts there; 0 for none."""
        counter = (self.state or {}).get("keyring_counter")
        return counter if isinstance(counter, int) else 0

    @property
    def current(self) -> str | None:
        """The digest it runs."""
        current = (self.state or {}).get("current")
        return current if isinstance(current, str) else None


def check_place(found: Found, *, shown: str, n_bytes: int) -> None:
    """Refuse a place that cannot become a device, or has no room.

    Args:
        found: What is there.
        shown: The device, as a sentence shows it.
        n_bytes: The archive's size; its slot takes as much again.

    Raises:
        InputError: The folder is none, or holds something else.
        NotFoundError: Neither the folder nor its parent exists.
        UnavailableError: It cannot be written, or has too little room.
    """
    if found.place == "file":
        raise InputError(f"{shown} is not a folder", hint="name a folder")
    if found.place == "nowhere":
        raise NotFoundError(
            f"neither {shown} nor its parent exists", hint="make the parent folder, or correct the path"
        )
    if found.place == "other":
        raise InputError(
            f"{shown} is no device folder: it holds {found.other!r} and no keys",
            hint="name an empty or a new folder",
        )
    if not found.writable:
        raise UnavailableError(f"{shown} cannot be written", hint="make the folder writable")
    if found.free_bytes < 2 * n_bytes:
        raise UnavailableError(
            f"{shown} has {found.free_bytes} bytes free; the bundle and its slot need {2 * n_bytes}",
            hint="free some space on the device",
        )


def check_machine(found: Found, bundle: Bundle, *, shown: str) -> None:
    """Refuse a machine that has no agent, no engine, or is of another kind.

    Raises:
        UnavailableError: Its Python is too old, or it is not of 64 bits. MissingDependencyError: The agent or
        the engine is not installed there, or in a version the bundle refuses. VerificationError: The bundle
        is for another architecture.
    """
    version = tuple(int(part) for part in re.findall(r"\d+", found.python)[:2])
    if version < OLDEST_PYTHON or found.bits != 64:
        raise UnavailableError(
            f"{shown} has Python {found.python} of {found.bits} bits; the agent needs 3.9 and 64 bits",
            hint="name another interpreter: --device-python",
        )
    engine = str(bundle.manifest["engine"])
    extra = engine if engine in ENGINES else "litert"
    if not found.agent:
        raise MissingDependencyError(
            f"the agent is not installed on {shown} (Python {found.python})",
            hint=f"run there: {install_line(extra)}; or name its interpreter: --device-python",
        )
    needs = bundle.manifest.get("requirements") or {}
    machines = [str(each) for each in needs.get("machines") or ()]
    here = found.machine.lower()
    if machines and MACHINES.get(here, here) not in machines:
        raise VerificationError(
            f"the bundle is for {' or '.join(machines)}; {shown} is a {found.machine}",
            hint="export the model for this device",
        )
    memory_mb = needs.get("memory_mb")
    if isinstance(memory_mb, (int, float)) and 0 < found.memory_bytes < memory_mb * 1e6:
        raise VerificationError(
            f"the bundle needs {memory_mb:.0f} MB of memory; {shown} has {found.memory_bytes / 1e6:.0f}",
            hint="flash a smaller model",
        )
    if engine not in ENGINES:
        return  # an engine of a newer kit: the device's agent knows it, or says that it does not
    wanted = needs.get("packages") or dict.fromkeys(ENGINES[engine], "")
    there = {name: found.packages[name] for name in wanted if name in found.packages}
    if not there:
        raise MissingDependencyError(
            f"{shown} has no {engine}: {' or '.join(sorted(wanted))} is needed",
            hint=f"run there: {install_line(extra)}",
        )
    if not any(fits(version, wanted[name]) for name, version in there.items()):
        shown_ones = ", ".join(f"{name} {version}" for name, version in sorted(there.items()))
        asked = " or ".join(f"{name} {wanted[name]}" for name in sorted(wanted))
        raise MissingDependencyError(
            f"{shown} has {shown_ones}; the bundle needs {asked}", hint=f"run there: {install_line(extra)} -U"
        )


def check_trust(found: Found, bundle: Bundle, *, shown: str, keyring: bool) -> None:
    """Refuse a bundle whose signer the device does not know.

    Args:
        found: What is there.
        bundle: What shall be flashed.
        shown: The device, as a sentence shows it.
        keyring: Whether a keyring goes with it, which may bring the signer.

    Raises:
        VerificationError: None of its pinned keys has signed it.
    """
    if found.place != "device" or keyring:
        return
    pinned = []
    for name, pem in found.keys.items():
        try:
            pinned.append(keypair.key_id(pem.encode()))
        except InputError as error:
            raise VerificationError(f"{shown}: keys/{name}: {error.message}") from error
    if bundle.key_id not in pinned:
        raise VerificationError(
            f"the bundle is signed by key {bundle.key_id[:16]}; "
            f"{shown} trusts {', '.join(key[:16] for key in pinned) or 'none'} only",
            hint="sign with a key the device has pinned, or rotate to the new one: kit keys rotate",
        )


def check_release(found: Found, bundle: Bundle, *, shown: str, override: bool) -> None:
    """Refuse a replay, unless an override goes with it.

    Raises:
        ConflictError: The release is not above the device's.
    """
    repeated = bundle.digest in (found.current, (found.state or {}).get("release_digest"))
    if bundle.release <= found.release and not repeated and not override:
        raise ConflictError(
            f"release {bundle.release} is not above release {found.release}, which {shown} has confirmed",
            hint="export the model with a higher --release, or say why an older one: --allow-older REASON",
        )


def fits(version: str, bounds: str) -> bool:
    """Say whether a version is within bounds such as ``>=2.1.6,<3``; empty bounds allow all."""
    have = _numbers(version)
    for sign, text in _BOUND.findall(bounds):
        want = _numbers(text)
        width = max(len(have), len(want))
        a, b = (numbers + (0,) * (width - len(numbers)) for numbers in (have, want))
        holds = {">=": a >= b, "<=": a <= b, "==": a == b, "<": a < b, ">": a > b}[sign]
        if not holds:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
