"""A file of a run: whether it is still the one that was planned, and its bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kit.errors import InputError, KitError
from kit.tables import TableFile, open_file_system, reading, storage_error

if TYPE_CHECKING:
    from pyarrow import fs

_HINT = "put it back as it was and run the same command again, or begin a new run in another output folder"
#: A file up to this size is fetched in one request and held.
SMALL_BYTES = 1 << 20


def require_unchanged(system: fs.FileSystem, file: TableFile, *, uri: str) -> None:
    """Refuse a file that is not the one that was planned.

    Args:
        system: Where it lies.
        file: As it was planned.
        uri: The table, for messages.

    Raises:
        InputError: It is gone, or has another size or another time of writing.
        UnavailableError: S3 does not answer or refuses.
    """
    from pyarrow import fs

    try:
        now = system.get_file_info(file.path)
    except OSError as error:
        raise storage_error(f"{uri} ({file.name})", error) from error
    if now.type != fs.FileType.File:
        raise InputError(f"{file.name} vanished during the run", hint=_HINT)
    if (now.size, now.mtime_ns or 0) != (file.size_bytes, file.modified_ns):
        size = f"it has {now.size} bytes and had {file.size_bytes}" if now.size != file.size_bytes else ""
        raise InputError(f"{file.name} changed during the run: {size or 'it was written again'}", hint=_HINT)


@contextlib.contextmanager
def opened(uri: str, file: TableFile) -> Iterator[Any]:
    """Open a file that can be sought in, and see before and after that it is the planned one.

    Raises:
        InputError: It is gone, has changed, or cannot be read as what its name says.
        UnavailableError: S3 does not answer or refuses.
    """
    system, _ = open_file_system(uri, patient=True)
    require_unchanged(system, file, uri=uri)
    try:
        with reading(uri, file), _source(system, file) as source:
            yield source
    except KitError:
        require_unchanged(system, file, uri=uri)  # of two reasons, the one behind the other
        raise
    require_unchanged(system, file, uri=uri)


def _source(system: fs.FileSystem, file: TableFile) -> Any:
    import pyarrow as pa

    if system.type_name == "local":
        return pa.memory_map(file.path) if file.format == "ipc" else system.open_input_file(file.path)
    if file.size_bytes > SMALL_BYTES:
        return system.open_input_file(file.path)
    with system.open_input_stream(file.path) as stream:
        return pa.BufferReader(stream.read())
