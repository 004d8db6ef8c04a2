from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from edge.bundling.bom import bom_claims, is_model_file, ml_bom
from edge.bundling.packages import find_package, package_url, with_requirements
from kit.files import canonical_json
from tests.manifests import CALIBRATION, DATA, VERSION, bundle_manifest

FILES = {
    "golden/inputs.npz": "3" * 64,
    "model.sig": "4" * 64,
    "model.tflite": "1" * 64,
    "preprocessing.json": "2" * 64,
}


def component(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in document["components"] if each["name"] == name]
    return found


def official_verdict(document: dict[str, Any]) -> str | None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.output_format is OutputFormat.JSON
    wrong = validator.validate_str(json.dumps(document))
    return None if wrong is None else str(wrong)


@pytest.mark.parametrize(
    "changes, licence",
    [
        ({}, ""),
        ({}, "Apache-2.0"),
        ({}, "Use it as you like.\n\nBut say whose it is.\n"),
        ({"calibration": None, "recipe": None}, ""),
        ({"metrics": {}, "classes": [], "postprocessing": "regression"}, ""),
        ({"requirements": {"engine": "openvino", "packages": {"openvino": ">=2026.1"}}}, ""),
        ({"toolchain": {"scipy": "1.17.1", "torchao": "0.18.0", "nobody-knows": "1"}}, ""),
    ],
)
def test_the_official_schema_accepts_it(changes: dict[str, Any], licence: str) -> None:
    document = ml_bom(bundle_manifest(**changes), files=FILES, licence=licence)
    assert official_verdict(document) is None


def test_the_official_schema_would_refuse_a_mistake() -> None:
    document = ml_bom(bundle_manifest(), files=FILES)
    document["components"][0]["modelCard"]["modelParameters"]["approach"]["type"] = "guessed"
    assert "guessed" in (official_verdict(document) or "")


def test_equal_bundles_have_equal_bytes_and_no_date() -> None:
    documents = [canonical_json(ml_bom(bundle_manifest(), files=FILES)) for _ in range(2)]
    assert documents[0] == documents[1]
    assert b"timestamp" not in documents[0]


def test_the_serial_number_follows_from_the_content() -> None:
    serials = {
        ml_bom(bundle_manifest(release=release), files={**FILES, "model.tflite": digest * 64})["serialNumber"]
        for release in (3, 4)
        for digest in "12"
    }
    assert len(serials) == 4
    assert all(each.startswith("urn:uuid:") for each in serials)


def test_the_model_says_what_it_is_and_what_was_measured() -> None:
    model = component(ml_bom(bundle_manifest(), files=FILES), "shapes")
    assert model["type"] == "machine-learning-model"
    assert model["version"] == f"sha256:{VERSION}"
    card = model["modelCard"]
    assert card["modelParameters"]["task"] == "classification"
    assert card["modelParameters"]["inputs"] == [{"format": "x: int8 [1, 2], scale 0.5, zero point -3"}]
    metrics = {each["type"]: each for each in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["accuracy"]["value"] == "0.985"
    assert metrics["accuracy of the float model"]["value"] == "0.99"
    assert metrics["accuracy"]["slice"] == f"360 held-out rows of the data {DATA}"


def test_layers_that_stayed_in_float_are_named() -> None:
    model = component(ml_bom(bundle_manifest(kept_in_float=["stem", "head"]), files=FILES), "shapes")
    assert {"name": "kit:kept_in_float", "value": "stem, head"} in model["modelCard"]["properties"]


def test_a_regression_has_no_agreement() -> None:
    metrics = {**bundle_manifest()["metrics"], "metric": "rmse", "agreement": None}
    model = component(ml_bom(bundle_manifest(metrics=metrics), files=FILES), "shapes")
    types = [each["type"] for each in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]]
    assert not [each for each in types if "agreement" in each]


def test_data_is_named_by_fingerprint_and_never_by_its_place() -> None:
    document = ml_bom(bundle_manifest(), files=FILES)
    datasets = component(document, "shapes")["modelCard"]["modelParameters"]["datasets"]
    found = {
        each["name"]: {one["name"]: one["value"] for one in each["contents"]["properties"]}
        for each in datasets
    }
    assert found["training data"] == {"kit:fingerprint": DATA, "kit:rows": "1000"}
    assert found["calibration rows"] == {"kit:fingerprint": CALIBRATION, "kit:rows": "200"}
    assert "secret" not in json.dumps(document)


