"""A bundle's bill of materials: CycloneDX 1.6, with the model as a machine-learning model (ML-BOM).

Says what the model is, what it was measured at, which data it has seen, which files it is, what a device
needs to run it and what it was made with. Undated, and its serial number follows from its content, so the
same bundle has the same bytes. It measures nothing and opens no file.

Source: CycloneDX 1.6, JSON schema; ECMA-424.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

from edge.bundling.packages import Package, find_package, package_url
from kit.bundle import bundle_name
from kit.files import canonical_json, sha256_bytes

NAME = "bom.cdx.json"
"""What it is called in a bundle."""

_PREPROCESSING = "preprocessing.json"
_MODEL = "model"
_REQUIREMENT = "kit:requirement"
#: How SPDX writes a licence: words of one piece, joined.
_EXPRESSION = re.compile(r"\(*[\w.+:-]+\)*( (AND|OR|WITH) \(*[\w.+:-]+\)*)*")
_FIGURES = (
    ("reference", "{metric} of the float model"),
    ("value", "{metric}"),
    ("drop", "drop of {metric}"),
    ("agreement", "agreement with the float model"),
    ("output_error", "output error in standard deviations of the float model's outputs"),
)


def is_model_file(name: str) -> bool:
    """Say whether a file of a bundle is the model or a part of it, by its name."""
    return name.startswith("model.") and name != "model.sig"


def ml_bom(manifest: Mapping[str, Any], *, files: Mapping[str, str], licence: str = "") -> dict[str, Any]:
    """Describe a bundle.

    Args:
        manifest: The bundle's manifest.json.
        files: Name to sha256 of the bundle's files; the model's and the preprocessing are described, the
            others left aside.
        licence: The model's own: an SPDX expression or a few words; empty where none is stated.

    Returns:
        The document, JSON-ready; it depends on the arguments and on the licences of the toolchain here.
    """
    described = {name: files[name] for name in sorted(files) if is_model_file(name) or name == _PREPROCESSING}
    tools = [_tool(find_package(name, version=said)) for name, said in sorted(manifest["toolchain"].items())]
    needed = [_requirement(name, manifest) for name in sorted(manifest["requirements"]["packages"])]
    parts = [_file(name, digest) for name, digest in described.items()]
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [_library(find_package("kit"))]},
            "component": {
                "type": "file",
                "bom-ref": "bundle",
                "name": bundle_name(manifest["name"], manifest["target"]),
                "version": str(manifest["release"]),
            },
        },
        "components": [_model(manifest, licence=licence), *parts, *needed, *tools],
        "dependencies": [
            {"ref": "bundle", "dependsOn": [_MODEL]},
            {"ref": _MODEL, "dependsOn": sorted(each["bom-ref"] for each in (*parts, *needed))},
        ],
    }
    name = f"urn:sha256:{sha256_bytes(canonical_json(document))}"
    return {**document, "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, name).urn}


def bom_claims(document: Mapping[str, Any]) -> dict[str, str]:
    """Give what a bill of materials says about its bundle, so that it can be held against another's.

    Args:
        document: What ``ml_bom`` has made, or what a bundle holds in its place.

    Returns:
        What is spoken of, in words, to what is said; licences and figures are left out.

    Raises:
        KeyError, TypeError, AttributeError, IndexError: It is not one that ``ml_bom`` makes.
    """
    bundle = document["metadata"]["component"]
    claims = {
        "the format": f"{document['bomFormat']} {document['specVersion']}",
        "the bundle": f"{bundle['name']} release {bundle['version']}",
    }
    for component in document["components"]:
        name, ref = component["name"], component["bom-ref"]
        properties = {each["name"]: each["value"] for each in component.get("properties", ())}
        if ref == _MODEL:
            claims["the model"] = f"{name} {component['version']}"
        elif ref.startswith("file:"):
            claims[f"file {name}"] = component["hashes"][0]["content"]
        elif _REQUIREMENT in properties:
            claims[f"requirement {name}"] = properties[_REQUIREMENT]
        else:
            claims[f"tool {name}"] = component["version"]
    return claims


def _model(manifest: Mapping[str, Any], *, licence: str) -> dict[str, Any]:
    recipe, kept = manifest["recipe"] or {}, manifest.get("kept_in_float", ())
    facts = {
        "target": manifest["target"],
        "precision": manifest["precision"],
        "batch_sizes": ", ".join(map(str, manifest["batch_sizes"])),
        **{f"recipe:{name}": value for name, value in recipe.items()},
        **({"kept_in_float": ", ".join(kept)} if kept else {}),
        **{f"budget:{name}": value for name, value in manifest["budgets"].items() if value is not None},
    }
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": manifest["name"],
        "version": f"sha256:{manifest['model_digest']}",
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": manifest["postprocessing"],
                "datasets": _datasets(manifest),
                "inputs": [{"format": _format(each)} for each in manifest["tensors"]["inputs"]],
                "outputs": [{"format": _format(each)} for each in manifest["tensors"]["outputs"]],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(manifest["metrics"])},
            "properties": _properties(facts),
        },
    }
    words = licence.strip()
    if "\n" in words:
        text = {"name": f"the licence of {manifest['name']}", "text": {"content": words}}
        component["licenses"] = [{"license": text}]
        return component
    spdx = _EXPRESSION.fullmatch(words) is not None
    return {**component, **_licences(Package("", "", words if spdx else "", "" if spdx else words))}


def _metrics(metrics: Mapping[str, Any] | None) -> list[dict[str, str]]:
    if not metrics:  # built for a runtime that is not here
        return []
    measured_on = f"{metrics['n_rows']} held-out rows of the data {metrics['fingerprint']}"
    return [
        {
            "type": words.format(metric=metrics["metric"]),
            "value": f"{metrics[name]:g}",
            "slice": measured_on,
        }
        for name, words in _FIGURES
        if metrics.get(name) is not None  # a regression has no agreement
    ]


def _datasets(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name the data by fingerprints; where it lay on somebody's disk stays there."""
    used = (("training data", manifest["lineage"]["data"]), ("calibration rows", manifest["calibration"]))
    return [
        {
            "type": "dataset",
            "bom-ref": f"data:{name.partition(' ')[0]}",
            "name": name,
            "contents": {"properties": _properties({"fingerprint": data["fingerprint"], **_rows(data)})},
        }
        for name, data in used
        if data is not None  # a float recipe takes no ranges
    ]


