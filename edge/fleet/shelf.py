"""The bundles the fleet can offer: archive files named by what is in them, and what the database says of
them.

Only a bundle that a key of the project signed gets onto the shelf; the devices verify it again, against the
keys they pin. Files are written whole before the database names them.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.fleet.offers import BundleFacts, DeltaFacts
from edge.fleet.store import note
from kit import delta
from kit.archive import SUFFIX, unpack
from kit.bundle import Bundle, open_bundle
from kit.errors import InputError, MissingDependencyError, VerificationError
from kit.files import disk_errors, read_json, sha256_file, write_atomic

PROFILE = "profile.json"
MAX_PROFILE_BYTES = 4 << 20
_WORTH_SHARE = 0.9


@contextmanager
def opened(path: Path, *, trusted: Sequence[bytes]) -> Iterator[Bundle]:
    """Unpack a bundle file into a folder of its own and verify it; the folder goes at the end.

    Raises:
        InputError: The file cannot be read.
        VerificationError: It is not a bundle that a trusted key signed; the message names the file.
    """
    with tempfile.TemporaryDirectory(prefix="kit-fleet-") as scratch:
        work = Path(scratch) / "bundle"
        unpack(path, work)
        try:
            yield open_bundle(work, trusted=trusted)
        except VerificationError as error:  # the user knows the bundle, not where it was unpacked
            raise VerificationError(error.message.replace(str(work), str(path)), hint=error.hint) from error


def facts_of(path: Path, bundle: Bundle) -> BundleFacts:
    """Describe an opened bundle and the archive it came from."""
    return BundleFacts(
        digest=bundle.digest,
        name=str(bundle.manifest["name"]),
        target=str(bundle.manifest["target"]),
        release=bundle.release,
        size_bytes=path.stat().st_size,
        sha256=sha256_file(path),
    )


def place(folder: Path, path: Path, facts: BundleFacts) -> None:
    """Copy a bundle's archive to where the server finds it; one that lies there whole stays.

    Args:
        folder: The fleet's folder.
        path: The archive.
        facts: What ``facts_of`` said of it.

    Raises:
        VerificationError: The archive changed meanwhile.
        UnavailableError: The disk is full or the folder cannot be written.
    """
    target = archive_path(folder, facts.digest)
    with disk_errors(target):
        if target.is_file() and sha256_file(target) == facts.sha256:
            return
        write_atomic(target, path.read_bytes())
        if sha256_file(target) != facts.sha256:
            target.unlink()
            raise VerificationError(f"{path} changed while it was read", hint="run the same command again")


def remember(db: sqlite3.Connection, facts: BundleFacts, bundle: Bundle) -> None:
    """Keep what is known of a bundle whose archive has been placed."""
    if db.execute("SELECT 1 FROM bundles WHERE digest = ?", (facts.digest,)).fetchone():
        return
    db.execute(
        "INSERT INTO bundles VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(facts.digest, facts.name, facts.target, facts.release, facts.size_bytes, facts.sha256),
            *(_profile(bundle), time.time_ns()),
        ),
    )
    note(db, "bundle", subject=facts.digest, body={"name": facts.name, "release": facts.release})


def facts(db: sqlite3.Connection) -> dict[str, BundleFacts]:
    """Give every bundle by digest."""
    rows = db.execute("SELECT digest, name, target, release, size_bytes, sha256 FROM bundles")
    return {row[0]: BundleFacts(*row) for row in rows}


def profile(db: sqlite3.Connection, digest: str) -> dict[str, Any]:
    """Give a bundle's profile; empty when it has none."""
    row = db.execute("SELECT profile FROM bundles WHERE digest = ?", (digest,)).fetchone()
    found = {} if row is None or row[0] is None else json.loads(row[0])
    return found if isinstance(found, dict) else {}


def make_deltas(folder: Path, new: BundleFacts, *, bases: Sequence[BundleFacts]) -> list[DeltaFacts]:
    """Make what turns bundles that devices run into a new one, where that is worth its while.

    Args:
        folder: The fleet's folder, in which all archives lie.
        new: The bundle they shall run.
        bases: The bundles they run.

    Returns:
        The deltas that save a tenth or more. None where what makes them is not installed, or an archive is
        too large to be compared: devices then fetch the whole.
    """
    made = []
    for base in bases:
        path = delta_path(folder, base.digest, new.digest)
        try:
            with disk_errors(path):
                path.parent.mkdir(exist_ok=True)
            n_bytes = delta.make(archive_path(folder, base.digest), archive_path(folder, new.digest), path)
        except (InputError, MissingDependencyError):
            continue
        if n_bytes is None or n_bytes > _WORTH_SHARE * new.size_bytes:
            path.unlink(missing_ok=True)
            continue
        made.append(DeltaFacts(base.digest, new.digest, n_bytes, sha256_file(path)))
    return made


def add_delta(db: sqlite3.Connection, made: DeltaFacts) -> None:
    """Keep what is known of a delta whose file has been placed."""
    db.execute(
        "INSERT INTO deltas VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (made.base, made.digest, made.size_bytes, made.sha256),
    )


def deltas(db: sqlite3.Connection) -> dict[tuple[str, str], DeltaFacts]:
    """Give every delta by the bundle it starts from and the one it makes."""
    rows = db.execute("SELECT base, digest, size_bytes, sha256 FROM deltas")
    return {(row[0], row[1]): DeltaFacts(*row) for row in rows}


def archive_path(folder: Path, digest: str) -> Path:
    """Say where a bundle's archive lies."""
    return folder / "bundles" / f"{digest}{SUFFIX}"


def delta_path(folder: Path, base: str, digest: str) -> Path:
    """Say where a delta lies."""
    return folder / "deltas" / f"{base}-{digest}{delta.SUFFIX}"


def free_bytes(folder: Path) -> int:
    """Say how much room the fleet's disk has."""
    return shutil.disk_usage(folder).free


def _profile(bundle: Bundle) -> str | None:
    path = bundle.folder / PROFILE
    if not path.is_file() or path.stat().st_size > MAX_PROFILE_BYTES:
        return None
    return json.dumps(read_json(path))
