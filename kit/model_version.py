"""A model version: an immutable, content-addressed, signed folder.

    model.onnx            the reference: preprocessing, network and answers in one graph
    model.pt2             the network as a torch.export program; only the export job opens it
    signature.json        inputs and outputs (kit.signature)
    golden/               sample inputs and the reference's outputs
    profile.json          histograms of the training data
    preprocessing.json    the fitted preprocessing as data, where there is one (kit.steps)
    manifest.json         metrics and lineage
    model.sig             OMS signature over all of the above

Making one and opening one both live here; how the parts come to be is training's business.
Nothing dated is inside, so the same inputs give the same bytes and the same digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import ConflictError, VerificationError
from kit.files import atomic_folder, canonical_json
from kit.golden import read_tensors, write_tensors
from kit.seal import open_sealed, seal
from kit.signature import Signature
from kit.signing import SIGNATURE_NAME
from kit.steps import Steps
from kit.tensors import Tensors

#: Every file a model version may hold; anything else is refused before it is read.
ALLOWED = (
    "golden/inputs.npz",
    "golden/outputs.npz",
    "manifest.json",
    "model.onnx",
    "model.pt2",
    SIGNATURE_NAME,
    "preprocessing.json",
    "profile.json",
    "signature.json",
)
_REQUIRED = set(ALLOWED) - {"preprocessing.json", SIGNATURE_NAME, "model.pt2"}
FORMAT = 1


@dataclass(frozen=True)
class Parts:
    """What a model version is made of.

    Attributes:
        name: The model's name.
        onnx: Bytes of the reference graph.
        program: Bytes of the torch.export program; None for models that have none.
        signature: Inputs and outputs.
        golden_inputs: Sample rows, input name to (n_rows, ...).
        golden_outputs: The reference's answers to them.
        profile: Histograms of the training data.
        steps: The fitted preprocessing as data; None where there is none.
        manifest: Metrics, lineage and graph facts; ``format`` and ``name`` are added.
    """

    name: str
    onnx: bytes
    program: bytes | None
    signature: Signature
    golden_inputs: Tensors
    golden_outputs: Tensors
    profile: Mapping[str, Any]
    steps: Steps | None
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class ModelVersion:
    """An opened model version, every byte of it verified.

    Attributes:
        folder: Where it lies.
        digest: The sha256 that names it.
        name: The model's name.
        manifest: Metrics, lineage and graph facts.
        signature: Inputs and outputs.
        key_id: Which trusted key signed it.
    """

    folder: Path
    digest: str
    name: str
    manifest: dict[str, Any]
    signature: Signature
    key_id: str

    @classmethod
    def open(cls, folder: Path, *, trusted: Sequence[bytes], digest: str | None = None) -> ModelVersion:
        """Verify a folder and open it.

        Args:
            folder: The version's folder.
            trusted: Public keys (PEM), one of which must have signed it.
            digest: The digest it must have; None when any signed version will do.

        Raises:
            VerificationError: A digest, the signature, the file list or a file's content does
                not hold; the message names the file.
        """
        sealed = open_sealed(folder, trusted=trusted, allowed=ALLOWED)
        if digest is not None and sealed.digest != digest:
            raise VerificationError(
                f"{folder} holds version {sealed.digest[:12]}, but {digest[:12]} was asked for",
                hint="restore the folder from the store, or resolve the model again",
            )
        missing = sorted(_REQUIRED - set(sealed.files))
        if missing:
            raise VerificationError(f"{folder} has no {missing[0]}; it is not a model version")
        manifest = _load(folder / "manifest.json")
        if manifest.get("format") != FORMAT:
            raise VerificationError(
                f"{folder} has format {manifest.get('format')!r}; this kit reads format {FORMAT}",
                hint="use the kit version that made it",
            )
        return cls(
            folder=folder,
            digest=sealed.digest,
            name=sealed.name,
            manifest=manifest,
            signature=Signature.from_json(_load(folder / "signature.json")),
            key_id=sealed.key_id,
        )

    @property
    def model_path(self) -> Path:
        """The reference graph."""
        return self.folder / "model.onnx"

    @property
    def profile(self) -> dict[str, Any]:
        """The histograms of the training data; see ``kit.profile``."""
        return _load(self.folder / "profile.json")

    def golden(self) -> tuple[Tensors, Tensors]:
        """Read the sample inputs and the reference's answers."""
        return (
            read_tensors(self.folder / "golden" / "inputs.npz"),
            read_tensors(self.folder / "golden" / "outputs.npz"),
        )

    def preprocessing(self) -> Steps | None:
        """Read the fitted preprocessing as data; None where the graph needs none."""
        path = self.folder / "preprocessing.json"
        return Steps.from_json(_load(path)) if path.exists() else None


def write_model_version(parts: Parts, *, folder: Path, key: Path) -> str:
    """Write and sign a model version.

    Args:
        parts: What it is made of.
        folder: The folder to make; it appears whole or not at all.
        key: Private key that signs.

    Returns:
        The version's digest.

    Raises:
        ConflictError: The folder exists.
        UnavailableError: The disk is full or cannot be written.
    """
    if folder.exists():
        raise ConflictError(f"{folder} exists", hint="choose a folder that does not exist")
    manifest = {"format": FORMAT, "name": parts.name, **parts.manifest}
    with atomic_folder(folder) as work:
        (work / "golden").mkdir()
        (work / "model.onnx").write_bytes(parts.onnx)
        if parts.program is not None:
            (work / "model.pt2").write_bytes(parts.program)
        for name, value in (
            ("signature.json", parts.signature.to_json()),
            ("profile.json", parts.profile),
            ("manifest.json", manifest),
        ):
            (work / name).write_bytes(canonical_json(value))
        if parts.steps is not None:
            (work / "preprocessing.json").write_bytes(canonical_json(parts.steps.to_json()))
        write_tensors(work / "golden" / "inputs.npz", parts.golden_inputs)
        write_tensors(work / "golden" / "outputs.npz", parts.golden_outputs)
        return seal(work, name=parts.name, key=key)


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise VerificationError(f"{path.name} is not valid JSON") from error
    if not isinstance(value, dict):
        raise VerificationError(f"{path.name} is not a JSON object")
    return value
