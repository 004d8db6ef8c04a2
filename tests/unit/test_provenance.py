from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

import kit
from edge.bundling.licences import absent_licences, licences
from edge.bundling.packages import find_package
from edge.bundling.provenance import provenance, provenance_claims
from kit.files import canonical_json
from tests.manifests import CALIBRATION, DATA, VERSION, bundle_manifest

FILES = {"model.xml": "1" * 64, "model.bin": "2" * 64, "model.sig": "3" * 64, "signature.json": "4" * 64}
SETTINGS = {"calibration_rows": 200, "io": "int8"}


def statement(**changes: Any) -> dict[str, Any]:
    return provenance(bundle_manifest(**changes), files=FILES, parameters=SETTINGS)


def dependencies(made: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each for each in made["predicate"]["buildDefinition"]["resolvedDependencies"]}


def test_it_is_an_in_toto_statement_about_the_models_files() -> None:
    made = statement()
    assert made["_type"] == "https://in-toto.io/Statement/v1"
    assert made["predicateType"] == "https://slsa.dev/provenance/v1"
    assert made["subject"] == [
        {"name": "model.bin", "digest": {"sha256": "2" * 64}},
        {"name": "model.xml", "digest": {"sha256": "1" * 64}},
    ]


def test_the_official_reader_reads_every_word_of_it() -> None:
    made = statement()
    Statement.copy_from_pb(json_format.ParseDict(made, statement_pb2.Statement())).validate()
    predicate = json_format.ParseDict(made["predicate"], provenance_pb2.Provenance())  # refuses unknown keys
    for each in predicate.build_definition.resolved_dependencies:
        ResourceDescriptor.copy_from_pb(each).validate()
    assert json_format.MessageToDict(predicate) == made["predicate"]


def test_it_holds_what_slsa_requires() -> None:
    predicate = statement()["predicate"]
    assert set(predicate) == {"buildDefinition", "runDetails"}
    assert {"buildType", "externalParameters"} <= set(predicate["buildDefinition"])
    assert predicate["runDetails"]["builder"] == {
        "id": "pkg:pypi/batch-edge-kit",
        "version": {"batch-edge-kit": kit.__version__},
    }


def test_what_the_user_asked_for_is_apart_from_what_the_ladder_chose() -> None:
    definition = statement()["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["settings"] == SETTINGS
    assert definition["externalParameters"]["target"] == "litert-int8"
    assert definition["internalParameters"]["recipe"]["name"] == "int8"


def test_everything_that_went_in_is_named_by_its_digest_or_version() -> None:
    found = dependencies(statement())
    assert found["model version"]["digest"] == {"sha256": VERSION}
    assert found["training data"]["digest"] == {"sha256": DATA}
    assert found["calibration rows"]["digest"] == {"sha256": CALIBRATION}
    assert found["torch"]["uri"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert found["python"]["uri"] == "pkg:generic/python@3.11.9"


def test_a_float_recipe_has_no_calibration_rows() -> None:
    assert "calibration rows" not in dependencies(statement(calibration=None))


def test_the_place_of_the_data_is_not_told() -> None:
    assert "secret" not in json.dumps(statement())


def test_equal_exports_have_equal_bytes_and_no_date() -> None:
    texts = [canonical_json(statement()) for _ in range(2)]
    assert texts[0] == texts[1]
    for word in (b"startedOn", b"finishedOn", b"invocationId"):
        assert word not in texts[0]


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"model_digest": "e" * 64}, "the model version"),
        ({"release": 4}, "the bundle"),
        ({"recipe": {"name": "int8-clipped"}}, "the recipe"),
        ({"batch_sizes": [1, 8]}, "the batch sizes"),
        ({"kept_in_float": ["head"]}, "the layers in float"),
        ({"calibration": {"n_rows": 200, "fingerprint": "e" * 64}}, "the calibration rows"),
        ({"toolchain": {"torch": "2.14.0"}}, "tool torch"),
    ],
)
def test_its_claims_tell_two_exports_apart(changes: dict[str, Any], name: str) -> None:
    claims, others = provenance_claims(statement()), provenance_claims(statement(**changes))
    assert claims[name] != others[name]


def test_the_licences_name_every_package_with_version_and_spdx_identifier() -> None:
    here = find_package("onnxruntime")
    needs = {"engine": "onnxruntime", "packages": {"onnxruntime": ">=1.20"}}
    text = licences(
        bundle_manifest(requirements=needs, toolchain={"onnxruntime": here.version}), licence="MIT"
    )
    rows = [line.split() for line in text.splitlines()]
    assert rows.count(["onnxruntime", here.version, "MIT"]) == 2  # it runs the model, and made it
    assert ["flatbuffers", find_package("flatbuffers").version, "Apache-2.0"] in rows  # onnxruntime needs it
    assert "\nMIT\n" in text


def test_a_model_without_a_licence_is_said_to_have_none() -> None:
    assert "no licence was stated for the model" in licences(bundle_manifest(), licence="")


def test_a_runtime_that_is_not_installed_here_has_the_range_it_may_have() -> None:
    text = licences(bundle_manifest(), licence="")
    rows = [line.split() for line in text.splitlines()]
    assert ["tflite-runtime", ">=2.14,<2.15", "Apache-2.0"] in rows
    assert "One of ai-edge-litert, tflite-runtime is enough." in text


def test_a_licence_nobody_states_is_no_assertion() -> None:
    text = licences(
        bundle_manifest(toolchain={"nobody-knows": "1.0", "scipy": find_package("scipy").version}), licence=""
    )
    rows = {line.split()[0]: line.split(maxsplit=2) for line in text.splitlines() if line.strip()}
    assert rows["nobody-knows"] == ["nobody-knows", "1.0", "NOASSERTION"]
    assert rows["scipy"][2] == "NOASSERTION (BSD License)"


def test_the_licences_of_equal_bundles_have_equal_bytes() -> None:
    assert licences(bundle_manifest(), licence="MIT") == licences(bundle_manifest(), licence="MIT")


def test_a_package_without_its_licence_is_named() -> None:
    text = licences(bundle_manifest(), licence="")
    assert absent_licences(text, manifest=bundle_manifest()) == ()
    more = bundle_manifest(toolchain={"nncf": "3.4.0"})
    assert absent_licences(text, manifest=more) == ("nncf",)
