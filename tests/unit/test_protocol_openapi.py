"""The description of an endpoint and the page that shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from kit.errors import KitError
from kit.signature import Signature
from kit.tensors import DTYPES, TensorSpec
from serve.protocol import (
    OPEN_KINDS,
    Card,
    Paths,
    describe_config,
    describe_index,
    describe_model,
    describe_openapi,
    describe_server,
    docs_page,
    encode_answer,
    encode_error,
    encode_rows,
    parse_infer,
    parse_rows,
)
from serve.protocol.body import read_json, write_json
from serve.protocol.metadata import EXTENSIONS, PLATFORM

EVERYTHING = Signature(
    "classification",
    (
        TensorSpec("x", "float32", (-1, 2), columns=("a", "b"), nullable=True, maximum=-1),
        TensorSpec("list", "float64", (-1, 3), columns=("list",), minimum=2),
        *(TensorSpec(f"in_{dtype}", dtype, (-1, 1), columns=(f"in_{dtype}",)) for dtype in DTYPES),
    ),
    (
        TensorSpec("label", "int64", (-1,), classes=("no", "yes")),
        TensorSpec("probabilities", "float32", (-1, 2)),
        TensorSpec("logits", "float32", (-1, 2)),
        TensorSpec("word", "string", (-1,)),
        TensorSpec("flag", "bool", (-1, 2)),
    ),
)
OLD = Signature(
    "regression",
    (TensorSpec("x", "float32", (-1, 1), columns=("a",)),),
    (TensorSpec("value", "float32", (-1,)),),
)
CARDS = [Card("digits", 3, "ab", "onnxruntime", EVERYTHING), Card("digits", 2, "cd", "onnxruntime", OLD)]
ANSWERS: dict[str, np.ndarray] = {
    "label": np.array([1]),
    "probabilities": np.array([[0.25, np.nan]], dtype=np.float32),
    "logits": np.zeros((1, 2), dtype=np.float32),
    "word": np.array(["a"], dtype=object),
    "flag": np.array([[True, False]]),
}
DOCUMENT: dict[str, Any] = json.loads(describe_openapi(CARDS).body)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(DOCUMENT)):
        place: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert isinstance(place, dict), reference


def test_every_path_is_one_of_the_endpoint_and_says_who_may() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    kinds = set()
    for path, method, operation in operations():
        route = Paths().find(method, path)
        kinds.add(route.kind)
        assert (operation.get("security") == []) == (route.kind in OPEN_KINDS)
    assert kinds == {
        *(
            "live",
            "ready",
            "server",
            "model",
            "model_ready",
            "infer",
            "config",
            "stats",
            "all_stats",
            "index",
        ),
        *("load", "unload", "predict", "metrics"),
    }


def test_every_error_of_asking_a_model_is_described() -> None:
    for path, _, operation in operations():
        if path.endswith("/infer") or path.startswith("/predict"):
            statuses = {"200", "400", "401", "403", "404", "413", "429", "500", "503", "504"}
            assert set(operation["responses"]) == statuses
    assert "Retry-After" in DOCUMENT["components"]["responses"]["429"]["headers"]
    assert validator("Error").is_valid(json.loads(encode_error(KitError("no")).body))


def test_an_endpoint_without_keys_asks_for_none() -> None:
    document = json.loads(describe_openapi(CARDS, secured=False).body)
    assert "security" not in document
    assert "securitySchemes" not in document["components"]


@pytest.mark.parametrize("card", CARDS, ids=("everything", "old"))
def test_examples_are_accepted_by_schema_and_endpoint(card: Card) -> None:
    base = f"digits-{card.version}"
    for kind, parse in (("rows", parse_rows), ("infer", partial(parse_infer, read=read_json))):
        (example,) = DOCUMENT["components"]["schemas"][f"{base}-{kind}"]["examples"]
        validator(f"{base}-{kind}").validate(example)
        assert parse(json.dumps(example).encode()).decode(card.signature).n_rows == 1
    content = DOCUMENT["paths"][f"/predict/digits/versions/{card.version}"]["post"]["requestBody"]["content"]
    table = parse_rows(content["text/csv"]["example"].encode(), content_type=b"text/csv")
    assert table.decode(card.signature).n_rows == 1


def test_answers_are_as_described() -> None:
    card = CARDS[0]
    rows = DOCUMENT["components"]["schemas"]["digits-3-rows"]["examples"][0]
    asked = parse_rows(json.dumps({**rows, "id": "a"}).encode()).decode(EVERYTHING)
    said = json.loads(encode_rows(asked, card, ANSWERS, parameters={"fallback": "version"}).body)
    validator("digits-3-rows-answer").validate(said)
    said = json.loads(encode_answer(asked, card, ANSWERS, write=write_json).body)
    validator("digits-3-infer-answer").validate(said)
    del said["outputs"][0]["datatype"]
    assert not validator("digits-3-infer-answer").is_valid(said)


def test_what_is_read_is_as_described() -> None:
    for path, reply in (
        ("/v2", describe_server(EXTENSIONS)),
        ("/v2/models/digits", describe_model(CARDS[0], platform=PLATFORM)),
        ("/v2/models/digits/config", describe_config(CARDS[0], max_batch_rows=8)),
        ("/v2/repository/index", describe_index([])),
    ):
        (operation,) = DOCUMENT["paths"][path].values()
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert Draft202012Validator(schema).is_valid(json.loads(reply.body)), path


@pytest.mark.parametrize(
    "change",
    [{"a": 5}, {"list": [2, 2]}, {"in_uint8": 256}, {"in_string": ""}, {"in_bool": 2}, {"in_int8": 1.5}],
)
def test_what_the_schema_refuses_the_endpoint_refuses(change: dict[str, Any]) -> None:
    (rows,) = DOCUMENT["components"]["schemas"]["digits-3-rows"]["examples"]
    (row,) = rows["rows"]
    body = {**row, **change}
    assert not validator("digits-3-rows").is_valid(body)
    with pytest.raises(KitError):
        parse_rows(json.dumps(body).encode()).decode(EVERYTHING)


def test_the_page_loads_nothing_and_its_policy_keeps_it_so() -> None:
    reply = docs_page()
    page, headers = reply.body.decode(), dict(reply.headers)
    assert not re.search(r"https?://|//[a-z]+\.|<link|<img|<iframe|\son\w+=|style=|innerHTML|eval\(", page)
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
