"""Where the files of model versions lie: one folder per digest, below a folder or an ``s3://bucket/prefix``.

A version is complete when its ``model.sig`` is there; that file is written last and serves as the commit
mark. A store compares what comes in and what is downloaded with the digest it is filed under, so it stays
content-addressed, but it deliberately verifies no signatures and knows no trusted keys: ``kit.model_version``
does that, every time it opens one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from kit.errors import (
    InputError,
    NotFoundError,
    SettingsError,
    UnavailableError,
    VerificationError,
)
from kit.files import atomic_folder, digest_of, sha256_file
from kit.s3 import ADDRESS_RULE, MAX_PUT_BYTES, Access, shown, split_address
from kit.signing import SIGNATURE_NAME

COMMIT_MARK = SIGNATURE_NAME

_logger = logging.getLogger("kit")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Store(Protocol):
    """Content-addressed folders of files."""

    @property
    def uri(self) -> str:
        """The address the store was opened with."""

    def put(self, folder: Path, *, digest: str) -> str:
        """Keep a copy of a version's folder; one that is already complete is not copied again.

        Args:
            folder: All files of the version, ``model.sig`` among them; no links.
            digest: ``files.digest_of`` all files but ``model.sig``.

        Returns:
            The uri of the stored version.

        Raises:
            InputError: The folder is missing, unsigned, or holds what cannot be stored.
            UnavailableError: The place cannot be reached or written.
            VerificationError: The files do not have this digest.
        """

    def fetch(self, digest: str) -> Path:
        """Give the version as a local folder; its signature is not verified here.

        Args:
            digest: 64 lower-case hexadecimal digits.

        Returns:
            A complete folder that must not be written to.

        Raises:
            NotFoundError: The store has no complete version of this digest.
            UnavailableError: The place cannot be reached, or the disk is full.
            VerificationError: A stored name leaves the folder, or the downloaded files do not have this
                digest.
        """

    def contains(self, digest: str) -> bool:
        """Say whether a complete version of this digest is there.

        Raises:
            UnavailableError: The place cannot be reached.
        """


def open_store(uri: str, *, cache: Path) -> Store:
    """Choose the store an address means; nothing is created or contacted yet.

    Args:
        uri: A folder, or ``s3://bucket/prefix``.
        cache: Folder for downloaded versions, made when needed; a local store does not use it.

    Raises:
        SettingsError: The address is neither, or holds a query string, a fragment or credentials.
    """
    if uri.startswith("s3://"):
        return S3Store(uri, cache=cache)
    if not uri or "\0" in uri or uri.startswith("~") or _SCHEME.match(uri):
        raise SettingsError(f"{shown(uri)!r} is not a store address", hint=ADDRESS_RULE)
    return FolderStore(Path(uri))


class FolderStore:
    """Versions as subfolders of a local folder.

    Args:
        root: The folder, made by the first ``put``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        """The folder as it was given."""
        return str(self.root)

    def put(self, folder: Path, *, digest: str) -> str:
        """Copy a version's folder in one step; see ``Store.put``."""
        files = _checked_files(folder, digest=digest)
        target = self.root / digest
        if not self.contains(digest):
            with _os_errors(target), atomic_folder(target) as work:
                for name, source in files.items():
                    copy = work / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, copy)
            _logger.info("stored %s in %s", digest[:12], self.root)
        return str(target)

    def fetch(self, digest: str) -> Path:
        """Give the stored folder itself; see ``Store.fetch``."""
        if not self.contains(digest):
            raise _not_found(digest, self.uri)
        return self.root / digest

    def contains(self, digest: str) -> bool:
        """Say whether the folder is there; see ``Store.contains``.

        Raises:
            VerificationError: A folder of that name is there but has no ``model.sig``.
        """
        return _is_complete(self.root / _checked_digest(digest))


