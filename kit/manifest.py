"""The manifest of a data set: its files, their digests, its columns and its number of rows.

The fingerprint is a digest over contents and, where there are several files, their names below the data
set, which say the order of the rows. The same files have the same one wherever they lie, and a single file
whatever it is called. What the rows mean is not known here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import InputError
from kit.files import canonical_json, digest_of, read_json, write_atomic
from kit.images import list_data
from kit.tables import TableFile, open_file_system, storage_error

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger("kit")
_CHUNK_BYTES = 1 << 20
_READERS = 8  # files hashed at a time; S3 answers each request late but many at once
_NAMED_FILES = 3


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Attributes:
        name: Relative to the data set, POSIX style.
        size_bytes: Its size.
        sha256: Of its bytes, in hexadecimal.
    """

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a data set consists of.

    Attributes:
        files: Its files, sorted by name.
        columns: Name and Arrow type of each column of the raw table.
        n_rows: Rows of the raw table.
    """

    files: tuple[DataFile, ...]
    columns: tuple[tuple[str, str], ...]
    n_rows: int

    @property
    def fingerprint(self) -> str:
        """The sha256 over the files; see ``fingerprint_of``."""
        return fingerprint_of(self.files)

    @property
    def n_files(self) -> int:
        """How many files there are."""
        return len(self.files)

    @property
    def size_bytes(self) -> int:
        """The sizes of all files together."""
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Give the manifest as a JSON object; the same data gives the same object."""
        return {
            "fingerprint": self.fingerprint,
            "n_rows": self.n_rows,
            "columns": [{"name": name, "type": kind} for name, kind in self.columns],
            "files": [
                {"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256}
                for file in self.files
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """Read the object ``to_json`` gives.

        Raises:
            InputError: It is not a manifest, or its fingerprint is not that of its files.
        """
        try:
            files = [
                DataFile(str(file["name"]), int(file["size_bytes"]), str(file["sha256"]))
                for file in value["files"]
            ]
            columns = [(str(column["name"]), str(column["type"])) for column in value["columns"]]
            manifest = cls(tuple(files), tuple(columns), int(value["n_rows"]))
            same = manifest.fingerprint == value["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a manifest of data lacks or garbles {error}") from error
        if not same:
            raise InputError(f"a manifest of data does not have the fingerprint {value['fingerprint']!r}")
        return manifest


@dataclass(frozen=True)
class Comparison:
    """How one manifest differs from an earlier one.

    Attributes:
        added: Names of files that were not there before.
        removed: Names of files that are gone.
        changed: Names of files with other bytes.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def describe(self, path: str) -> str:
        """Say it in one line that names the first files; empty when nothing differs.

        Args:
            path: The data set as kit.toml names it.
        """
        said = [
            f"{_place(path, name)} {word}"
            for word, names in (("changed", self.changed), ("is new", self.added), ("is gone", self.removed))
            for name in names
        ]
        more = [f"and {len(said) - _NAMED_FILES} more"] if len(said) > _NAMED_FILES else []
        return ", ".join([*said[:_NAMED_FILES], *more])


def digest_files(uri: str, files: Sequence[TableFile] | None = None) -> tuple[DataFile, ...]:
    """Hash every file of a data set.

    Args:
        uri: A file or a folder of tables or images, on disk or on S3.
        files: Its files, where they have been listed already.

    Raises:
        InputError: Nothing is there, or a file cannot be read.
        UnavailableError: S3 does not answer or refuses.
    """
    system, _ = open_file_system(uri)

    def read(file: TableFile) -> DataFile:
        digest = hashlib.sha256()
        size_bytes = 0
        try:
            with system.open_input_stream(file.path) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    size_bytes += len(chunk)
        except OSError as error:
            raise storage_error(f"{uri} ({file.name})", error) from error
        return DataFile(file.name, size_bytes, digest.hexdigest())

    with ThreadPoolExecutor(_READERS) as pool:
        return tuple(pool.map(read, list_data(uri) if files is None else files))


def fingerprint_of(files: Sequence[DataFile]) -> str:
    """Name a set of files by their content and, of several, their names; returns 64 hexadecimal digits.

    A single file's name is left aside: a copy under another name holds the same rows in the same order.
    """
    if len(files) == 1:
        return digest_of({"": files[0].sha256})
    return digest_of({file.name: file.sha256 for file in files})


def fingerprint(uri: str) -> str:
    """Name a data set by its files: the same give the same sha256, wherever they lie.

    It covers every byte of every file and, of several files, their names below the data set. It does not
    cover where the data set lies, what a single file is called, or the type of a file that its name gives:
    the same rows stored anew, or as another format, are other data.

    Raises:
        InputError: Nothing is there, or a file cannot be read.
        UnavailableError: S3 does not answer or refuses.
    """
    return fingerprint_of(digest_files(uri))


def describe_table(files: Sequence[DataFile], table: pa.Table) -> Manifest:
    """Make the manifest of a table that was read from files."""
    columns = tuple((str(field.name), str(field.type)) for field in table.schema)
    return Manifest(tuple(files), columns, table.num_rows)


def compare(before: Manifest, after: Manifest) -> Comparison:
    """Name the files that were added, removed and changed between two manifests; none of equal data."""
    if before.fingerprint == after.fingerprint:
        return Comparison((), (), ())
    old = {file.name: file.sha256 for file in before.files}
    new = {file.name: file.sha256 for file in after.files}
    return Comparison(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
    )


def read_manifest(folder: Path, fingerprint: str) -> Manifest:
    """Read a manifest that was kept.

    Args:
        folder: Where manifests are kept, ``<state>/data``.
        fingerprint: Whose.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    return Manifest.from_json(read_json(folder / f"{fingerprint}.json"))


def keep_manifest(manifest: Manifest, folder: Path, *, path: str) -> Comparison | None:
    """Keep a manifest as the last one, and say how it differs from the one before.

    Args:
        manifest: Of the data that was read now.
        folder: Where manifests are kept, ``<state>/data``.
        path: The data set as kit.toml names it; another path is another data set.

    Returns:
        What changed since the last time; None the first time.

    Raises:
        UnavailableError: The folder cannot be written.
    """
    pointer = folder / "last.json"
    try:
        last = read_json(pointer)
        before = read_manifest(folder, str(last["fingerprint"])) if last.get("path") == path else None
    except (InputError, KeyError):  # absent or damaged: nothing is known about last time
        last, before = {}, None
    kept = folder / f"{manifest.fingerprint}.json"
    content = canonical_json(manifest.to_json())
    if not kept.is_file() or kept.read_bytes() != content:
        write_atomic(kept, content)
    now = {"path": path, "fingerprint": manifest.fingerprint}
    if last != now:
        write_atomic(pointer, canonical_json(now))
    return None if before is None else compare(before, manifest)


def _place(path: str, name: str) -> str:
    single = path.rstrip("/").rpartition("/")[2] == name
    return path if single else f"{path.rstrip('/')}/{name}"