def _rows(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"rows": data["n_rows"]} if "n_rows" in data else {}


def _format(tensor: Mapping[str, Any]) -> str:
    """Describe a tensor: ``image: int8 [1, 1, 8, 8], scale 0.0039, zero point -128``."""
    words = f"{tensor['name']}: {tensor['dtype']} {list(tensor['shape'])}"
    if tensor.get("scale") is None:
        return words
    return f"{words}, scale {tensor['scale']}, zero point {tensor['zero_point']}"


def _file(name: str, digest: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
    if name == _PREPROCESSING:
        component["description"] = "the fitted preprocessing in front of the network, as data"
    return component


def _requirement(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a package that runs the model, in any version of a range; one of several is enough."""
    packages = manifest["requirements"]["packages"]
    package = find_package(name)
    facts = {"requirement": packages[name]}
    if len(packages) > 1:
        facts["one_of"] = ", ".join(sorted(packages))
    return {
        "type": "library",
        "bom-ref": package_url(name),
        "name": package.name,
        "purl": package_url(name),
        "scope": "required" if len(packages) == 1 else "optional",
        **_licences(package),
        "properties": _properties(facts),
    }


def _tool(package: Package) -> dict[str, Any]:
    """Describe a package the bundle was made with; no device needs it."""
    return {**_library(package), "bom-ref": package_url(package.name, package.version), "scope": "excluded"}


def _library(package: Package) -> dict[str, Any]:
    return {
        "type": "library",
        "name": package.name,
        "version": package.version,
        "purl": package_url(package.name, package.version),
        **_licences(package),
    }


def _licences(package: Package) -> dict[str, Any]:
    if package.spdx:
        return {"licenses": [{"expression": package.spdx, "acknowledgement": "declared"}]}
    if package.licence:
        return {"licenses": [{"license": {"name": package.licence, "acknowledgement": "declared"}}]}
    return {}


def _properties(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"kit:{name}", "value": _text(value)} for name, value in facts.items()]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
