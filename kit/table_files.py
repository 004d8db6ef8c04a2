"""Where a table's files lie: a folder, a bucket, a pattern; and what their file system says of them.

Which columns and rows they hold is ``kit.tables``'s.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kit.errors import InputError, MissingDependencyError, UnavailableError, install_line

if TYPE_CHECKING:
    from pyarrow import fs

#: File suffix to the format it means.
FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".ipc": "ipc",
}
_QUERY = re.compile(r"\?[\w.-]+=")  # s3://bucket/key?region=x; a lone ? is part of a pattern or of a key
_PATTERN = re.compile(r"[*?[]")
_S3_ATTEMPTS = 3
_PATIENT_ATTEMPTS = 10  # waits of 0.5, 1, 2, 4, 8 and then about 15 s: a minute and more of refusals passes
_KNOCK_S = 5.0


@dataclass(frozen=True)
class TableFile:
    """One file of a table.

    Attributes:
        path: As the file system names it.
        name: Relative to the table, for messages and fingerprints.
        format: A value of ``FORMATS``, or ``image``.
        size_bytes: Its size.
        modified_ns: When it was last written, nanoseconds since 1970; a file written again has another.
    """

    path: str
    name: str
    format: str
    size_bytes: int
    modified_ns: int


def open_file_system(uri: str, *, patient: bool = False) -> tuple[fs.FileSystem, str]:
    """Find the file system a place belongs to.

    Args:
        uri: A local path, or ``s3://bucket/key``.
        patient: Whether S3 is asked again for a minute where it refuses for now (503) or is silent.

    Returns:
        The file system, and the place as it names it.

    Raises:
        InputError: The scheme is neither a path nor s3.
    """
    try:
        from pyarrow import fs
    except ImportError as error:
        raise MissingDependencyError(
            "tables need pyarrow, which is not installed", hint=install_line("cluster")
        ) from error
    if uri.startswith("s3://"):
        if _QUERY.search(uri):
            raise InputError(
                f"{uri!r} holds a query; a table's address has none",
                hint="set AWS_ENDPOINT_URL and AWS_REGION in the environment instead",
            )
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not bucket or key.startswith("/"):
            raise InputError(f"{uri!r} names no bucket and key", hint="write s3://bucket/folder/file")
        scheme, endpoint = _s3_endpoint()
        system = fs.S3FileSystem(
            endpoint_override=endpoint,
            scheme=scheme,
            connect_timeout=5,
            request_timeout=30,
            retry_strategy=fs.AwsStandardS3RetryStrategy(
                max_attempts=_PATIENT_ATTEMPTS if patient else _S3_ATTEMPTS
            ),
        )
        return system, f"{bucket}/{key}".rstrip("/")
    if "://" in uri:
        raise InputError(f"{uri!r} is neither a path nor an s3:// address")
    return fs.LocalFileSystem(), str(Path(uri).expanduser())


def _s3_endpoint() -> tuple[Literal["http", "https"], str | None]:
    """Read the variables boto3 reads; pyarrow's S3FileSystem looks at neither."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return "https", None
    scheme, _, host = url.partition("://")
    if scheme not in ("http", "https") or not host:  # not shown: it may hold a password
        raise InputError(
            "the S3 endpoint that was configured is not a URL",
            hint="set AWS_ENDPOINT_URL to http(s)://host:port",
        )
    return "http" if scheme == "http" else "https", host.rstrip("/")


def list_files(uri: str, *, formats: Mapping[str, str] = FORMATS) -> tuple[TableFile, ...]:
    """List a table's files, sorted by name.

    Args:
        uri: A file, a folder, or either on S3; or, where nothing has that very name, a pattern: ``*``, ``?``
            and ``[ab]`` within a name, ``**`` for any folders. A folder a pattern names gives all its files.
        formats: File suffix to format; other files are passed over, and so are tables below a name
            that starts with ``.`` or ``_`` and images below one that starts with ``.``, unless the pattern
            itself names them so.

    Raises:
        InputError: Nothing is there, or nothing in it is a table.
        UnavailableError: S3 does not answer or refuses.
    """
    import pyarrow as pa
    from pyarrow import fs

    system, root = open_file_system(uri, patient=True)
    if uri.startswith("s3://"):
        _knock(uri)
    pattern = ""
    try:
        info = system.get_file_info(root)
        if info.type == fs.FileType.Directory:
            found = system.get_file_info(fs.FileSelector(root, recursive=True))
        elif info.type == fs.FileType.NotFound and _PATTERN.search(root):
            root, pattern = _fixed_part(uri, root)
            found = _matching(system, root, pattern)
        else:
            found = [info] if info.type == fs.FileType.File else []
    except OSError as error:
        raise storage_error(uri, error) from error
    except pa.ArrowInvalid as error:  # for one, a NUL in the name
        raise InputError(f"{uri!r} is no place of a table: {str(error)[:100]!r}") from error
    files = _tables(found, root=root, pattern=pattern, formats=formats)
    if not files:
        if uri.startswith("s3://") and info.type == fs.FileType.NotFound:
            _require_bucket(system, uri)
        what = "does not exist" if info.type == fs.FileType.NotFound else "holds no table"
        if pattern:
            what = "is a pattern that no file matches"
        if "image" in formats.values() and what == "holds no table":
            what = "holds neither a table nor an image"
        raise InputError(f"{uri} {what}", hint=f"name a file or folder of {', '.join(formats)}")
    return files


