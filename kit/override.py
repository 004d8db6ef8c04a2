"""Overrides: the signed paper that lets one digest in though its release is not above the device's.

It names the digest, so it opens the door to nothing else, and the reason. When a device asks for one, and
where it lies there, is for ``edge.agent``. Runs on a device: standard library and cryptography only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.paper import Kind, open_paper, sign_paper

ANY_DEVICE = "*"
"""Stands for every device."""

MAX_OVERRIDE_BYTES = 16 << 10
"""More than any override has."""

MAX_TEXT = 300
"""Most characters of a reason or a device's name."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_line(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


_KIND = Kind(
    name="the override",
    payload_type="application/vnd.kit.override+json",
    max_bytes=MAX_OVERRIDE_BYTES,
    rules={"digest": _is_digest, "device": _is_line, "reason": _is_line},
)


@dataclass(frozen=True)
class Override:
    """What a valid override says.

    Attributes:
        digest: The bundle it lets in.
        device: Id of the device it is for; ``*`` for every one.
        reason: Why, one line.
        key_id: The trusted key that signed it.
    """

    digest: str
    device: str
    reason: str
    key_id: str

    def allows(self, digest: str, device_id: str) -> bool:
        """Say whether it lets a bundle into a device."""
        return self.digest == digest and self.device in (ANY_DEVICE, device_id)


def sign_override(digest: str, *, reason: str, key: Path, device: str = ANY_DEVICE) -> bytes:
    """Sign an override.

    Args:
        digest: Of the bundle it lets in, 64 hexadecimal digits.
        reason: Why, one printable line.
        key: The private key file.
        device: Id of the device it is for; every one when left out.

    Returns:
        The paper; the same bytes every time for the same inputs.

    Raises:
        InputError: A value or the key file breaks a rule.
        NotFoundError: The key file does not exist.
    """
    return sign_paper(_KIND, {"digest": digest, "device": device, "reason": reason}, key=key)


def open_override(data: bytes, *, trusted: Sequence[bytes]) -> Override:
    """Verify an override and read it.

    Args:
        data: The paper.
        trusted: Public keys, PEM, that may let something new in.

    Raises:
        VerificationError: It is no override, or none of these keys has signed it as it is.
    """
    fields, key_id = open_paper(_KIND, data, trusted=trusted)
    return Override(key_id=key_id, **fields)
