"""Trust: whose signatures count on a device, and since when no longer.

    keys/*.pub            pinned by whoever made the device
    keys/keyring.json     the signed paper that has replaced them; see ``kit.keyring``
    keys/*.old            keys that a keyring has put away, kept to know them by name and to run on under

What lets something *new* in: pinned keys, or those of the keyring that are neither expired nor revoked.
What a confirmed slot goes on *running* under: expired ones, too. Whoever can write to ``keys/`` owns the
device; a keyring that comes through ``incoming/`` counts only when a key that counts has signed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.agent.device import KEYRING_NAME
from kit import keypair
from kit.errors import ConflictError, VerificationError
from kit.files import write_atomic
from kit.keyring import Keyring, open_keyring


@dataclass(frozen=True)
class Trust:
    """The keys of one device.

    Attributes:
        pinned: PEM of the keys it was made with.
        old: PEM of keys that a keyring has put away.
        keyring: What has replaced the pinned ones; None before the first.
    """

    pinned: tuple[bytes, ...]
    old: tuple[bytes, ...]
    keyring: Keyring | None

    def new(self, now_s: float) -> tuple[bytes, ...]:
        """Give the keys that may let something new in."""
        return self.pinned if self.keyring is None else self.keyring.trusted(now_s)

    @property
    def running(self) -> tuple[bytes, ...]:
        """The keys under which a confirmed slot goes on running."""
        return self.pinned if self.keyring is None else self.keyring.known()

    @property
    def every(self) -> tuple[bytes, ...]:
        """Every key the device has ever trusted, revoked ones too."""
        known = () if self.keyring is None else tuple(entry.pem for entry in self.keyring.keys.values())
        return _unique((*self.pinned, *self.old, *known))

    def why_not(self, key_id: str, now_s: float) -> str:
        """Say why a key that was trusted once lets nothing new in; empty when it does."""
        if any(keypair.key_id(pem) == key_id for pem in self.new(now_s)):
            return ""
        return "is not pinned" if self.keyring is None else self.keyring.why_not(key_id, now_s)


def read_trust(keys: Path) -> Trust:
    """Read a device's keys.

    Args:
        keys: Its folder ``keys/``.

    Raises:
        NotFoundError: No key is pinned.
        InputError: One is not a P-256 public key.
        VerificationError: The keyring is damaged, or none of these keys has signed it.
    """
    pinned = keypair.load_trusted(keys)
    old = tuple(path.read_bytes() for path in sorted(keys.glob("*.old")))
    path = keys / KEYRING_NAME
    if not path.exists():
        return Trust(pinned, old, None)
    return Trust(pinned, old, open_keyring(path.read_bytes(), trusted=_unique((*pinned, *old))))


def accept_keyring(keys: Path, data: bytes, *, counter: int, now_s: float) -> Keyring | None:
    """Put a keyring in the place of the keys that counted so far.

    Args:
        keys: The device's folder ``keys/``.
        data: What has come.
        counter: Of the newest keyring this device has had.
        now_s: The time, Unix seconds.

    Returns:
        The keyring; None when it is the one that counts already.

    Raises:
        VerificationError: No key that counts now has signed it, or it is damaged.
        ConflictError: Its counter is not above that of the last one.
        UnavailableError: The folder cannot be written.
    """
    trust = read_trust(keys)
    path = keys / KEYRING_NAME
    if path.exists() and path.read_bytes() == data:
        return None
    # An expired key still hands over to the next: a device that was off for a year must not be lost.
    keyring = open_keyring(data, trusted=trust.running)
    newest = max(counter, 0 if trust.keyring is None else trust.keyring.counter)
    if keyring.counter <= newest:
        raise ConflictError(
            f"keyring {keyring.counter} is not above keyring {newest}, which this device has",
            hint="send the newest keyring",
        )
    if not keyring.trusted(now_s):
        raise VerificationError(
            f"every key of keyring {keyring.counter} has expired",
            hint="set the device's clock, or make a new keyring",
        )
    for pem in trust.every:
        name = keypair.key_id(pem)[:16]
        if not (keys / f"{name}.old").exists():
            write_atomic(keys / f"{name}.old", pem)
    write_atomic(path, data)
    return keyring


def signer_of(folder: Path, trust: Trust) -> str | None:
    """Name the key that has signed a bundle, of those the device has ever trusted; None for any other."""
    from kit.bundle import open_bundle

    try:
        return open_bundle(folder, trusted=trust.every).key_id
    except VerificationError:
        return None


def _unique(pems: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(pems))
