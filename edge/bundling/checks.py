"""What must agree in a bundle whose signature and digests hold: manifest, papers, golden rows.

A signature says who made a bundle, not that its parts tell one story. Each check gives a sentence, so that
all that is wrong is seen at once. Only ``check_golden`` runs the model.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.bundling import bom, licences, provenance
from edge.recipes import Target
from edge.targets import TARGETS
from kit.bundle import Bundle
from kit.engines import ENGINES
from kit.errors import InputError, MissingDependencyError, ModelError, VerificationError
from kit.files import read_json
from kit.runner import Runner

GOLDEN = "golden rows"
"""What the check that runs the model is called."""

_PREPROCESSING = "preprocessing.json"
_KEYS = (
    *("precision", "classes", "recipe", "requirements", "tensors", "batch_sizes", "metrics", "budgets"),
    *("calibration", "toolchain", "lineage"),
)
_UNREADABLE = (KeyError, TypeError, AttributeError, IndexError, ValueError)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        passed: Whether it holds; None where it could not be looked at here.
        detail: What was found, or what is wrong.
    """

    name: str
    passed: bool | None
    detail: str


def check_content(bundle: Bundle, *, digests: Mapping[str, str]) -> tuple[Check, ...]:
    """Check that a verified bundle's parts agree, without running it.

    Args:
        bundle: The bundle.
        digests: Name to sha256 of each of its files.
    """
    absent = [key for key in _KEYS if key not in bundle.manifest]
    if absent:  # nothing can be held against it
        return (Check("manifest.json", False, f"it lacks {', '.join(absent)}"),)
    return (
        _check("manifest.json", lambda: _manifest(bundle, digests)),
        _check(bom.NAME, lambda: _bom(bundle, digests)),
        _check(provenance.NAME, lambda: _provenance(bundle, digests)),
        _check(licences.NAME, lambda: _licences(bundle)),
    )


def check_golden(bundle: Bundle) -> Check:
    """Ask the golden rows, where the bundle's engine is installed.

    Args:
        bundle: A verified bundle.
    """
    manifest = bundle.manifest
    requirements = manifest.get("requirements", {})
    needs = requirements_in_words(requirements) or str(manifest["engine"])
    archs = requirements.get("arch")
    if manifest["engine"] not in ENGINES or (archs and platform.machine() not in archs):
        return Check(GOLDEN, None, f"not run: needs {needs}")
    try:
        runner = Runner.open(bundle.folder, threads=1)
        report = runner.check_golden()
    except MissingDependencyError:
        return Check(GOLDEN, None, f"not run: needs {needs}")
    except (InputError, ModelError, VerificationError) as error:
        return Check(GOLDEN, False, error.message.replace(f"{bundle.folder}/", ""))
    engine = f"{runner.engine.name} {runner.engine.version}"
    if not report.passed:
        return Check(GOLDEN, False, f"{report.reason}, by {engine}")
    same = "" if report.agreement is None else f"{report.agreement:.2%} of the labels alike, "
    return Check(
        GOLDEN, True, f"{report.n_rows} rows by {engine}: {same}output error {report.output_error:.4f}"
    )


def requirements_in_words(requirements: Mapping[str, Any]) -> str:
    """Say what a device needs: ``ai-edge-litert >=2.1,<3 or tflite-runtime >=2.14,<2.15, on aarch64``."""
    packages = " or ".join(
        f"{name} {said}".rstrip() for name, said in sorted(requirements.get("packages", {}).items())
    )
    places = ["an NVIDIA GPU"] if requirements.get("gpu") else []
    places += [" or ".join(requirements["arch"])] if requirements.get("arch") else []
    return ", on ".join([packages, *places])


def _check(name: str, look: Callable[[], list[str]]) -> Check:
    """Look, and say what is wrong; signed, and yet not what the kit writes, is wrong, too."""
    try:
        wrong = look()
    except InputError as error:
        wrong = [error.message.rpartition("/")[2]]
    except _UNREADABLE as error:
        wrong = [f"it is not one that this kit writes ({type(error).__name__}: {error})"]
    return Check(name, not wrong, "; ".join(wrong) or "agrees with the files")


def _manifest(bundle: Bundle, digests: Mapping[str, str]) -> list[str]:
    manifest, signature = bundle.manifest, bundle.signature
    target = TARGETS.get(manifest["target"])
    pairs = [
        ("postprocessing", manifest["postprocessing"], "the signature", signature.task),
        ("classes", manifest["classes"], "the signature", list(signature.classes)),
        ("requirements engine", manifest["requirements"]["engine"], "its engine", manifest["engine"]),
    ]
    if "labels" in manifest:
        pairs.append(("labels", manifest["labels"], "the signature", list(signature.classes)))
    if target is not None:
        pairs += [
            (name, manifest[name], f"target {target.name}", getattr(target, name))
            for name in ("engine", "precision", "model")
        ]
    wrong = [f"{name} is {said!r}, and {other} says {so!r}" for name, said, other, so in pairs if said != so]
    return wrong + _unlike_target(manifest["target"], target, digests) + _unread(bundle, digests)


def _unlike_target(name: str, target: Target | None, digests: Mapping[str, str]) -> list[str]:
    if target is None:
        return [f"there is no target {name!r}"]
    held, due = {each for each in digests if bom.is_model_file(each)}, set(target.files)
    return [f"{each} belongs to no {name}" for each in sorted(held - due)] + [
        f"{each} is missing" for each in sorted(due - held)
    ]


def _unread(bundle: Bundle, digests: Mapping[str, str]) -> list[str]:
    """Compare what the network reads with what there is for it to read."""
    reads = str(bundle.manifest["core"]["inputs"][0]["name"])
    inputs = [spec.name for spec in bundle.signature.inputs]
    if _PREPROCESSING in digests or reads in inputs:
        return []
    return [f"the network reads {reads!r}, and the signature has {', '.join(inputs)} and no preprocessing"]


def _bom(bundle: Bundle, digests: Mapping[str, str]) -> list[str]:
    said = bom.bom_claims(read_json(bundle.folder / bom.NAME))
    due = bom.ml_bom(bundle.manifest, files=digests)
    return _disagreements(said, bom.bom_claims(due))


def _provenance(bundle: Bundle, digests: Mapping[str, str]) -> list[str]:
    said = provenance.provenance_claims(read_json(bundle.folder / provenance.NAME))
    due = provenance.provenance(bundle.manifest, files=digests, parameters={})
    return _disagreements(said, provenance.provenance_claims(due))


def _licences(bundle: Bundle) -> list[str]:
    try:
        text = (bundle.folder / licences.NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return [f"{licences.NAME} does not exist"]
    absent = licences.absent_licences(text, manifest=bundle.manifest)
    return [f"it says nothing of {', '.join(absent)}"] if absent else []


def _disagreements(said: Mapping[str, str], due: Mapping[str, str]) -> list[str]:
    """Say where two accounts of one bundle differ."""
    wrong = []
    for name in dict.fromkeys([*due, *said]):
        if name not in said:
            wrong.append(f"it leaves out {name}")
        elif name not in due:
            wrong.append(f"it names {name}, which the bundle does not have")
        elif said[name] != due[name]:
            wrong.append(f"it says that {name} is {said[name]}, and the bundle has {due[name]}")
    return wrong
