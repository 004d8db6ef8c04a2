"""The binary tensor data extension in both directions."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import InputError
from kit.inference.binary import decode_binary, encode_binary
from kit.signature import Signature
from kit.tensors import DTYPES, TensorSpec
from kit.wire import DATATYPES
from serve.protocol import Card, InferRequest, encode_answer, parse_infer, read_header_length
from serve.protocol.body import read_json, write_json

SIGNATURE = Signature(
    "regression",
    (TensorSpec("x", "float32", (-1, 2), nullable=True), TensorSpec("word", "string", (-1, 1))),
    (TensorSpec("value", "float32", (-1, 2)), TensorSpec("word", "string", (-1,))),
)
ONE = Signature(
    "regression", (TensorSpec("x", "int16", (-1, 2), minimum=0),), (TensorSpec("value", "float64", (-1,)),)
)
X = np.array([[1.5, 2], [3, 4]], dtype=np.float32)
WORDS = b"\x02\0\0\0\xc3\xa4\x01\0\0\0b"


def sent(*, x: Any = None, word: Any = None, tail: bytes = X.tobytes() + WORDS, **more: Any) -> InferRequest:
    inputs = [
        {
            "name": "x",
            "datatype": "FP32",
            "shape": [2, 2],
            "parameters": {"binary_data_size": 16},
            **(x or {}),
        },
        {
            "name": "word",
            "datatype": "BYTES",
            "shape": [2, 1],
            "parameters": {"binary_data_size": len(WORDS)},
            **(word or {}),
        },
    ]
    header = json.dumps({"inputs": inputs, **more}).encode()
    return parse_infer(header + tail, header_length=len(header), read=read_json).decode(SIGNATURE)


def test_bytes_after_the_json_are_the_tensors_in_their_order() -> None:
    read = sent()
    np.testing.assert_array_equal(read.inputs["x"], X)
    assert read.inputs["word"].tolist() == [["ä"], ["b"]]
    assert read.inputs["x"].flags.aligned


def test_json_and_bytes_may_stand_side_by_side() -> None:
    read = sent(word={"parameters": {}, "data": ["a", "b"]}, tail=X.tobytes())
    assert read.inputs["word"].tolist() == [["a"], ["b"]]


@pytest.mark.parametrize("dtype", list(DATATYPES))
def test_every_dtype_survives_as_bytes(dtype: str) -> None:
    spec = TensorSpec("t", dtype, (-1, 2))
    values: list[Any] = ["ä\0", "", "b" * 300, "\U0001f600"] if dtype == "string" else [0, 1, 1, 0]
    array = np.array(values, dtype=DTYPES[dtype]).reshape(2, 2)
    raw = bytes(encode_binary(spec, array))
    for shift in range(3):
        buffer = memoryview(b" " * shift + raw)[shift:]
        for shape in ((2, 2), None):
            back = decode_binary(spec, buffer, shape=shape, what="t")
            np.testing.assert_array_equal(back, array)
            assert (back.dtype, back.flags.aligned) == (array.dtype, True)


def test_numbers_are_little_endian() -> None:
    spec = TensorSpec("t", "int32", (-1,))
    assert bytes(encode_binary(spec, np.array([1], np.int32))) == b"\x01\0\0\0"
    assert bytes(encode_binary(spec, np.array([1], ">i4"))) == b"\x01\0\0\0"


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"tail": b""}, "input 'x' has 16 bytes, but 0 are left of the body"),
        ({"tail": X.tobytes()}, "input 'word' has 11 bytes, but 0 are left"),
        ({"tail": X.tobytes() + WORDS + b"!"}, "28 bytes follow the JSON, but its inputs name 27"),
        ({"x": {"shape": [1, 2]}}, r"input 'x' has 16 bytes; its shape \[1, 2\] says 8"),
        ({"x": {"shape": [10**18, 2]}}, "input 'x' has 16 bytes; its shape"),
        ({"x": {"datatype": "FP64"}}, "input 'x' has datatype 'FP64'; FP32 is expected"),
        ({"x": {"data": [1]}}, "has both 'data' and binary_data_size"),
        ({"x": {"parameters": {"binary_data_size": -1}}}, "is not a number of bytes"),
        ({"x": {"parameters": {"binary_data_size": 1e9}}}, "is not a number of bytes"),
        ({"x": {"parameters": {"binary_data_size": True}}}, "is not a number of bytes"),
        ({"x": {"parameters": {"binary_data_size": 2**62}}}, "but 27 are left"),
        ({"x": {"parameters": {}}}, "has no 'data'"),
        ({"tail": X.tobytes() + b"\x02\0\0\0\xff\xff\x01\0\0\0b"}, "input 'word': string 0 is not UTF-8"),
        ({"tail": X.tobytes() + b"\xff\xff\xff\xff" + WORDS[4:]}, "string 0, which says it has 4294967295"),
        ({"word": {"shape": [1, 1]}}, "input 'word' has more than 1 strings"),
        ({"word": {"shape": [3, 1]}}, "input 'word' has 2 strings; its shape"),
        ({"tail": np.full((2, 2), np.inf, np.float32).tobytes() + WORDS}, "row 0: infinity is not allowed"),
    ],
)
def test_wrong_sizes_and_bytes_are_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        sent(**changes)


def test_nan_is_a_missing_value_where_one_may_be() -> None:
    assert np.isnan(sent(tail=np.full((2, 2), np.nan, np.float32).tobytes() + WORDS).inputs["x"]).all()


def test_a_size_without_the_header_is_refused() -> None:
    entry = {"name": "x", "datatype": "INT16", "shape": [1, 2], "parameters": {"binary_data_size": 4}}
    with pytest.raises(InputError, match="but all of the body is JSON"):
        parse_infer(json.dumps({"inputs": [entry]}).encode(), read=read_json).decode(ONE)


@pytest.mark.parametrize("length", [3, 10**15])
def test_a_header_beyond_the_body_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="but the body has 2 bytes"):
        parse_infer(b"{}", header_length=length, read=read_json)


@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"+2", b"9" * 40, b"\xb2", b" 2", b"0x1"])
def test_a_header_that_is_no_number_is_refused(value: bytes) -> None:
    with pytest.raises(InputError, match="not a number of bytes"):
        read_header_length(value)
    assert (read_header_length(None), read_header_length(b"012")) == (None, 12)


def test_a_body_without_json_is_the_one_input() -> None:
    read = parse_infer(struct.pack("<4h", 1, 2, 3, 4), header_length=0, read=read_json).decode(ONE)
    assert (read.inputs["x"].tolist(), read.n_rows) == ([[1, 2], [3, 4]], 2)
    assert all(each.binary for each in read.outputs)
    for body in (b"", b"123"):
        with pytest.raises(InputError, match="which are not whole rows of 4 bytes"):
            parse_infer(body, header_length=0, read=read_json).decode(ONE)
    with pytest.raises(InputError, match="row 0: -1 is below the minimum"):
        parse_infer(struct.pack("<2h", 1, -1), header_length=0, read=read_json).decode(ONE)
    with pytest.raises(InputError, match="this model has 2"):
        parse_infer(b"12345678", header_length=0, read=read_json).decode(SIGNATURE)


def test_only_0_and_1_are_truth_values() -> None:
    with pytest.raises(InputError, match="the byte 2, which is neither"):
        decode_binary(TensorSpec("t", "bool", (-1,)), b"\0\1\2", shape=(3,), what="t")


def answered(**more: Any) -> tuple[dict[str, Any], bytes, dict[bytes, bytes]]:
    card = Card("m", 2, "", "onnxruntime", SIGNATURE)
    answers = {"value": X, "word": np.array(["ä", "b"], dtype=object)}
    reply = encode_answer(sent(**more), card, answers, write=write_json)
    headers = dict(reply.headers)
    length = int(headers.get(b"inference-header-content-length", len(reply.body)))
    return json.loads(reply.body[:length]), reply.body[length:], headers


def test_all_outputs_come_as_bytes_when_the_request_says_so() -> None:
    value, tail, headers = answered(parameters={"binary_data_output": True}, id="a")
    assert headers[b"content-type"] == b"application/octet-stream"
    assert [output["parameters"] for output in value["outputs"]] == [
        {"binary_data_size": 16},
        {"binary_data_size": 11},
    ]
    assert (tail, value["id"]) == (X.tobytes() + WORDS, "a")
    assert not any("data" in output for output in value["outputs"])


def test_an_output_overrides_what_the_request_says() -> None:
    outputs = [{"name": "word"}, {"name": "value", "parameters": {"binary_data": False}}]
    value, tail, _ = answered(parameters={"binary_data_output": True}, outputs=outputs)
    assert [output["name"] for output in value["outputs"]] == ["word", "value"]
    assert (value["outputs"][1]["data"], tail) == ([1.5, 2, 3, 4], WORDS)
    value, tail, _ = answered(
        outputs=[{"name": "value", "parameters": {"binary_data": True}}, {"name": "word"}]
    )
    assert (tail, value["outputs"][1]["data"]) == (X.tobytes(), ["ä", "b"])


def test_bytes_are_answered_alike_with_and_without_the_short_way() -> None:
    card = Card("m", 2, "", "onnxruntime", ONE)
    answers = {"value": np.array([0.5, 1.5])[::-1]}
    short = parse_infer(struct.pack("<4h", 1, 2, 3, 4), header_length=0, read=read_json).decode(ONE)
    long = short._replace(outputs=(short.outputs[0]._replace(),))
    assert encode_answer(short, card, answers, write=write_json) == encode_answer(
        long, card, answers, write=write_json
    )
    assert encode_answer(short, card, answers, write=write_json).body.endswith(struct.pack("<2d", 1.5, 0.5))


@given(st.binary(max_size=80), st.integers(0, 90))
def test_no_bytes_with_a_header_end_in_a_traceback(body: bytes, length: int) -> None:
    for signature in (SIGNATURE, ONE):
        try:
            parse_infer(body, header_length=length, read=read_json).decode(signature)
        except InputError:
            continue
        assert (signature, length) == (ONE, 0)


@given(st.binary(max_size=60), st.lists(st.integers(0, 5), max_size=3))
def test_no_bytes_of_strings_end_in_a_traceback(buffer: bytes, shape: list[int]) -> None:
    spec = TensorSpec("word", "string", (-1, 1))
    for wanted in (shape, None):
        try:
            words = decode_binary(spec, buffer, shape=wanted, what="word")
        except InputError:
            continue
        assert wanted is None or list(words.shape) == wanted
