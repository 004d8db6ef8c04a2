"""The command ``kit bundle``: show, verify and compare bundle files.

Nothing is believed before it is verified: a bundle is unpacked into a folder of its own, and opened only
when a trusted key signed every byte of it. What must agree inside is for
``edge.bundling.checks`` to say, how bundles are made for ``edge.bundling.parts``.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.bundling.checks import GOLDEN, Check, check_content, check_golden
from edge.bundling.parts import unpack_bundle
from kit.bundle import Bundle
from kit.errors import GateError, VerificationError
from kit.files import sha256_file
from kit.project import Project
from kit.seal import SIGNATURE_NAME
from kit.settings import BundleSettings


@dataclass(frozen=True)
class BundleFile:
    """A file inside a bundle.

    Attributes:
        name: Its path there.
        n_bytes: Its size.
        sha256: Of its bytes, in hexadecimal.
    """

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class BundleFacts:
    """A verified bundle.

    Attributes:
        path: The bundle file.
        n_bytes: Its size.
        digest: Names its content.
        key_id: The trusted key that signed it.
        manifest: Its manifest.json.
        files: All of its files, sorted by name.
    """

    path: str
    n_bytes: int
    digest: str
    key_id: str
    manifest: dict[str, Any]
    files: tuple[BundleFile, ...]


@dataclass(frozen=True)
class Difference:
    """Something in which two bundles differ.

    Attributes:
        of: ``bundle``, ``metrics``, ``manifest`` or ``file``.
        name: What: a key of the manifest (``metrics.value``), a file.
        change: changed, added or removed.
        old: In the first bundle; None where it is added.
        new: In the second; None where it is removed.
    """

    of: str
    name: str
    change: str
    old: Any
    new: Any


@dataclass(frozen=True)
class BundleResult:
    """What ``kit bundle`` found.

    Attributes:
        action: As it was asked.
        bundles: The bundle; for diff both.
        checks: What verify has looked at, in this order.
        differences: What diff has found.
    """

    action: str
    bundles: tuple[BundleFacts, ...]
    checks: tuple[Check, ...] = ()
    differences: tuple[Difference, ...] = ()

    def require_passed(self) -> None:
        """Raise where a check did not hold.

        Raises:
            VerificationError: The bundle's parts contradict each other.
            GateError: Its golden rows are answered wrongly here, and all else holds.
        """
        failed = [check for check in self.checks if check.passed is False]
        if not failed:
            return
        message = f"{self.bundles[0].path}: " + "; ".join(f"{each.name}: {each.detail}" for each in failed)
        if [each.name for each in failed] == [GOLDEN]:
            raise GateError(message, hint="run it with a runtime in the range that its manifest names")
        raise VerificationError(message, hint="export the bundle again with this kit version")


def bundle(project: Project, settings: BundleSettings) -> BundleResult:
    """Show, verify or compare bundles.

    Args:
        project: Whose keys must have signed them.
        settings: What to do, and with which.

    Returns:
        What was found; call ``require_passed`` after ``verify``.

    Raises:
        InputError: A bundle cannot be read.
        VerificationError: An archive, a digest or a signature does not hold, or the signer is not trusted.
        NotFoundError: The project trusts no key yet.
        UnavailableError: The disk that unpacks it is full.
    """
    trusted = project.trusted()
    with _opened(Path(project.locate(settings.bundle)), trusted) as (facts, opened):
        if settings.action == "verify":
            return BundleResult("verify", (facts,), checks=_checks(facts, opened))
        if settings.other is None:
            return BundleResult("show", (facts,))
    with _opened(Path(project.locate(settings.other)), trusted) as (other, _):
        return BundleResult("diff", (facts, other), differences=tuple(_differences(facts, other)))


@contextlib.contextmanager
def _opened(path: Path, trusted: tuple[bytes, ...]) -> Iterator[tuple[BundleFacts, Bundle]]:
    with tempfile.TemporaryDirectory(prefix="kit-bundle-") as scratch:
        work = Path(scratch) / "bundle"
        try:
            opened = unpack_bundle(path, folder=work, trusted=trusted)
        except VerificationError as error:  # the user knows the bundle, not where it was unpacked
            raise VerificationError(error.message.replace(str(work), str(path)), hint=error.hint) from error
        names = sorted(each.relative_to(work).as_posix() for each in work.rglob("*") if each.is_file())
        files = tuple(
            BundleFile(name, (work / name).stat().st_size, sha256_file(work / name)) for name in names
        )
        size = path.stat().st_size
        yield BundleFacts(str(path), size, opened.digest, opened.key_id, opened.manifest, files), opened


def _checks(facts: BundleFacts, opened: Bundle) -> tuple[Check, ...]:
    signed = [each for each in facts.files if each.name != SIGNATURE_NAME]
    n_bytes = sum(each.n_bytes for each in signed)
    return (
        Check("signature", True, f"by the trusted key {facts.key_id[:16]}"),
        Check("files", True, f"{len(signed)} files, {n_bytes:,} bytes hashed, and no others"),
        *check_content(opened, digests={each.name: each.sha256 for each in facts.files}),
        check_golden(opened),
    )


def _differences(old: BundleFacts, new: BundleFacts) -> Iterator[Difference]:
    names = ("digest", "key_id", "n_bytes")
    yield from _compared("bundle", *({name: getattr(each, name) for name in names} for each in (old, new)))
    keys = [dict(_flattened(each.manifest)) for each in (old, new)]
    for of in ("metrics", "manifest"):
        chosen = [
            {key: said for key, said in each.items() if key.startswith("metrics.") == (of == "metrics")}
            for each in keys
        ]
        yield from _compared(of, *chosen)
    yield from _compared("file", *({each.name: each for each in facts.files} for facts in (old, new)))


def _compared(of: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    for name in dict.fromkeys([*old, *new]):
        if name not in old or name not in new:
            change = "added" if name not in old else "removed"
            yield Difference(of, name, change, old.get(name), new.get(name))
        elif old[name] != new[name]:
            yield Difference(of, name, "changed", old[name], new[name])


def _flattened(value: Any, *, key: str = "") -> Iterator[tuple[str, Any]]:
    """Give every value of a manifest with its path: ``tensors.inputs[0].scale``."""
    if isinstance(value, dict) and value:
        for name in sorted(value):
            yield from _flattened(value[name], key=f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(each, (dict, list)) for each in value):
        for index, each in enumerate(value):
            yield from _flattened(each, key=f"{key}[{index}]")
    else:
        yield key, value
