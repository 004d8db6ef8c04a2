"""Open an unpacked bundle: verified to the last byte, complete, and what its signature calls it.

The one way to open a bundle, on the machine that exports, before a flash and on the device, so what
one of them lets pass the others do too. ``kit.archive`` knows the file it came in and ``kit.runner``
answers from it. Runs on a device: standard library and what checks signatures, which is imported when a
bundle is opened: the agent has this module in memory for months and opens a bundle for a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.archive import BUNDLE_FILES
from kit.errors import InputError, VerificationError
from kit.files import read_json

if TYPE_CHECKING:
    from kit.signature import Signature

FORMAT = 1
"""The bundle format this kit writes and reads."""

_REQUIRED = ("golden/inputs.npz", "golden/outputs.npz", "manifest.json", "signature.json")
_KEYS = ("name", "model_digest", "release", "target", "engine", "model", "core", "postprocessing", "golden")
_AGAIN_HINT = "export the bundle again with this kit version"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, every byte of it verified.

    Attributes:
        folder: Where its files lie.
        manifest: Its manifest.json.
        signature: Inputs and outputs.
        digest: The sha256 that names its content.
        key_id: The trusted key that signed it, as ``kit.keypair.key_id`` names it.
    """

    folder: Path
    manifest: dict[str, Any]
    signature: Signature
    digest: str
    key_id: str

    @property
    def release(self) -> int:
        """The counter a device never goes back on, from 1."""
        return int(self.manifest["release"])


def open_bundle(folder: Path, *, trusted: Sequence[bytes]) -> Bundle:
    """Verify an unpacked bundle and open it.

    Args:
        folder: What ``kit.archive.unpack`` has made.
        trusted: Public keys (PEM), one of which must have signed it.

    Returns:
        The bundle. It holds for the files as they were read here: whoever can write to the folder
        can change them afterwards.

    Raises:
        VerificationError: A digest, the signature, the file list or the manifest does not hold;
            the message names the file.
    """
    from kit.seal import open_sealed
    from kit.signature import Signature

    sealed = open_sealed(folder, trusted=trusted, allowed=BUNDLE_FILES)
    missing = [name for name in _REQUIRED if name not in sealed.files]
    if missing:
        raise VerificationError(f"{folder} has no {missing[0]}; it is not a bundle", hint=_AGAIN_HINT)
    try:
        manifest = read_manifest(folder)
        signature = Signature.from_json(read_json(folder / "signature.json"))
    except InputError as error:  # signed, and yet not what the kit writes
        raise VerificationError(error.message, hint=_AGAIN_HINT) from error
    if sealed.name != bundle_name(manifest["name"], manifest["target"]):
        raise VerificationError(
            f"{folder} is signed as {sealed.name!r}, but its manifest says {manifest['name']!r} for "
            f"{manifest['target']!r}",
            hint=_AGAIN_HINT,
        )
    if manifest["model"] not in sealed.files:
        raise VerificationError(
            f"{folder} has no {manifest['model']}, which its manifest names", hint=_AGAIN_HINT
        )
    release = manifest["release"]
    if not isinstance(release, int) or isinstance(release, bool) or release < 1:
        raise VerificationError(
            f"the bundle's release is {release!r}, not a whole number from 1", hint=_AGAIN_HINT
        )
    return Bundle(folder, manifest, signature, sealed.digest, sealed.key_id)


def bundle_name(name: str, target: str) -> str:
    """Say what a model's bundle for a target is called, in its signature and as a file."""
    return f"{name}-{target}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a bundle's manifest.json.

    Raises:
        InputError: It is absent or not JSON.
        VerificationError: It has another format, or lacks an entry.
    """
    manifest = read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise VerificationError(
            f"the bundle has format {manifest.get('format')!r}; this kit reads {FORMAT}", hint=_AGAIN_HINT
        )
    if manifest.get("model") not in BUNDLE_FILES:
        raise VerificationError(
            f"the bundle names {manifest.get('model')!r} as its model file; none is called that",
            hint=_AGAIN_HINT,
        )
    absent = [key for key in _KEYS if key not in manifest]
    if absent:
        raise VerificationError(f"the bundle's manifest lacks {', '.join(absent)}", hint=_AGAIN_HINT)
    return manifest
