"""The protocol, bytes in and bytes out: no server, no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import errors
from kit.errors import InputError, KitError, NotFoundError
from kit.signature import Signature, TensorSpec
from kit.wire import DATATYPES, decode_tensor, dtype_of, encode_tensor
from serve import protocol
from serve.endpoint import Guard
from serve.protocol import Card, InferRequest, MethodError, Routes, encode_answer, encode_error, parse_infer

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


def parse(value: object) -> InferRequest:
    return parse_infer(json.dumps(value).encode(), SIGNATURE)


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
        ({"inputs": [1]}, "entry 0 of 'inputs' is a number"),
        ({"inputs": [X]}, "input 'kind' is missing"),
        ({"inputs": [X, X, KIND]}, "input 'x' is there twice"),
        ({"inputs": [X, {**KIND, "shape": [1, 1], "data": ["a"]}]}, "differ in their number of rows"),
        ({**request(), "input": []}, "unknown key 'input'"),
        ({**request(), "id": 7}, "'id' is not a string"),
        ({**request(), "parameters": 1}, "are a number, not an object"),
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
    "body", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"inputs": [NaN]}', b'{"a": "\\ud800"}', b"null"]
)
def test_bytes_that_are_no_request_are_refused(body: bytes) -> None:
    with pytest.raises(InputError):
        parse_infer(body, SIGNATURE)


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
        parse_infer(body, SIGNATURE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), JSON)
def test_no_value_in_a_tensor_ends_in_a_traceback(key: str, value: object) -> None:
    reply = None
    try:
        parse(request(**{key: value}))
    except KitError as error:
        reply = encode_error(error)
    assert reply is None or reply.status == 400


def test_the_answer_carries_id_model_and_the_outputs_asked_for_in_that_order() -> None:
    asked = parse({**request(), "id": "a-1", "outputs": [{"name": "probabilities"}, {"name": "label"}]})
    answers = {
        "label": np.array([1, 0]),
        "probabilities": np.array([[0.1, 0.9], [np.nan, np.inf]], dtype=np.float32),
        "logits": np.zeros((2, 2), dtype=np.float32),
    }
    value = json.loads(encode_answer(asked, CARD, answers).body)
    assert value == {
        "model_name": "digits",
        "model_version": "3",
        "id": "a-1",
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.1, 0.9, None, None]},
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [1, 0]},
        ],
    }


@pytest.mark.parametrize("dtype", list(DATATYPES))
def test_every_dtype_survives_the_way_there_and_back(dtype: str) -> None:
    arrays: dict[str, np.ndarray] = {
        "float32": np.array([[0.1, np.nan], [1e-45, -3.4e38]], dtype=np.float32),
        "float64": np.array([[0.1, np.nan], [5e-324, 1.7e308]]),
        "int64": np.array([[-(2**63), 2**63 - 1], [0, 1]]),
        "int32": np.array([[-(2**31), 2**31 - 1], [0, 1]], dtype=np.int32),
        "uint8": np.array([[0, 255], [1, 2]], dtype=np.uint8),
        "bool": np.array([[True, False], [False, True]]),
        "string": np.array([["ä", ""], ["\U0001f600", "\0"]], dtype=object),
    }
    spec = TensorSpec("t", dtype, (-1, 2))
    reply = encode_answer(InferRequest(None, {}, (spec,)), CARD, {"t": arrays[dtype]})
    back = decode_tensor(spec, json.loads(reply.body)["outputs"][0], kind="output")
    np.testing.assert_array_equal(back, arrays[dtype])
    assert (back.dtype, dtype_of(DATATYPES[dtype])) == (arrays[dtype].dtype, dtype)


@pytest.mark.parametrize("dtype,value", [("uint8", 256), ("uint8", -1), ("int32", 2**31), ("int64", 2**63)])
def test_a_number_that_does_not_fit_is_named(dtype: str, value: int) -> None:
    spec = TensorSpec("n", dtype, (-1,))
    with pytest.raises(InputError, match=f"input 'n', row 1: {value} does not fit"):
        decode_tensor(spec, {**encode_tensor(spec, np.zeros(2)), "data": [0, value]}, kind="input")


ODD = (
    *(0, 1, -1, 2, 3.0, -0.0, 1.5, 255, 256, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
    *(1e30, 1e300, 3e38, True, False, None, "", "3", "true", {}),
)


@pytest.mark.parametrize("nullable", [False, True])
@pytest.mark.parametrize("dtype", sorted(DATATYPES))
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_a_row_and_a_request_follow_one_rule(dtype: str, value: object, nullable: bool) -> None:
    spec = TensorSpec("n", dtype, (-1,), columns=("n",), nullable=nullable)
    signature = Signature("regression", (spec,), ())
    sane = {"string": "a", "bool": True}.get(dtype, 1)

    def answer(read: Callable[[], Any]) -> list[Any] | type[KitError]:
        try:
            return read()["n"].tolist()
        except InputError:
            return InputError

    body = {"name": "n", "datatype": DATATYPES[dtype], "shape": [2], "data": [sane, value]}
    asked = answer(lambda: signature.validate({"n": decode_tensor(spec, body, kind="input")}))
    read = answer(lambda: signature.from_rows([{"n": sane}, {"n": value}]))
    assert repr(asked) == repr(read)


@pytest.mark.parametrize(
    "method,path,kind",
    [
        ("GET", "/v2", "server"),
        ("GET", "/v2/health/live", "live"),
        ("GET", "/v2/health/ready", "ready"),
        ("GET", "/v2/models/digits", "model"),
        ("GET", "/v2/models/digits/ready", "model_ready"),
        ("GET", "/v2/models/digits/versions/3", "model"),
        ("GET", "/v2/models/digits/versions/3/ready", "model_ready"),
        ("POST", "/v2/models/digits/infer", "infer"),
        ("POST", "/v2/models/digits/versions/3/infer", "infer"),
    ],
)
def test_each_path_of_the_protocol_is_known(method: str, path: str, kind: str) -> None:
    assert Routes([CARD]).find(method, path).kind == kind


@pytest.mark.parametrize(
    "path,sentence",
    [
        ("/v2/models/digit", "model 'digit' is not served here"),
        ("/v2/models/digits/versions/4/infer", "version '4' of model 'digits' is not served here"),
        ("/v2/models/digits/config", "there is nothing at"),
        ("/v2/", "there is nothing at"),
        ("", "there is nothing at"),
    ],
)
def test_an_unknown_path_says_which_part_is_unknown(path: str, sentence: str) -> None:
    with pytest.raises(NotFoundError, match=sentence):
        Routes([CARD]).find("GET", path)


def test_a_wrong_method_names_the_right_one() -> None:
    with pytest.raises(MethodError) as refused:
        Routes([CARD]).find("GET", "/v2/models/digits/infer")
    reply = encode_error(refused.value)
    assert (reply.status, dict(reply.headers)) == (405, {b"allow": b"POST"})


def test_a_bug_is_500_and_says_nothing_of_itself() -> None:
    reply = encode_error(ZeroDivisionError("secret path"))
    assert (reply.status, b"secret" in reply.body) == (500, False)


def test_every_error_of_the_kit_has_a_status() -> None:
    kinds = [kind for module in (errors, protocol) for kind in vars(module).values() if _is_error(kind)]
    statuses = {kind.__name__: encode_error(kind("sentence")).status for kind in kinds}
    assert statuses["NotFoundError"] == 404
    assert statuses["InputError"] == statuses["SettingsError"] == 400
    assert statuses["VerificationError"] == 500
    assert set(statuses.values()) == {400, 401, 403, 404, 405, 413, 500, 503}


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, KitError)


def scope(client: str, *, path: str = "/v2", authorization: str | None = None) -> dict[str, Any]:
    headers = [(b"authorization", authorization.encode())] if authorization else []
    return {"path": path, "client": (client, 1234), "headers": headers}


def test_without_a_key_only_this_machine_is_answered() -> None:
    guard = Guard(key_sha256=None, local_addresses=frozenset({"10.0.0.5"}))
    for client in ("127.0.0.1", "::1", "10.0.0.5"):
        guard.admit(scope(client))
    for client in ("10.0.0.6", "127.0.0.1.example", ""):
        with pytest.raises(protocol.ForbiddenError):
            guard.admit(scope(client))
    with pytest.raises(protocol.ForbiddenError):
        guard.admit({"path": "/v2/health/live", "client": None, "headers": []})


def test_with_a_key_everybody_needs_it_except_for_health() -> None:
    digest = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"  # of b"key"
    guard = Guard(key_sha256=digest, local_addresses=frozenset())
    guard.admit(scope("10.0.0.6", authorization="Bearer key"))
    guard.admit(scope("10.0.0.6", path="/v2/health/live"))
    guard.admit(scope("10.0.0.6", path="/v2/health/ready"))
    for wrong in (None, "key", "Basic key", "Bearer", "Bearer ", "Bearer KEY", f"Bearer {digest}"):
        with pytest.raises(protocol.UnauthorizedError):
            guard.admit(scope("127.0.0.1", authorization=wrong))
