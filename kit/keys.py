"""The keys that sign: make one, show them, put a new one in its place, revoke an old one.

From the first rotation on a keyring lies beside the signing key (``kit.keyring``); devices and this project
follow it. Every change is a new keyring, signed by the signing key and by every earlier one at hand, and each
file is whole or absent: a command that was interrupted is run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kit.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from kit.files import create_once, disk_errors, sync_folder, write_atomic
from kit.keypair import generate_key, key_id, public_of
from kit.keyring import KEYRING_NAME, KeyEntry, Keyring, make_keyring, open_keyring
from kit.project import Project
from kit.settings import KeysSettings

_DAY_S = 86_400
_SHORT = 12


@dataclass(frozen=True)
class KeyStanding:
    """What a key of the keyring is good for.

    Attributes:
        key_id: Names it.
        signs: Whether it is the project's signing key.
        why_not: Why it lets nothing new in, the second half of a sentence; empty when it does.
        not_after_s: The last second, Unix time, in which it lets something new in; None for ever.
    """

    key_id: str
    signs: bool
    why_not: str
    not_after_s: int | None


@dataclass(frozen=True)
class KeysResult:
    """Which key signs, and which others count.

    Attributes:
        action: What was done.
        key_id: Names the key that signs: sha256 of its public half.
        private: Where the private key lies, readable by its owner alone.
        public: Where the public key lies; devices and clusters pin it.
        keyring: Where the keyring lies; None before the first.
        counter: Of the keyring; 0 before the first.
        keys: Every key of the keyring, the one that signs first, the revoked last.
        subject: The key that signed before a rotation, or that was revoked.
        kept: Where the private key from before a rotation lies now.
    """

    action: str
    key_id: str
    private: Path
    public: Path
    keyring: Path | None = None
    counter: int = 0
    keys: tuple[KeyStanding, ...] = ()
    subject: str | None = None
    kept: Path | None = None


def keys(project: Project, settings: KeysSettings) -> KeysResult:
    """Make the project's key pair, say which keys there are, or change which of them count.

    Raises:
        ConflictError: ``init`` finds a key, which is never overwritten; the key is revoked already; another
            ``keys`` command changes the same folder.
        InputError: The key to revoke is the one that signs.
        NotFoundError: There is no key, or none of that id.
        UnavailableError: The folder for the keys cannot be made or written.
        VerificationError: The keyring is not as it was signed.
    """
    if settings.action == "init":
        return _init(project)
    private = project.signing_key()
    subject, kept = None, None
    if settings.action == "rotate":
        with _locked(private.parent):
            subject, kept = _rotate(project, private, not_after_days=settings.not_after)
    elif settings.action == "revoke":
        assert settings.key_id is not None
        with _locked(private.parent):
            subject = _revoke(project, private, settings.key_id)
    signs, keyring = key_id(public_of(private)), project.keyring()
    return KeysResult(
        action=settings.action,
        key_id=signs,
        private=private,
        public=private.with_suffix(".pub"),
        keyring=None if keyring is None else private.with_name(KEYRING_NAME),
        counter=0 if keyring is None else keyring.counter,
        keys=() if keyring is None else _standings(keyring, signs=signs),
        subject=subject,
        kept=kept,
    )


def _standings(keyring: Keyring, *, signs: str) -> tuple[KeyStanding, ...]:
    now_s = time.time()
    listed = sorted(keyring.keys, key=lambda each: (each != signs, each))
    return tuple(
        KeyStanding(
            each,
            signs=each == signs,
            why_not=keyring.why_not(each, now_s),
            not_after_s=keyring.keys[each].not_after_s if each in keyring.keys else None,
        )
        for each in (*listed, *keyring.revoked)
    )


def _init(project: Project) -> KeysResult:
    private = project.signing_key_path()
    try:
        private.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"the folder {private.parent} cannot be made: {error.strerror}",
            hint="move what is in the way, or name another place with [signing] key",
        ) from error
    return KeysResult("init", key_id(generate_key(private)), private, private.with_suffix(".pub"))


def _rotate(project: Project, private: Path, *, not_after_days: float | None) -> tuple[str, Path]:
    """Put a new key in the place of the one that signs.

    The order is what makes an interruption harmless: the new key is in the keyring before it signs, and it
    signs from the last step but one.

    Returns:
        The id of the old key, and where its private half lies now.
    """
    now_s = int(time.time())
    old_pem = public_of(private)
    old = key_id(old_pem)
    before = _counted(project)
    new_private = _next(private, revoked=before.revoked)
    new_pem = public_of(new_private)
    kept = _beside(private, old[:_SHORT])
    for path, data, mode in (
        (kept.with_suffix(".pub"), old_pem, 0o644),
        (kept, private.read_bytes(), 0o600),
    ):
        if not create_once(path, data, mode=mode) and path.read_bytes() != data:
            raise ConflictError(f"{path} is in the way of the old key", hint="move it away")
    entries = {each: entry for each, entry in before.keys.items() if each != old}
    if old not in before.revoked:
        end_s = before.keys[old].not_after_s if old in before.keys else None
        end_s = end_s if not_after_days is None else now_s + round(not_after_days * _DAY_S)
        entries[old] = KeyEntry(old_pem, end_s)
    entries[key_id(new_pem)] = KeyEntry(new_pem)
    after = Keyring(before.counter + 1, now_s, entries, before.revoked)
    _write(project, after, private, also=(new_private, *_kept(private)))
    write_atomic(private.with_suffix(".pub"), new_pem)
    with disk_errors(private):
        os.replace(new_private, private)
        new_private.with_suffix(".pub").unlink(missing_ok=True)
        sync_folder(private.parent)
    return old, kept


def _revoke(project: Project, private: Path, wanted: str) -> str:
    """Strike a key off the keyring; returns its whole id."""
    before = _counted(project)
    found = [each for each in (*before.keys, *before.revoked) if each.startswith(wanted)]
    if not found:
        raise NotFoundError(
            f"no key {wanted} counts here",
            hint=f"name one of {', '.join(sorted(each[:16] for each in before.keys))}",
        )
    if len(found) > 1:
        raise InputError(f"{wanted} begins the ids of {len(found)} keys", hint="write more of the id")
    [subject] = found
    if subject == key_id(public_of(private)):
        raise InputError(
            f"key {subject[:_SHORT]} is the one that signs",
            hint="put another in its place before: kit keys rotate",
        )
    if subject in before.revoked:
        raise ConflictError(
            f"key {subject[:_SHORT]} is revoked already, by keyring {before.counter} or before"
        )
    entries = {each: entry for each, entry in before.keys.items() if each != subject}
    after = Keyring(before.counter + 1, int(time.time()), entries, (*before.revoked, subject))
    _write(project, after, private, also=_kept(private))
    return subject


def _counted(project: Project) -> Keyring:
    """Give the newest keyring, or what one would say before the first: every key the project trusts.

    A keyring takes the place of what devices have pinned, so whatever they have pinned must be in it.
    """
    keyring = project.keyring()
    entries = {key_id(pem): KeyEntry(pem) for pem in project.trusted()}
    if keyring is None:
        return Keyring(0, 0, entries)
    return Keyring(keyring.counter, keyring.issued_s, {**entries, **keyring.keys}, keyring.revoked)


def _write(project: Project, keyring: Keyring, private: Path, *, also: tuple[Path, ...]) -> None:
    """Write the newest keyring, unless this project itself would not believe it."""
    data = make_keyring(keyring, key=private, also=also)
    try:
        open_keyring(data, trusted=project.pinned())
    except VerificationError as error:
        raise VerificationError(
            f"the new keyring would not be believed here: {error.message}",
            hint=f"add {private.with_suffix('.pub')} to what [signing] trusted names",
        ) from error
    write_atomic(private.with_name(KEYRING_NAME), data)


def _next(private: Path, *, revoked: tuple[str, ...]) -> Path:
    """Make the next key beside the one that signs, or take the one an interrupted rotation has made."""
    path = _beside(private, "next")
    if path.exists() and key_id(public_of(path)) in revoked:
        path.unlink()
    if not path.exists():
        with disk_errors(path):
            path.with_suffix(".pub").unlink(missing_ok=True)
        generate_key(path)
    return path


def _kept(private: Path) -> tuple[Path, ...]:
    """Give the private keys that signed before and are still at hand."""
    name = re.compile(rf"{re.escape(private.stem)}-[0-9a-f]{{{_SHORT}}}{re.escape(private.suffix)}")
    return tuple(sorted(path for path in private.parent.iterdir() if name.fullmatch(path.name)))


def _beside(private: Path, word: str) -> Path:
    return private.with_name(f"{private.stem}-{word}{private.suffix}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one command at a time change the keys."""
    lock = folder / ".keys.lock"
    try:
        file = lock.open("w")
    except OSError as error:
        raise UnavailableError(
            f"{lock} cannot be written: {error.strerror}", hint="make the folder writable"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another command changes the keys in {folder}", hint="wait until it has ended"
            ) from error
        yield
