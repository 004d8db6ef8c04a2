"""The protocol, bytes in and bytes out: no server, no model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import InputError, KitError
from kit.inference.plan import plan_of, request_of
from kit.signature import Signature
from kit.tensors import TensorSpec
from serve.protocol import (
    Card,
    InferRequest,
    encode_answer,
    encode_error,
    parse_infer,
    priority_of,
    timeout_s_of,
)
from serve.protocol.body import read_json, write_json

SIGNATURE = Signature(
    "classification",
    (
        TensorSpec("x", "float32", (-1, 2, 2), columns=("x",), nullable=True),
        TensorSpec("kind", "string", (-1, 1), columns=("kind",)),
    ),
    (
        TensorSpec("label", "int64", (-1,), classes=("no", "yes")),
        TensorSpec("probabilities", "float32", (-1, 2)),
        TensorSpec("logits", "float32", (-1, 2)),
    ),
)
CARD = Card("digits", 3, "ab" * 32, "onnxruntime", SIGNATURE)
X = {"name": "x", "datatype": "FP32", "shape": [2, 2, 2], "data": [1, 2.5, 3, 4, 5, 6, 7, 8]}
KIND = {"name": "kind", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "b"]}


PLAIN = Signature(
    "regression",
    (TensorSpec("x", "float32", (-1, 3), minimum=-5, maximum=1e6), TensorSpec("n", "int16", (-1,))),
    (TensorSpec("value", "float32", (-1,)),),
)


def parse(value: object) -> InferRequest:
    return parse_infer(json.dumps(value).encode(), read=read_json).decode(SIGNATURE)


def request(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**X, **changes}, KIND]}


def test_flat_and_nested_data_are_the_same_tensor() -> None:
    nested = parse(request(data=[[[1, 2.5], [3, 4]], [[5, 6], [7, 8]]]))
    flat = parse(request())
    np.testing.assert_array_equal(flat.inputs["x"], nested.inputs["x"])
    assert flat.inputs["x"].dtype == np.float32
    assert flat.inputs["kind"].tolist() == [["a"], ["b"]]


def test_null_is_a_missing_number_where_one_may_be() -> None:
    x = parse(request(data=[None, 1, 2, 3, 4, 5, 6, 7])).inputs["x"]
    assert np.isnan(x[0, 0, 0])
    assert np.isfinite(x.reshape(-1)[1:]).all()


def test_null_where_none_may_be_names_the_row() -> None:
    with pytest.raises(InputError, match="input 'kind', row 1: a value is missing"):
        parse({"inputs": [X, {**KIND, "data": ["a", None]}]})


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"datatype": "FP64"}, "input 'x' has datatype 'FP64'; FP32 is expected"),
        ({"datatype": ["FP32"]}, "FP32 is expected"),
        ({"shape": [2, 4]}, r"input 'x' has shape \[2, 4\]; \[-1, 2, 2\] is expected"),
        ({"shape": [-1, 2, 2]}, "a list of whole numbers is expected"),
        ({"shape": [2.0, 2, 2]}, "a list of whole numbers is expected"),
        ({"shape": [True, 2, 2]}, "a list of whole numbers is expected"),
        ({"shape": "2,2,2"}, "a list of whole numbers is expected"),
        ({"shape": [0, 2, 2], "data": []}, "input 'x' has no rows"),
        ({"shape": [10**12, 2, 2]}, "input 'x' has 8 values; its shape .* says 4000000000000"),
        ({"data": [1, 2, 3]}, "input 'x' has 3 values"),
        ({"data": {}}, "an object where a list is expected"),
        ({"data": [1, 2, 3, 4, 5, 6, 7, "8"]}, "input 'x', row 1: '8' is not a number"),
        ({"data": [True, 2, 3, 4, 5, 6, 7, 8]}, "input 'x', row 0: True is not a number"),
        ({"data": [1, 2, 3, 4, 5, 6, 7, [8]]}, "row 1: a list is not a number|row 1: .* is not a number"),
        ({"data": [[[1, 2], [3, 4]], [[5, 6], [7]]]}, "does not hold lists of 2 along axis 2"),
        ({"data": [[[1, 2], [3, 4]]]}, "input 'x' has 1 rows of data"),
        ({"data": [1e39, 2, 3, 4, 5, 6, 7, 8]}, "input 'x', row 0: infinity is not allowed"),
        ({"dtype": "FP32"}, "unknown key 'dtype'"),
        ({"parameters": []}, "'parameters' of .* are a list, not an object"),
        ({"parameters": 1}, "'parameters' of .* are a number, not an object"),
        ({"parameters": {"binary_data_size": 4}}, "has both 'data' and binary_data_size"),
        ({"parameters": {"binary_data_size": "4"}}, "is not a number of bytes"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory, which is not read here"),
        ({"name": "y"}, "'y' is not an input of this model"),
        ({"name": 1}, "is not a string"),
    ],
)
def test_a_wrong_tensor_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse(request(**changes))


@pytest.mark.parametrize(
    "value,sentence",
    [
        ([], "the request is a list where an object is expected"),
        ({}, "the request has no 'inputs'"),
        ({"inputs": []}, "'inputs' must be a list of at least one object"),
        ({"inputs": {}}, "'inputs' must be a list"),
        ({"inputs": [1]}, "entry 0 of 'inputs' is not an object"),
        ({"inputs": [X, 1]}, "entry 1 of 'inputs' is a number"),
        ({"inputs": [X]}, "input 'kind' is missing"),
        ({"inputs": [X, X, KIND]}, "input 'x' is there twice"),
        ({"inputs": [X, {**KIND, "shape": [1, 1], "data": ["a"]}]}, "differ in their number of rows"),
        ({**request(), "input": []}, "unknown key 'input'"),
        ({**request(), "id": 7}, "'id' is not a string"),
        ({**request(), "parameters": 1}, "are a number, not an object"),
        ({**request(), "parameters": {"a": []}}, "parameter 'a' is not a string"),
        ({**request(), "parameters": {"priority": -1}}, "parameter 'priority' is '-1'"),
        ({**request(), "parameters": {"timeout": 1.5}}, "parameter 'timeout' is '1.5'"),
        ({**request(), "parameters": {"sequence_id": 7}}, "sequences of requests are not kept"),
        ({**request(), "parameters": {"binary_data_output": 1}}, "is not true or false"),
        (
            {**request(), "outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
            "not true or false",
        ),
        ({**request(), "outputs": [{"name": "label", "parameters": {"classification": 3}}]}, "into classes"),
        ({**request(), "outputs": {}}, "'outputs' must be a list"),
        ({**request(), "outputs": [1]}, "entry 0 of 'outputs'"),
        ({**request(), "outputs": []}, "'outputs' must be a list of at least one object"),
        ({**request(), "outputs": [{"name": "lable"}]}, "'lable' is not an output of this model"),
        ({**request(), "outputs": [{"name": "label"}, {"name": "label"}]}, "output 'label' is there twice"),
        ({**request(), "outputs": [{"name": "label", "binary": 1}]}, "unknown key 'binary'"),
    ],
)
def test_a_wrong_request_is_refused(value: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse(value)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": "\\ud800"}', b"null", b"\xef\xbb\xbf{}"),
        *(
            b'{"inputs": [NaN]}',
            b'{"inputs": [Infinity]}',
            b'{"inputs": [-Infinity]}',
            b'{"inputs": [1e999]}',
        ),
        *(b'{"inputs": [' + b"9" * 5000 + b"]}", b'{"inputs": [0x10]}', b'{"inputs": [010]}', b"{} {}"),
    ],
)
def test_bytes_that_are_no_request_are_refused(body: bytes) -> None:
    with pytest.raises(InputError):
        parse_infer(body, read=read_json).decode(SIGNATURE)


@pytest.mark.parametrize(
    "body,name",
    [
        (b'{"inputs": [{"name": "x"}], "inputs": [{"name": "x"}]}', "inputs"),
        (b'{"id": "a:b", "id": "a:b", "inputs": [{"name": "x"}]}', "id"),
        (b'{"inputs": [{"name": "x", "data": [], "data": [1]}]}', "data"),
        (b'{"inputs": [{"name": "x"}, {"name": "y", "name": "x"}]}', "name"),
        (b'{"inputs": [{"name": "x", "parameters": {"a": 1, "a": 2}}]}', "a"),
        (b'{"inputs": [{"name": "x"}], "outputs": [{"name": "l", "name": "l"}]}', "name"),
        (b'{"parameters": {"u": ":", "u": ""}, "inputs": [{"name": "x"}]}', "u"),
        (b'{"parameters": {"\\u003a": ":"}, "id": "", "\\u0069d": "", "inputs": [{"name": "x"}]}', "id"),
        (b'{"inputs": [{"name": "x", "data": [{"k": 1, "k": 2}]}]}', "k"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(body: bytes, name: str) -> None:
    with pytest.raises(InputError, match=f"the key '{name}' is there twice"):
        parse_infer(body, read=read_json)


@pytest.mark.parametrize("colons", [":", "a:b::", "\\u003a", '\\":\\"'])
def test_colons_in_strings_are_no_keys(colons: str) -> None:
    body = b'{"id": "%s", "parameters": {"%s": "%s"}, "inputs": [{"name": "x"}]}' % ((colons.encode(),) * 3)
    assert parse_infer(body, read=read_json).id == json.loads(f'"{colons}"')


@given(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=4), st.text(max_size=9))
def test_no_request_without_equal_keys_is_taken_for_one_with_them(
    parameters: dict[str, str], identity: str
) -> None:
    parameters = {f"p{name}": value for name, value in parameters.items()}
    value = {"id": identity, "parameters": parameters, "inputs": [X, KIND]}
    for ascii_only in (True, False):
        body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "ignore")
        assert parse_infer(body, read=read_json).parameters == parameters


def test_nesting_as_deep_as_the_parser_allows_is_refused() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    for changes in ({"data": deep}, {"shape": deep}, {"data": [deep] * 8}, {"datatype": deep}):
        with pytest.raises(InputError):
            parse(request(**changes))


@given(st.binary(max_size=200))
def test_no_bytes_end_in_a_traceback(body: bytes) -> None:
    with pytest.raises(InputError):
        parse_infer(body, read=read_json).decode(SIGNATURE)


@given(st.data())
def test_a_request_with_a_byte_changed_or_lost_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(json.dumps({**request(), "id": "a", "parameters": {"k": 1}}).encode())
    place = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        body[place] = data.draw(st.integers(0, 255))
    else:
        del body[place:]
    try:
        read = parse_infer(bytes(body), read=read_json).decode(SIGNATURE)
    except InputError:
        return
    assert read.inputs.keys() == {spec.name for spec in SIGNATURE.inputs}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), JSON)
def test_no_value_in_a_tensor_ends_in_a_traceback(key: str, value: object) -> None:
    reply = None
    for changed in (request(**{key: value}), {**request(), key: value}, {**request(), "outputs": value}):
        try:
            parse(changed)
        except KitError as error:
            reply = encode_error(error)
        assert reply is None or reply.status == 400


NUMBERS = st.integers(-6, 70000) | st.floats(allow_nan=False, allow_infinity=False, width=32) | st.none()


@given(st.lists(NUMBERS | st.booleans(), min_size=1, max_size=8), st.integers(1, 3), st.booleans())
def test_the_fast_way_reads_what_the_slow_way_reads(values: list[Any], n_rows: int, nested: bool) -> None:
    data: list[Any] = [values[i : i + 3] for i in range(0, len(values), 3)] if nested else values
    sent = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [n_rows, 3], "data": data},
            {"name": "n", "datatype": "INT16", "shape": [n_rows], "data": values[:n_rows]},
        ]
    }

    def read(extra: dict[str, Any]) -> str:
        for entry in sent["inputs"]:
            entry.update(extra)
        try:
            decoded = parse_infer(json.dumps(sent).encode(), read=read_json).decode(PLAIN)
            return repr((decoded.n_rows, {name: (a.dtype, a.tolist()) for name, a in decoded.inputs.items()}))
        except InputError as error:
            return f"{error.message}; {error.hint}"

    assert read({}) == read({"parameters": {}})


def test_inputs_come_in_the_signatures_order() -> None:
    assert list(parse({"inputs": [KIND, X]}).inputs) == ["x", "kind"]
    assert parse({"inputs": [KIND, X]}).n_rows == 2


def test_null_is_as_good_as_nothing_for_what_is_optional() -> None:
    inputs = [{**X, "parameters": None}, {**KIND, "parameters": None}]
    read = parse({"id": None, "parameters": None, "outputs": None, "inputs": inputs, "model_name": "any"})
    assert (read.id, len(read.outputs)) == (None, 3)


def test_parameters_nobody_knows_are_kept_for_sticky_releases() -> None:
    raw = parse_infer(
        json.dumps({**request(), "parameters": {"user": "u7", "n": 7, "b": True}}).encode(), read=read_json
    )
    assert [raw.field(name) for name in ("user", "n", "b", "absent")] == ["u7", "7", "true", None]


def test_priority_and_timeout_are_read_in_the_protocols_units() -> None:
    raw = parse_infer(
        json.dumps({**request(), "parameters": {"priority": 2, "timeout": 1500}}).encode(), read=read_json
    )
    assert (priority_of(raw.parameters), timeout_s_of(raw.parameters)) == (2, 0.0015)
    assert priority_of({"priority": 10**30}) == 1 << 16
    bare = parse_infer(json.dumps(request()).encode(), read=read_json)
    assert (priority_of(bare.parameters), timeout_s_of(bare.parameters)) == (0, None)


def test_the_answer_carries_id_model_and_the_outputs_asked_for_in_that_order() -> None:
    asked = parse({**request(), "id": "a-1", "outputs": [{"name": "probabilities"}, {"name": "label"}]})
    answers = {
        "label": np.array([1, 0]),
        "probabilities": np.array([[0.1, 0.9], [np.nan, np.inf]], dtype=np.float32),
        "logits": np.zeros((2, 2), dtype=np.float32),
    }
    value = json.loads(encode_answer(asked, CARD, answers, write=write_json).body)
    assert value == {
        "model_name": "digits",
        "model_version": "3",
        "id": "a-1",
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.1, 0.9, None, None]},
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [1, 0]},
        ],
    }


def test_an_answer_says_what_else_is_to_be_known() -> None:
    tensors = {"x": np.zeros((1, 2, 2), np.float32), "kind": np.array([["a"]], dtype=object)}
    asked = request_of(SIGNATURE, tensors, identity=None)
    answers = {
        "label": np.array([1]),
        "probabilities": np.array([[0.5, 0.5], [0.0, 0.0]], dtype=np.float32)[::2],
        "logits": np.zeros((1, 2, 2), dtype=np.float32)[:, :, 1],
    }
    value = json.loads(
        encode_answer(asked, CARD, answers, parameters={"fallback": "version"}, write=write_json).body
    )
    assert value["parameters"] == {"fallback": "version"}
    assert [output["data"] for output in value["outputs"]] == [[1], [0.5, 0.5], [0.0, 0.0]]


def test_strings_are_answered_as_they_are() -> None:
    signature = Signature("regression", PLAIN.inputs, (TensorSpec("word", "string", (-1, 2)),))
    tensors = {"x": np.zeros((1, 3), np.float32), "n": np.zeros(1, np.int16)}
    asked = request_of(signature, tensors, identity='"\u00e4')
    card = Card("words", 1, "", "onnxruntime", signature)
    reply = encode_answer(asked, card, {"word": np.array([["\u00e4", '"']], dtype=object)}, write=write_json)
    value = json.loads(reply.body)
    assert (value["id"], value["outputs"][0]["data"]) == ('"\u00e4', ["\u00e4", '"'])


def test_a_signature_is_worked_out_once() -> None:
    assert plan_of(SIGNATURE) is plan_of(SIGNATURE)