class S3Store:
    """Versions as objects ``prefix/digest/name`` in an S3 bucket, downloaded into a local cache.

    Credentials, region and endpoint are boto3's to find (environment, profile, instance role, and
    ``AWS_ENDPOINT_URL`` for services other than Amazon's).

    Args:
        uri: ``s3://bucket/prefix``.
        cache: Folder for downloaded versions.

    Raises:
        SettingsError: The address is not of that form.
    """

    def __init__(self, uri: str, *, cache: Path) -> None:
        self._bucket, self._prefix = split_address(uri, kind="a store")
        self.uri = uri.removesuffix("/")
        self.cache = cache
        self._access = Access(self.uri)

    def put(self, folder: Path, *, digest: str) -> str:
        """Upload one object per file, ``model.sig`` last; see ``Store.put``."""
        files = _checked_files(folder, digest=digest)
        for name, source in files.items():
            if source.stat().st_size > MAX_PUT_BYTES:
                raise InputError(f"{name} in {folder} is over 5 GiB, more than S3 takes in one upload")
        version = f"{self.uri}/{digest}"
        if self.contains(digest):
            return version
        with self._access.errors(), _os_errors(folder):
            ordered = sorted(files, key=lambda name: (name == COMMIT_MARK, name))
            for count, name in enumerate(ordered, start=1):
                _logger.info("uploading %s to %s (%d of %d)", name, version, count, len(files))
                with files[name].open("rb") as body:
                    self._access.client().put_object(
                        Bucket=self._bucket, Key=self._key(digest) + name, Body=body
                    )
        return version

    def fetch(self, digest: str) -> Path:
        """Download a version into the cache, or reuse it there while it is intact; see ``Store.fetch``."""
        target = self.cache / _checked_digest(digest)
        if _is_intact(target, digest=digest):
            return target
        start = self._key(digest)
        with self._access.errors():
            names = [key[len(start) :] for key in self._keys(start)]
        if COMMIT_MARK not in names:
            raise _not_found(digest, self.uri)
        _check_names(names, place=f"{self.uri}/{digest}")
        with _os_errors(target), atomic_folder(target) as work:
            for count, name in enumerate(names, start=1):
                _logger.info("downloading %s from %s (%d of %d)", name, self.uri, count, len(names))
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                with self._access.errors():
                    self._access.client().download_file(self._bucket, start + name, str(work / name))
            _checked_files(work, digest=digest, place=f"{self.uri}/{digest}")
            if target.exists() and not _is_intact(target, digest=digest):
                _logger.warning("%s was damaged and is replaced by a new download", target)
                _discard(target)
        return target

    def contains(self, digest: str) -> bool:
        """Say whether ``model.sig`` was uploaded; see ``Store.contains``."""
        key = self._key(_checked_digest(digest)) + COMMIT_MARK
        with self._access.errors():
            return key in self._keys(
                key
            )  # a listing, because HEAD cannot tell a missing bucket from a missing key

    def _key(self, digest: str) -> str:
        return f"{self._prefix}{digest}/"

    def _keys(self, start: str) -> list[str]:
        pages = (
            self._access.client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def _checked_digest(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"{digest!r} is not a digest", hint="write 64 of 0-9 a-f")
    return digest


def _checked_files(folder: Path, *, digest: str, place: str | None = None) -> dict[str, Path]:
    _checked_digest(digest)
    place = place or str(folder)
    if not folder.is_dir():
        raise InputError(f"{place} is not a folder", hint="name the folder of a model version")
    files: dict[str, Path] = {}
    with _os_errors(folder):
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise InputError(
                    f"{path} is not a plain file", hint="replace it by a copy of what it points at"
                )
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = path
        if COMMIT_MARK not in files:
            raise InputError(f"{place} has no {COMMIT_MARK}", hint="store only sealed versions")
        _check_names(files, place=place)
        found = digest_of({name: sha256_file(path) for name, path in files.items() if name != COMMIT_MARK})
    if found != digest:
        raise VerificationError(f"the files in {place} have the digest {found}, not {digest}")
    return files


def _check_names(names: Iterable[str], *, place: str) -> None:
    known = set(names)
    for name in sorted(known):
        segments = name.split("/")
        outside = any(segment in ("", ".", "..") for segment in segments)
        inside_a_file = any("/".join(segments[:depth]) in known for depth in range(1, len(segments)))
        if outside or inside_a_file or "\\" in name or not name.isprintable():
            raise VerificationError(
                f"{place} holds an object named {name!r}, which cannot be a file of a version",
                hint="remove that object, and find out who put it there",
            )


def _is_complete(folder: Path) -> bool:
    with _os_errors(folder):
        if (folder / COMMIT_MARK).is_file():
            return True
        if folder.exists():
            raise VerificationError(
                f"{folder} has no {COMMIT_MARK}, so it is not a complete version",
                hint="move that folder away",
            )
        return False


def _is_intact(folder: Path, *, digest: str) -> bool:
    """Say whether an earlier download is there and still has its digest."""
    try:
        return folder.exists() and bool(_checked_files(folder, digest=digest))
    except (InputError, VerificationError):
        return False


def _discard(path: Path) -> None:
    """Take a folder away in one step, so that nobody meets half of it, then remove it."""
    with tempfile.TemporaryDirectory(prefix=".damaged-", dir=path.parent) as aside:
        path.rename(Path(aside) / path.name)


@contextlib.contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be used: {error.strerror or type(error).__name__}",
            hint="check the folder and the disk",
        ) from error


def _not_found(digest: str, uri: str) -> NotFoundError:
    return NotFoundError(
        f"{uri} has no complete version sha256:{digest}",
        hint="check the store's address, or store the version again",
    )
