"""An output place on S3: one PutObject per file, conditional writes, checksums the server verifies.

A file is created by ``If-None-Match: *`` and replaced by ``If-Match``. Each write bears a token, so that a
write whose answer was lost knows its object again. Who holds the place is ``lease``'s business.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from jobs.batch.places import (
    HOLDS,
    Entry,
    Pace,
    checked_name,
    committed_differently,
    disk_errors,
    final_name,
    is_temporary,
    warn_of_replacing,
)
from kit.errors import ConflictError, InputError, NotFoundError, UnavailableError
from kit.files import sha256_bytes
from kit.s3 import MAX_PUT_BYTES, Access, error_code, split_address

# boto3 waits rand() * min(2**n, 20) s after SlowDown: 95 s in the mean of 13 waits, over 60 s in 49 of 50.
_MAX_ATTEMPTS = 14
_MAX_READS = 4
_MAX_ROUNDS = 8
_CHUNK_BYTES = 1 << 20
_DELETED_AT_ONCE = 1000  # what DeleteObjects takes
_TOKEN = "kit-write"
_RIGHTS = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"


@dataclass(frozen=True)
class Found:
    """An object as it stands: its etag, size in bytes, and the token of the write that made it."""

    etag: str
    size_bytes: int
    token: str


class BucketPlace:
    """A prefix in a bucket as an output place; see ``Place``.

    Args:
        uri: ``s3://bucket/prefix``.
        pace: How the place is held.
        max_attempts: How often a request is sent before it fails.
        read_timeout_s: Longest silence of the server within a request.

    Raises:
        SettingsError: The address is not of that form.
    """

    def __init__(
        self, uri: str, *, pace: Pace, max_attempts: int = _MAX_ATTEMPTS, read_timeout_s: float = 30.0
    ) -> None:
        self.bucket, self._prefix = split_address(uri, kind="an output")
        self.uri = uri.removesuffix("/")
        self.pace = pace
        self._access = Access(
            self.uri, max_attempts=max_attempts, read_timeout_s=read_timeout_s, rights=_RIGHTS
        )
        self._spool: Path | None = None
        self._spooling = threading.Lock()

    def read(self, name: str) -> bytes | None:
        """Give an object's bytes, or None; see ``Place.read``."""
        found = self.read_with_etag(name)
        return None if found is None else found[0]

    def read_with_etag(self, name: str) -> tuple[bytes, str] | None:
        """Give an object's bytes and etag, or None; a body that breaks off is asked for again."""
        for left in reversed(range(_MAX_READS)):
            with self._access.errors():
                from botocore.exceptions import BotoCoreError

                answer = self._get(name)
                if answer is None:
                    return None
                try:
                    with contextlib.closing(answer["Body"]) as body:
                        return body.read(), answer["ETag"]
                except BotoCoreError:
                    if not left:
                        raise
        raise AssertionError("the last attempt returns or raises")

    def put(self, name: str, data: bytes) -> None:
        """Replace an object; see ``Place.put``."""
        self.write(final_name(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one; see ``Place.create``."""
        return self.write(final_name(name), data, condition={"IfNoneMatch": "*"}) is not None

    def write(self, name: str, data: bytes, *, condition: dict[str, str] | None = None) -> str | None:
        """Write bytes under a condition.

        Args:
            name: Of the object.
            data: All of it.
            condition: ``{"IfNoneMatch": "*"}``, ``{"IfMatch": etag}``, or none.

        Returns:
            The new etag; None where the condition does not hold.
        """
        token = secrets.token_hex(8)
        etag = self._put(name, data, sha256=sha256_bytes(data), token=token, condition=condition or {})
        if etag is None and (found := self._find(name)) is not None and found.token == token:
            return found.etag  # written by an attempt whose answer was lost
        return etag

    def spool(self, name: str) -> Path:
        """Choose a path in a temporary folder; see ``Place.spool``."""
        final_name(name)
        with self._spooling:
            if self._spool is None:
                with disk_errors(Path(tempfile.gettempdir())):
                    self._spool, handle = _spool_folder()
                    weakref.finalize(self, _remove_spool, self._spool, handle)
        return self._spool / secrets.token_hex(8)

    def put_file(self, name: str, path: Path, *, sha256: str, mark: str | None = None) -> None:
        """Upload a spooled file, streaming it from disk; see ``Place.put_file``."""
        final_name(name)
        try:
            with disk_errors(path):
                size_bytes = path.stat().st_size
                if size_bytes > MAX_PUT_BYTES:
                    raise InputError(
                        f"{name} has {size_bytes} bytes, over the 5 GiB that S3 takes in one upload",
                        hint="lower shard_rows",
                    )
                with path.open("rb") as file:
                    self._put_file(name, file, size_bytes=size_bytes, sha256=sha256, mark=mark)
        finally:
            path.unlink(missing_ok=True)

    def settle(self) -> None:
        """Do nothing: what S3 has confirmed stays."""

    def entries(self, prefix: str = "") -> list[Entry]:
        """List objects by name; see ``Place.entries``."""
        with self._access.errors():
            pages = self._access.client().get_paginator("list_objects_v2")
            found = [
                Entry(item["Key"][len(self._prefix) :], item["Size"])
                for page in pages.paginate(Bucket=self.bucket, Prefix=self._prefix + prefix)
                for item in page.get("Contents", ())
                if not item["Key"].endswith("/")  # what consoles make of an empty folder
            ]
        return sorted(entry for entry in found if not is_temporary(entry.name) and entry.name not in HOLDS)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Stream an object; see ``Place.open``."""
        with self._access.errors():
            answer = self._get(name)
            if answer is None:
                raise NotFoundError(f"{self.uri} has no file {name!r}")
            with contextlib.closing(answer["Body"]) as body:
                yield cast(BinaryIO, body)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; see ``Place.delete``."""
        keys = [{"Key": self._key(name)} for name in names]
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            batch = {"Objects": keys[start : start + _DELETED_AT_ONCE], "Quiet": True}
            with self._access.errors():
                answer = self._access.client().delete_objects(Bucket=self.bucket, Delete=batch)
            for error in answer.get("Errors", ()):
                raise UnavailableError(
                    f"{error.get('Key')} in {self.uri} cannot be removed: {error.get('Code')}",
                    hint=f"allow {_RIGHTS} there, then run the same command again",
                )

    @contextlib.contextmanager
    def held(self) -> Iterator[threading.Event]:
        """Keep a lease that is renewed while the block runs; see ``Place.held``."""
        from jobs.batch.places.lease import leased

        with leased(self) as lost:
            yield lost

    def leftovers(self) -> list[str]:
        """Give nothing: an upload that breaks off leaves no object."""
        return []

    def clear_leftovers(self) -> None:
        """Do nothing; see ``leftovers``."""

    def _put_file(self, name: str, file: BinaryIO, *, size_bytes: int, sha256: str, mark: str | None) -> None:
        """Create the object, or compare with the one that is there and replace exactly that one."""
        token = secrets.token_hex(8)
        condition = {"IfNoneMatch": "*"}
        for _ in range(_MAX_ROUNDS):
            if self._put(name, file, sha256=sha256, token=token, condition=condition) is not None:
                return
            found = self._find(name)
            if found is None:
                condition = {"IfNoneMatch": "*"}
                continue
            if found.token == token or (found.size_bytes == size_bytes and self._sha256(name) == sha256):
                return
            if mark is not None and self._find(mark) is not None:
                raise committed_differently(name, uri=self.uri, mark=mark)
            warn_of_replacing(name, uri=self.uri)
            condition = {"IfMatch": found.etag}
        raise ConflictError(
            f"{name} in {self.uri} is written by others again and again",
            hint="make sure that only one run writes there",
        )

    def _put(
        self, name: str, body: bytes | BinaryIO, *, sha256: str, token: str, condition: dict[str, str]
    ) -> str | None:
        """Send one PutObject; its etag, or None where the condition does not hold."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        for wait_s in (0.1, 0.3, 1.0, 3.0, 5.0, 5.0, 5.0, None):
            if not isinstance(body, bytes):
                body.seek(0)
            with self._access.errors():
                from botocore.exceptions import ClientError

                try:
                    answer = self._access.client().put_object(
                        Bucket=self.bucket,
                        Key=self._key(name),
                        Body=body,
                        ChecksumAlgorithm="SHA256",
                        ChecksumSHA256=checksum,
                        Metadata={_TOKEN: token},
                        **condition,
                    )
                    return str(answer["ETag"])
                except ClientError as error:
                    code = error_code(error)
                    if condition and code in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                        return None
                    if condition and code in ("NotImplemented", "501"):
                        raise self.without_conditions() from error
                    if code != "ConditionalRequestConflict" or wait_s is None:
                        raise
            self.pace.wait(wait_s)  # another write to this name was under way; S3 wants it sent again
        raise AssertionError("the last attempt returns or raises")

    def without_conditions(self) -> UnavailableError:
        """Word the refusal of a server that cannot create once."""
        return UnavailableError(
            f"{self._access.endpoint()} knows no conditional writes (If-None-Match, If-Match), without which "
            f"{self.uri} cannot be kept to one run",
            hint="use a newer version of that server, Amazon S3, or a folder",
        )

    def _get(self, name: str) -> Any:
        """Ask for an object; None where there is none. Its body is to be closed."""
        from botocore.exceptions import ClientError

        key = self._key(name)
        try:
            return self._access.client().get_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error_code(error) in ("NoSuchKey", "404"):
                return None
            raise

    def _find(self, name: str) -> Found | None:
        with self._access.errors():
            answer = self._get(name)  # not HEAD, which cannot tell a missing bucket from a missing key
            if answer is None:
                return None
            answer["Body"].close()
        return Found(answer["ETag"], answer["ContentLength"], answer["Metadata"].get(_TOKEN, ""))

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.open(name) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def _key(self, name: str) -> str:
        return self._prefix + checked_name(name)


def _spool_folder() -> tuple[Path, int]:
    """Make a temporary folder that is locked while this process lives, and remove those of dead ones."""
    home = Path(tempfile.gettempdir())
    for folder in home.glob(f"kit-spool-{os.getuid()}-*"):
        with contextlib.suppress(FileNotFoundError):  # somebody else was here first
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _locked(handle):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
    while True:
        made = Path(tempfile.mkdtemp(prefix=f"kit-spool-{os.getuid()}-"))
        with contextlib.suppress(FileNotFoundError):  # taken for a dead one's before it was locked
            handle = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
            if _locked(handle) and made.is_dir():
                return made, handle
            os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_spool(folder: Path, handle: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)
