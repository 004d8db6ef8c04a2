"""Make an offered archive from a delta and the slot it starts from.

A slot holds an archive's files and ``kit.archive.pack`` writes them in one way only, so the device makes the
old archive's bytes again instead of keeping them. What comes out is held against the offer's size and sha256,
and goes the way of a bundle that came whole.
"""

from __future__ import annotations

from pathlib import Path

from edge.agent.device import Device
from edge.agent.pulling.download import part_of
from edge.agent.pulling.offer import Offer
from kit import archive, delta


def rebuild(device: Device, source: str, *, patch: Path, offer: Offer) -> Path:
    """Make the offered archive in ``incoming/``, under its hidden name.

    Args:
        device: Whose slot the delta starts from.
        source: Digest of that slot.
        patch: The delta, fetched; it is deleted.
        offer: What the archive has to be.

    Returns:
        The archive's path; size and digest hold.

    Raises:
        VerificationError: The delta is damaged, hostile, or for another archive.
        InputError: The slot holds what no archive does.
        UnavailableError: The disk is full or cannot be written.
    """
    part = part_of(device.incoming, offer.sha256)
    old, new = part.with_suffix(".old"), part.with_suffix(".new")
    try:
        archive.pack(device.slots / source, old)
        delta.apply(old, patch, new, size_bytes=offer.size_bytes, sha256=offer.sha256)
        new.replace(part)
    finally:
        for path in (old, new, patch, patch.with_suffix(".tag")):
            path.unlink(missing_ok=True)
    return part
