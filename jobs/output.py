"""The output folder of a batch run: claimed by one run, filled part by part, taken back when it fails.

A folder on a disk or a prefix on S3; every file appears whole or not at all. It knows nothing of
models.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import ConflictError, UnavailableError
from kit.files import write_atomic
from kit.tables import open_file_system, storage_error

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger("kit")
REPORT = "_report.json"
MARKER = "_running"


@contextlib.contextmanager
def claimed(uri: str) -> Iterator[None]:
    """Hold an empty output folder, so that two runs never write to the same one.

    Each run leaves a marker of its own before it looks again: of two that start together, the one
    that looks last sees the other's. S3 and disks show a finished write to whoever lists after it.
    """
    _check_empty(uri)
    was_there = not uri.startswith("s3://") and Path(uri).is_dir()
    mine = f"{MARKER}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    write(uri, mine, b"kit predict writes here\n")
    try:
        _check_empty(uri, but=mine)
        yield
    finally:
        with _forgiven(uri):
            system, root = open_file_system(uri)
            system.delete_file(f"{root}/{mine}")
            if not was_there and not _entries(uri):
                system.delete_dir(root)


@contextlib.contextmanager
def cleared_on_failure(uri: str, *, parts: Collection[str]) -> Iterator[None]:
    """Take back the parts of a run that fails or is interrupted, and what was half-written of them.

    Entered before Ray is, so it clears after every actor has gone.
    """
    length = max(map(len, parts), default=0)
    try:
        yield
    except BaseException:
        with _forgiven(uri):
            system, _ = open_file_system(uri)
            for entry in _entries(uri):
                if entry.base_name.lstrip(".")[:length] in parts:
                    system.delete_file(entry.path)
        raise


def _check_empty(uri: str, *, but: str | None = None) -> None:
    """Refuse an output folder that holds anything but this run's own marker."""
    try:
        there = sorted(entry.base_name for entry in _entries(uri) if entry.base_name != but)
    except OSError as error:
        if uri.startswith("s3://"):
            raise storage_error(uri, error) from error
        raise UnavailableError(
            f"{uri} cannot be listed: {str(error)[:200]}", hint="choose another folder"
        ) from error
    if marker := next((name for name in there if name.lstrip(".").startswith(MARKER)), None):
        raise ConflictError(
            f"the output folder {uri} is held by another run ({marker})",
            hint="wait until it has ended; if it was killed, remove the folder",
        )
    if there:
        raise ConflictError(
            f"the output folder {uri} is not empty (it holds {there[0]})",
            hint="choose another folder, or remove this one",
        )


def write_part(uri: str, part: str, table: pa.Table) -> None:
    """Write one part as Parquet (zstd), whole or not at all; see ``write``."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    write(uri, part, sink.getvalue().to_pybytes())


def write(uri: str, name: str, data: bytes) -> None:
    """Write one file of the output: by rename on a disk, by one upload on S3, which
    appears when it is complete."""
    if not uri.startswith("s3://"):
        write_atomic(Path(uri) / name, data)
        return
    system, root = open_file_system(uri)
    try:
        with system.open_output_stream(f"{root}/{name}") as stream:
            stream.write(data)
    except OSError as error:
        raise storage_error(f"{uri}/{name}", error) from error


@contextlib.contextmanager
def _forgiven(uri: str) -> Iterator[None]:
    """Let a clean-up that fails not hide why it was needed."""
    try:
        yield
    except OSError as error:
        _log.warning("%s could not be cleared: %s", uri, str(error)[:200])


def _entries(uri: str) -> list[Any]:
    from pyarrow import fs

    system, root = open_file_system(uri)
    found: list[Any] = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return found