def _tables(
    found: Sequence[fs.FileInfo], *, root: str, pattern: str, formats: Mapping[str, str]
) -> tuple[TableFile, ...]:
    from pyarrow import fs

    asked = [part for part in pattern.split("/") if part.startswith((".", "_"))]
    files = []
    for entry in sorted(found, key=lambda item: item.path):
        kind = _format(entry.extension, formats)
        if kind is None or entry.type != fs.FileType.File:
            continue
        name = entry.path[len(root) :].lstrip("/") or entry.base_name
        marks = (".",) if kind == "image" else (".", "_")  # a class may well be called _noise
        if name.startswith(marks) or any(f"/{mark}" in name for mark in marks):
            hidden = [part for part in name.split("/") if part.startswith(marks)]
            if not all(any(fnmatchcase(part, each) for each in asked) for part in hidden):
                continue
        files.append(TableFile(entry.path, name, kind, entry.size, entry.mtime_ns or 0))
    return tuple(files)


def _fixed_part(uri: str, root: str) -> tuple[str, str]:
    """Split a pattern into the folder it starts from and the rest."""
    parts = root.split("/")
    first = next(index for index, part in enumerate(parts) if _PATTERN.search(part))
    if uri.startswith("s3://") and first == 0:
        raise InputError(f"{uri!r} names no bucket; a pattern stands for keys", hint="name the bucket")
    folder = "/".join(parts[:first])
    return folder or ("/" if root.startswith("/") else "."), "/".join(parts[first:])


def _matching(system: fs.FileSystem, root: str, pattern: str) -> list[fs.FileInfo]:
    """Find what a pattern names, a folder's depth at a time, so that nothing beside it is listed."""
    from pyarrow import fs

    parts = pattern.split("/")
    found: dict[str, fs.FileInfo] = {}
    folders = {root}
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        entries = [
            entry
            for folder in sorted(folders)
            for entry in system.get_file_info(
                fs.FileSelector(folder, allow_not_found=True, recursive=part == "**")
            )
        ]
        if part != "**":
            entries = [entry for entry in entries if fnmatchcase(entry.base_name, part)]
        below = {entry.path for entry in entries if entry.type == fs.FileType.Directory}
        folders = below | folders if part == "**" else below
        if last:
            found = {entry.path: entry for entry in entries}
    for folder in sorted(folders) if parts[-1] != "**" else ():
        for entry in system.get_file_info(fs.FileSelector(folder, recursive=True)):
            found[entry.path] = entry
    return list(found.values())


def _knock(uri: str) -> None:
    """Refuse at once an S3 endpoint of one's own where nobody listens; Arrow would try for minutes."""
    scheme, endpoint = _s3_endpoint()
    if endpoint is None:
        return
    host, _, port = endpoint.partition("/")[0].rpartition("@")[2].rpartition(":")
    try:
        number = int(port) if host else {"http": 80, "https": 443}[scheme]
        socket.create_connection(((host or port).strip("[]"), number), timeout=_KNOCK_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UnavailableError(
            f"{uri}: S3 does not answer: {error}", hint="check the network and AWS_ENDPOINT_URL"
        ) from error


def _format(extension: str, formats: Mapping[str, str]) -> str | None:
    lower = formats.get(f".{extension.lower()}")
    return lower if lower == "image" else formats.get(f".{extension}")  # cameras write .JPG


@contextlib.contextmanager
def reading(uri: str, file: TableFile) -> Iterator[None]:
    """Give what pyarrow raises while it reads a file as one sentence that names the file.

    Args:
        uri: The table the file belongs to.
        file: The file.

    Raises:
        InputError: Its content cannot be read.
        UnavailableError: S3 does not answer or refuses.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{file.name} cannot be read as {file.format}: {error}") from error
    except OSError as error:
        if "AWS Error" not in str(error) and file.format in ("parquet", "ipc"):  # damage is an OSError too
            raise InputError(
                f"{uri} ({file.name}) cannot be read: {' '.join(str(error)[:300].split())}"
            ) from error
        raise storage_error(f"{uri} ({file.name})", error) from error


def _require_bucket(system: fs.FileSystem, uri: str) -> None:
    """Tell a bucket that is not there from a key that is not in it, which Arrow calls the same."""
    from pyarrow import fs

    bucket = uri.removeprefix("s3://").partition("/")[0]
    try:
        there = system.get_file_info(bucket).type != fs.FileType.NotFound
    except OSError as error:
        raise storage_error(uri, error) from error
    if not there:
        raise _no_bucket(uri)


def _no_bucket(uri: str) -> UnavailableError:
    return UnavailableError(f"{uri}: the bucket does not exist", hint="make the bucket or correct its name")


def storage_error(uri: str, error: OSError) -> UnavailableError | InputError:
    """Give what a file system raised as one sentence: who must act, and on what.

    Args:
        uri: The place that was read or written.
        error: What pyarrow raised there.
    """
    text = str(error)
    if not uri.startswith("s3://"):
        return InputError(f"{uri} cannot be read: {text[:300]}")
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text:
        return _no_bucket(uri)
    if "ACCESS_DENIED" in text or "403" in text or "credential" in text.lower():
        return UnavailableError(
            f"{uri}: S3 refuses access",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    return UnavailableError(
        f"{uri}: S3 does not answer: {text[:200]}", hint="check the network and AWS_ENDPOINT_URL"
    )
