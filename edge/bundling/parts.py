"""The parts of a bundle: everything a device needs to answer, signed, in one reproducible file.

    manifest.json                      what it is, for which release, how good, what it needs, by which tools
    signature.json                     inputs and outputs, as tables and requests have them
    preprocessing.json                 the fitted preprocessing as data, where there is one
    model.tflite | model.xml model.bin | model.onnx   the network alone, for one engine
    golden/                            sample inputs and the reference's answers
    profile.json                       the training data's histograms, whose edges telemetry counts on
    bom.cdx.json provenance.json licenses.txt   what is in it, where from, under which licences
    model.sig                          OMS signature over all of the above

Nothing dated or timed is inside, so exporting the same version twice gives the same bytes. It
does not convert or measure; ``kit.archive`` knows the file, ``kit.bundle`` opens the
content and ``kit.runner`` runs it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edge.bundling.bom import ml_bom
from edge.bundling.licences import licences
from edge.bundling.provenance import provenance
from edge.core import Core
from edge.recipes import Recipe, Target
from edge.targets import is_installed
from kit import archive
from kit.bundle import FORMAT, Bundle, bundle_name, open_bundle, read_manifest
from kit.errors import KitError
from kit.files import canonical_json, sha256_file, write_atomic
from kit.seal import seal

_COPIED = ("golden/inputs.npz", "golden/outputs.npz", "profile.json")


def write_parts(folder: Path, *, core: Core) -> None:
    """Write what a bundle takes over from the model version: all but manifest and model files."""
    version = core.version
    for name in _COPIED:
        if (version.folder / name).is_file():
            write_atomic(folder / name, (version.folder / name).read_bytes())
    write_atomic(folder / "signature.json", canonical_json(version.signature.to_json()))
    if core.steps is not None:
        write_atomic(folder / "preprocessing.json", canonical_json(core.steps.to_json()))


def write_manifest(
    folder: Path, *, core: Core, target: Target, recipe: Recipe, release: int, facts: Mapping[str, Any]
) -> None:
    """Write or replace a bundle's manifest.

    Args:
        folder: The bundle's folder.
        core: What the model file holds.
        target: What it was made for.
        recipe: How.
        release: The counter a device never goes back on.
        facts: ``golden``, ``budgets``, ``metrics``, ``calibration``, ``requirements``, ``tensors``,
            ``batch_sizes`` and the like; figures rounded by ``rounded``.
    """
    version = core.version
    tools = [name for name in (*target.builders, *target.runtimes) if is_installed(name)]
    manifest = {
        "format": FORMAT,
        "name": version.name,
        "model_digest": version.digest,
        "release": release,
        "target": target.name,
        "engine": target.engine,
        "precision": target.precision,
        "recipe": recipe.to_json(),
        "model": target.model,
        "core": {"inputs": [core.input.to_json()], "outputs": [core.output.to_json()]},
        "postprocessing": version.signature.task,
        "classes": list(version.signature.classes),
        "toolchain": {name: metadata.version(name) for name in sorted(set(tools))},
        "lineage": version.manifest["lineage"],
        **facts,
    }
    write_atomic(folder / "manifest.json", canonical_json(manifest))


def write_papers(folder: Path, *, parameters: Mapping[str, Any], licence: str) -> None:
    """Write bill of materials, provenance and licences, from the manifest and the files that are there.

    Args:
        folder: The bundle's folder, complete but for these and the signature.
        parameters: The settings of the export that decide the bytes.
        licence: The model's own, may be empty.
    """
    manifest = read_manifest(folder)
    files = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    bom = ml_bom(manifest, files=files, licence=licence)
    write_atomic(folder / "bom.cdx.json", canonical_json(bom))
    origin = provenance(manifest, files=files, parameters=parameters)
    write_atomic(folder / "provenance.json", canonical_json(origin))
    write_atomic(folder / "licenses.txt", licences(manifest, licence=licence).encode())


def rounded(figure: float) -> float:
    """Keep six significant digits, so that the last bits of a sum change no bundle's bytes."""
    return float(f"{figure:.6g}")


def pack_bundle(folder: Path, path: Path, *, key: Path) -> str:
    """Seal a bundle's folder and write it as one file.

    Args:
        folder: All of its files.
        path: The bundle file, whole or not at all; an older one is replaced.
        key: The private key that signs.

    Returns:
        The digest that names the content.
    """
    manifest = read_manifest(folder)
    digest = seal(folder, name=bundle_name(manifest["name"], manifest["target"]), key=key)
    archive.pack(folder, path)
    return digest


def unpack_bundle(path: Path, *, folder: Path, trusted: Sequence[bytes]) -> Bundle:
    """Unpack a bundle file into a new folder and verify it; what does not hold is not left there.

    Args:
        path: A file that ``pack_bundle`` wrote.
        folder: Where its files shall lie; must not exist.
        trusted: Public keys (PEM), one of which must have signed it.

    Raises:
        VerificationError: The archive, a digest, the signature or the manifest does not hold.
        ConflictError: The folder exists.
    """
    archive.unpack(path, folder)
    try:
        return open_bundle(folder, trusted=trusted)
    except KitError:
        shutil.rmtree(folder)
        raise
