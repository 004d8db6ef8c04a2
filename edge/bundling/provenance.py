"""Where a bundle's model files come from: an in-toto statement with SLSA's provenance as its predicate.

Says what was built with which settings, out of which model version and data, by which tools. Undated, like
all of a bundle. It is signed with the bundle: ``model.sig`` covers the file. It opens no file.

Source: in-toto attestation framework, Statement v1; SLSA 1.0, provenance v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kit
from edge.bundling.bom import is_model_file
from edge.bundling.packages import KIT, package_url

NAME = "provenance.json"
"""What it is called in a bundle."""

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
"""Of the envelope's content."""

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
"""Of what is said about the subjects."""

BUILD_TYPE = f"{package_url(KIT)}#export/v1"
"""What the parameters mean: those of ``kit export``."""


def provenance(
    manifest: Mapping[str, Any], *, files: Mapping[str, str], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Say how a bundle's model files were made.

    Args:
        manifest: The bundle's manifest.json.
        files: Name to sha256 of the bundle's files; those of the model are the subjects, the others are
            left aside.
        parameters: The settings of the export that decide the bytes, JSON-ready.

    Returns:
        The statement, JSON-ready; it depends on the arguments and on the kit's version alone.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": files[name]}} for name in sorted(files) if is_model_file(name)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "name": manifest["name"],
                    "release": manifest["release"],
                    "settings": dict(parameters),
                    "target": manifest["target"],
                },
                "internalParameters": {
                    "batch_sizes": list(manifest["batch_sizes"]),
                    "kept_in_float": list(manifest.get("kept_in_float", ())),
                    "recipe": manifest["recipe"],
                },
                "resolvedDependencies": _dependencies(manifest),
            },
            "runDetails": {"builder": {"id": package_url(KIT), "version": {KIT: kit.__version__}}},
        },
    }


def provenance_claims(statement: Mapping[str, Any]) -> dict[str, str]:
    """Give what a provenance says about its bundle, so that it can be held against another's.

    Args:
        statement: What ``provenance`` has made, or what a bundle holds in its place.

    Returns:
        What is spoken of, in words, to what is said; the settings and the builder are left out.

    Raises:
        KeyError, TypeError, AttributeError, IndexError: It is not one that ``provenance`` makes.
    """
    definition = statement["predicate"]["buildDefinition"]
    external, internal = definition["externalParameters"], definition["internalParameters"]
    claims = {
        "the format": f"{statement['_type']} {statement['predicateType']} {definition['buildType']}",
        "the bundle": f"{external['name']} for {external['target']}, release {external['release']}",
        "the recipe": str(sorted((internal["recipe"] or {}).items())),
        "the batch sizes": str(internal["batch_sizes"]),
        "the layers in float": str(internal["kept_in_float"]),
    }
    claims |= {f"file {each['name']}": each["digest"]["sha256"] for each in statement["subject"]}
    for each in definition["resolvedDependencies"]:
        if "digest" in each:
            claims[f"the {each['name']}"] = each["digest"]["sha256"]
        else:
            claims[f"tool {each['name']}"] = each["uri"]
    return claims


def _dependencies(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name what went in. A fingerprint is no file's sha256, so each says of what it is one."""
    made: list[dict[str, Any]] = [
        {
            "name": "model version",
            "digest": {"sha256": manifest["model_digest"]},
            "annotations": {"of": "the names and digests of the version's files"},
        }
    ]
    used = (
        ("training data", manifest["lineage"]["data"], "the contents of its files"),
        ("calibration rows", manifest["calibration"], "their shape and values"),
    )
    for name, data, what in used:
        if data is not None:  # a float recipe takes no ranges
            count = {"n_rows": data["n_rows"]} if "n_rows" in data else {}
            digest = {"sha256": data["fingerprint"]}
            made.append({"name": name, "digest": digest, "annotations": {"of": what, **count}})
    return made + [
        {"name": name, "uri": package_url(name, version)}
        for name, version in sorted(manifest["toolchain"].items())
    ]