def test_files_of_the_model_carry_their_digests_and_others_are_left_aside() -> None:
    document = ml_bom(bundle_manifest(), files=FILES)
    hashes = {each["name"]: each["hashes"] for each in document["components"] if "hashes" in each}
    assert hashes == {
        "model.tflite": [{"alg": "SHA-256", "content": "1" * 64}],
        "preprocessing.json": [{"alg": "SHA-256", "content": "2" * 64}],
    }
    assert not is_model_file("model.sig")


@pytest.mark.parametrize(
    "licence, said",
    [
        ("CC-BY-4.0", {"expression": "CC-BY-4.0", "acknowledgement": "declared"}),
        ("MIT OR (GPL-3.0-only)", {"expression": "MIT OR (GPL-3.0-only)", "acknowledgement": "declared"}),
        ("ours alone\n", {"license": {"name": "ours alone", "acknowledgement": "declared"}}),
    ],
)
def test_the_models_own_licence_is_given_as_it_is_stated(licence: str, said: dict[str, Any]) -> None:
    document = ml_bom(bundle_manifest(), files=FILES, licence=licence)
    assert component(document, "shapes")["licenses"] == [said]


def test_of_several_runtimes_none_is_required_alone() -> None:
    document = ml_bom(bundle_manifest(), files=FILES)
    runtime = component(document, "tflite-runtime")
    assert runtime["scope"] == "optional"
    assert {"name": "kit:requirement", "value": ">=2.14,<2.15"} in runtime["properties"]
    alone = {"engine": "openvino", "packages": {"openvino": ">=2026.1"}}
    document = ml_bom(bundle_manifest(requirements=alone), files=FILES)
    assert component(document, "openvino")["scope"] == "required"


def test_a_tool_has_its_version_and_its_licence_and_no_device_needs_it() -> None:
    here = find_package("torch")
    tool = component(ml_bom(bundle_manifest(toolchain={"torch": here.version}), files=FILES), "torch")
    assert tool["version"] == here.version
    assert tool["licenses"] == [{"expression": here.spdx, "acknowledgement": "declared"}]
    assert tool["scope"] == "excluded"


def test_the_licence_of_another_version_is_not_taken_for_it() -> None:
    assert find_package("torch", version="0.1").spdx == ""
    assert "licenses" not in component(
        ml_bom(bundle_manifest(toolchain={"torch": "0.1"}), files=FILES), "torch"
    )


def test_two_licences_of_one_name_are_not_told_apart() -> None:
    found = find_package("scipy")  # says "BSD License", of which there are several
    assert (found.spdx, found.licence) == ("", "BSD License")


@pytest.mark.parametrize(
    "name, spdx",
    [("kit", "Apache-2.0"), ("onnxruntime", "MIT"), ("litert_torch", "Apache-2.0"), ("python", "PSF-2.0")],
)
def test_a_licence_is_given_as_spdx_names_it(name: str, spdx: str) -> None:
    assert find_package(name).spdx == spdx


def test_a_package_brings_what_it_requires_and_what_its_extras_require_is_left_out() -> None:
    found = {each.name for each in with_requirements(["kit"])}
    assert {"batch-edge-kit", "cryptography", "cffi", "numpy"} <= found
    assert "ray" not in found


@pytest.mark.parametrize("version", ["2.13.0+cpu", "1!2.0", "3.0rc1", ""])
def test_the_official_reader_reads_package_urls(version: str) -> None:
    read = PackageURL.from_string(package_url("Ai_Edge-Litert", version))
    assert (read.type, read.name, read.version or "") == ("pypi", "ai-edge-litert", version)


def test_claims_name_files_tools_and_requirements() -> None:
    claims = bom_claims(ml_bom(bundle_manifest(), files=FILES))
    assert claims["file model.tflite"] == "1" * 64
    assert claims["tool torch"] == "2.13.0+cpu"
    assert claims["requirement ai-edge-litert"] == ">=2.1,<3"
    assert claims["the model"] == f"shapes sha256:{VERSION}"
