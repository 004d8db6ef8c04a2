"""Sealed folders: a folder whose every file is signed, and which holds nothing else.

``seal`` signs what is there; ``open_sealed`` lets a folder pass only when it is exactly what was
signed. A hidden file, an empty folder or a ``.git`` counts like anything else, and links are
refused. What the files mean is for others to know (``kit.model_version``, the edge agent). Runs on
a device: standard library and cryptography only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from kit import envelope, signing
from kit import files as kit_files
from kit.errors import InputError, KitError, VerificationError

SIGNATURE_NAME = signing.SIGNATURE_NAME
"""The one file of a sealed folder that is not in its own list."""

_FETCH_HINT = "fetch the folder again from where it was signed"


@dataclass(frozen=True)
class Sealed:
    """A folder that was exactly what its signature says when it was opened.

    Attributes:
        folder: Where it is.
        name: What its signer called it.
        digest: The sha256 that names its content (``kit.files.digest_of`` over ``files``).
        files: Relative POSIX path to sha256, every file but the signature.
        key_id: The trusted key that signed it.
    """

    folder: Path
    name: str
    digest: str
    files: Mapping[str, str]
    key_id: str


def seal(folder: Path, *, name: str, key: Path) -> str:
    """Sign every file of a folder and write the signature into it as ``model.sig``.

    An older signature is replaced; nothing else is touched.

    Args:
        folder: A folder of plain files and folders, at least one file, no links, no empty folders.
        name: What the content is called.
        key: The private key file.

    Returns:
        The digest that names the content, 64 hexadecimal digits, independent of key and name.

    Raises:
        InputError: The folder holds something that cannot be sealed, or the key breaks a rule.
        NotFoundError: The key file does not exist.
        UnavailableError: The disk is full or the folder cannot be written.
    """
    names = _inventory(folder, refusal=InputError)
    files = {file: _digest(folder, file, refusal=InputError) for file in names if file != SIGNATURE_NAME}
    signature = signing.sign(files, name=name, key=key)
    kit_files.write_atomic(folder / SIGNATURE_NAME, signature)
    return kit_files.digest_of(files)


def open_sealed(folder: Path, *, trusted: Sequence[bytes], allowed: Sequence[str]) -> Sealed:
    """Check a folder against its signature, before anything in it is used.

    In this order: the folder is one; it holds no links, special files or empty folders; every file is
    of an allowed kind; a trusted key signed it; no file is missing or too many; every digest holds.

    Args:
        folder: The folder, not a link to one.
        trusted: Public keys, PEM (``kit.keypair.load_trusted``).
        allowed: Globs for relative paths; ``*`` stays within one path component and matches no leading
            dot. ``model.sig`` needs none.

    Returns:
        What was signed. It holds for the files as they were read here: whoever can write to the folder
        can change them afterwards.

    Raises:
        VerificationError: Anything else; the sentence names the file.
    """
    names = _inventory(folder, refusal=VerificationError)
    for file in names:
        if file != SIGNATURE_NAME and not any(_matches(file, pattern) for pattern in allowed):
            raise VerificationError(
                f"{file!r} in {folder} is not of a kind allowed there",
                hint=f"allowed are: {', '.join(allowed)}",
            )
    signed = _verify_signature(folder, names, trusted=trusted)
    found = set(names) - {SIGNATURE_NAME}
    for file in sorted(found):
        if file not in signed.files:
            raise VerificationError(f"{file!r} in {folder} is not in its signature", hint=_FETCH_HINT)
    for file in signed.files:
        if file not in found:
            raise VerificationError(f"{file!r} is signed but missing in {folder}", hint=_FETCH_HINT)
    for file, digest in signed.files.items():
        if _digest(folder, file, refusal=VerificationError) != digest:
            raise VerificationError(f"{file!r} in {folder} is not the file that was signed", hint=_FETCH_HINT)
    return Sealed(
        folder=folder,
        name=signed.name,
        digest=kit_files.digest_of(signed.files),
        files=signed.files,
        key_id=signed.key_id,
    )


def _verify_signature(folder: Path, names: Sequence[str], *, trusted: Sequence[bytes]) -> signing.Signed:
    if SIGNATURE_NAME not in names:
        raise VerificationError(
            f"{folder} holds no {SIGNATURE_NAME}: nobody signed it", hint="use a folder that was sealed"
        )
    try:
        with (folder / SIGNATURE_NAME).open("rb") as file:
            signature = file.read(envelope.MAX_SIGNATURE_BYTES + 1)
    except OSError as error:
        raise VerificationError(f"{folder / SIGNATURE_NAME} cannot be read: {error.strerror}") from error
    try:
        return signing.verify(signature, trusted=trusted)
    except VerificationError as error:
        raise VerificationError(f"{folder / SIGNATURE_NAME}: {error.message}", hint=error.hint) from error


def _inventory(folder: Path, *, refusal: type[KitError]) -> list[str]:
    """List every file below a folder, sorted; refuse whatever is neither a plain file nor a folder."""
    try:
        mode = os.lstat(folder).st_mode
        if not stat.S_ISDIR(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "not a folder"
            raise refusal(f"{folder} is {kind}", hint="name the folder itself")
        names: list[str] = []
        waiting = [""]
        while waiting:
            inside = waiting.pop()
            entries = sorted(os.listdir(folder / inside))
            if not entries and inside:
                raise refusal(f"{inside[:-1]!r} in {folder} is an empty folder", hint="remove it")
            for entry in entries:
                file = inside + entry
                mode = os.lstat(folder / file).st_mode
                if stat.S_ISLNK(mode):
                    raise refusal(
                        f"{file!r} in {folder} is a symbolic link", hint="put the file itself there"
                    )
                if stat.S_ISDIR(mode) and file != SIGNATURE_NAME:
                    waiting.append(file + "/")
                elif stat.S_ISREG(mode):
                    names.append(file)
                else:
                    raise refusal(f"{file!r} in {folder} is not a plain file", hint="remove it")
    except OSError as error:
        raise refusal(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    return sorted(names)


def _digest(folder: Path, file: str, *, refusal: type[KitError]) -> str:
    try:
        return kit_files.sha256_file(folder / file)
    except OSError as error:
        raise refusal(f"{file!r} in {folder} cannot be read: {error.strerror}") from error


def _matches(file: str, pattern: str) -> bool:
    parts, globs = file.split("/"), pattern.split("/")
    return len(parts) == len(globs) and all(map(_matches_part, parts, globs))


def _matches_part(part: str, glob: str) -> bool:
    return fnmatchcase(part, glob) and (glob.startswith(".") or not part.startswith("."))
