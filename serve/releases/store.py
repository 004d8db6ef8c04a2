"""The releases of endpoints as files: one per release, made once, never changed.

``<folder>/<endpoint>/00000001.json``. Numbers have no gaps, so whoever knows one finds the next by asking
for one file; ``head`` is a hint where to start asking, and may lag. Of several writers of one number one
succeeds. A file that does not hold is passed over and reported: the last good release stays what it was. The
folder may lie on a disk that machines share; over NFS, mount it with ``lookupcache=positive``, or a machine
that asked for a file before it was there may not see it for seconds. It decides nothing about traffic.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

from kit.errors import ConflictError, InputError, NotFoundError, UnavailableError, VerificationError, nearest
from kit.files import create_once, write_atomic
from kit.reference import check_model_name
from serve.releases.record import from_bytes, to_bytes
from serve.releases.table import Release

_logger = logging.getLogger("kit")
_HINT = "head"


@dataclass(frozen=True)
class Damage:
    """A release whose file does not hold."""

    sequence: int
    reason: str


class ReleaseStore:
    """The releases of all endpoints of a project.

    Args:
        folder: ``<state>/serve/releases``; made by the first ``append``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, int] = {}

    def endpoints(self) -> list[str]:
        """List the endpoints that have a release."""
        if not self.folder.is_dir():
            return []
        return sorted(each.name for each in self.folder.iterdir() if _path(each, 1).exists())

    def last(self, endpoint: str) -> int:
        """Give the newest sequence number, damaged or not; 0 when there is none.

        Raises:
            InputError: The name is not one an endpoint may have.
        """
        folder = self._folder(endpoint)
        sequence = max(self._known.get(endpoint, 0), _hinted(folder))
        if sequence and not _path(folder, sequence).exists():  # the hint is wrong, or the folder was replaced
            sequence = max(
                (int(each.stem) for each in folder.glob("[0-9]*.json") if each.stem.isdigit()), default=0
            )
        while _path(folder, sequence + 1).exists():
            sequence += 1
        self._known[endpoint] = sequence
        return sequence

    def head(self, endpoint: str) -> Release | None:
        """Give the newest release that holds; None when there is none. Damaged ones are logged.

        Raises:
            InputError: The name is not one an endpoint may have.
            UnavailableError: A file cannot be read.
        """
        for sequence in range(self.last(endpoint), 0, -1):
            try:
                return self.read(endpoint, sequence=sequence)
            except VerificationError as error:
                _logger.warning("%s", error.message)
        return None

    def read(self, endpoint: str, *, sequence: int) -> Release:
        """Read one release.

        Raises:
            NotFoundError: There is no such release.
            UnavailableError: The file cannot be read.
            VerificationError: The file does not hold.
        """
        release = self.look(endpoint, sequence=sequence)
        if release is None:
            last = self.last(endpoint)
            there_are = f"its releases are 1 to {last}" if last else "it has none yet"
            raise NotFoundError(
                f"{endpoint} has no release {sequence}, {there_are}",
                hint=f"list them: kit release {endpoint} history"
                if last
                else nearest(endpoint, self.endpoints()),
            )
        return release

    def look(self, endpoint: str, *, sequence: int) -> Release | None:
        """Read one release if there is one: a single failed open when there is not.

        Raises:
            UnavailableError: The file cannot be read.
            VerificationError: The file does not hold.
        """
        path = _path(self._folder(endpoint), sequence)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(f"the release {path} cannot be read: {error.strerror}") from error
        try:
            return from_bytes(data, endpoint=endpoint, sequence=sequence)
        except VerificationError as error:
            raise VerificationError(
                f"the release {path} is damaged: {error.message}",
                hint=f"release anew; the one before stays in force: kit release {endpoint} set ...",
            ) from error

    def history(self, endpoint: str) -> tuple[Release | Damage, ...]:
        """Read all releases, oldest first.

        Raises:
            InputError: The name is not one an endpoint may have.
            UnavailableError: A file cannot be read.
        """
        found: list[Release | Damage] = []
        for sequence in range(1, self.last(endpoint) + 1):
            try:
                found.append(self.read(endpoint, sequence=sequence))
            except (VerificationError, NotFoundError) as error:  # an operator may have removed old ones
                found.append(Damage(sequence, error.message))
        return tuple(found)

    def append(self, release: Release) -> None:
        """Keep a release, unless somebody has taken its number.

        Raises:
            ConflictError: There is another release of this number.
            InputError: The number leaves a gap, or the name is not one an endpoint may have.
            UnavailableError: The folder cannot be written.
        """
        folder, sequence = self._folder(release.endpoint), release.sequence
        if sequence > 1 and not _path(folder, sequence - 1).exists():
            raise InputError(f"{release.endpoint} has no release {sequence - 1} that {sequence} could follow")
        path, data = _path(folder, sequence), to_bytes(release)
        # A shared disk may lose the answer and try again; then the file that is in the way is this one.
        if not create_once(path, data) and path.read_bytes() != data:
            raise ConflictError(
                f"somebody else made release {sequence} of {release.endpoint} meanwhile",
                hint=f"look at it, then run the command again: kit release {release.endpoint} show",
            )
        self._known[release.endpoint] = sequence
        with contextlib.suppress(UnavailableError):  # the release is made; without the hint it is found, too
            write_atomic(folder / _HINT, f"{sequence}\n".encode(), settled=False)

    def _folder(self, endpoint: str) -> Path:
        check_model_name(endpoint)
        return self.folder / endpoint


def _path(folder: Path, sequence: int) -> Path:
    return folder / f"{sequence:08d}.json"


def _hinted(folder: Path) -> int:
    try:
        text = (folder / _HINT).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isdigit() and len(text) <= 8 else 0
