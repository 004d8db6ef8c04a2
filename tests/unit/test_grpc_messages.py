"""Protobuf to tensors and back: no server, no model."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import InputError
from kit.inference.card import Card
from kit.signature import Signature
from kit.tensors import DTYPES, TensorSpec
from kit.wire import DATATYPES
from serve.calls import Answer
from serve.grpc import inference_pb2 as pb
from serve.grpc.callers import left_s_of, peer_of
from serve.grpc.messages import GrpcRequest, encode_answer

FIELDS = {
    "bool": "bool_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "int8": "int_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "uint8": "uint_contents",
}
NUMERIC = [*FIELDS, "float16"]


def signature_of(dtype: str, **changes: Any) -> Signature:
    spec = TensorSpec("x", dtype, (-1, 2), **changes)
    return Signature(
        "regression", (spec,), (TensorSpec("y", dtype, (-1, 2)), TensorSpec("z", "int64", (-1,)))
    )


def asking(datatype: str, **changes: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(inputs=[{"name": "x", "datatype": datatype, "shape": [2, 2], **changes}])


def extremes(dtype: str) -> np.ndarray:
    kind = DTYPES[dtype]
    if kind.kind == "b":
        return np.array([[True, False], [False, True]])
    limits = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    return np.array([[limits.min, limits.max], [0, 1]], dtype=kind)


@pytest.mark.parametrize("dtype", NUMERIC)
def test_raw_bytes_are_the_tensor(dtype: str) -> None:
    wanted = extremes(dtype)
    message = asking(DATATYPES[dtype])
    message.raw_input_contents.append(wanted.tobytes())
    found = GrpcRequest(message).decode(signature_of(dtype)).inputs["x"]
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", FIELDS)
def test_typed_contents_are_the_tensor(dtype: str) -> None:
    wanted = extremes(dtype)
    message = asking(DATATYPES[dtype], contents={FIELDS[dtype]: wanted.reshape(-1).tolist()})
    found = GrpcRequest(message).decode(signature_of(dtype)).inputs["x"]
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_half_floats_have_no_typed_contents() -> None:
    with pytest.raises(InputError, match="'x' is FP16, which has no contents"):
        GrpcRequest(asking("FP16", contents={"fp32_contents": [1] * 4})).decode(signature_of("float16"))


@pytest.mark.parametrize("is_raw", [True, False])
def test_strings_are_utf_8(is_raw: bool) -> None:
    texts = ["é", "", "b" * 300, "☃"]
    encoded = [text.encode() for text in texts]
    if is_raw:
        message = asking("BYTES")
        message.raw_input_contents.append(b"".join(struct.pack("<I", len(each)) + each for each in encoded))
    else:
        message = asking("BYTES", contents={"bytes_contents": encoded})
    found = GrpcRequest(message).decode(signature_of("string", nullable=True)).inputs["x"]
    assert found.reshape(-1).tolist() == texts


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"name": "w"}, "'w' is not an input of this model"),
        ({"datatype": "FP64"}, "input 'x' has datatype 'FP64'; FP32 is expected"),
        ({"shape": [4]}, r"input 'x' has shape \[4\]; \[-1, 2\] is expected"),
        ({"shape": [-1, 2]}, r"input 'x' has shape \[-1, 2\]"),
        ({"shape": [0, 2]}, "input 'x' has no rows"),
        ({"shape": [1 << 40, 2]}, "input 'x' has 4 values in fp32_contents; its shape .* says 2199023255552"),
        ({"contents": {"fp64_contents": [1] * 4}}, "input 'x' has 0 values in fp32_contents"),
        ({"contents": {"fp32_contents": [1, 2, float("nan"), 4]}}, "input 'x', row 1"),
        ({"parameters": {"shared_memory_region": {"string_param": "a"}}}, "lies in shared memory"),
    ],
)
def test_what_is_wrong_with_an_input_is_named(changes: dict[str, Any], sentence: str) -> None:
    message = asking(**{"datatype": "FP32", "contents": {"fp32_contents": [1, 2, 3, 4]}, **changes})
    with pytest.raises(InputError, match=sentence):
        GrpcRequest(message).decode(signature_of("float32"))


def test_a_number_too_large_for_a_narrow_type_is_refused() -> None:
    message = asking("UINT8", contents={"uint_contents": [1, 2, 300, 4]})
    with pytest.raises(InputError, match="input 'x', row 1: 300 does not fit UINT8"):
        GrpcRequest(message).decode(signature_of("uint8"))


def test_raw_and_typed_contents_do_not_mix() -> None:
    message = asking("FP32", contents={"fp32_contents": [1, 2, 3, 4]})
    message.raw_input_contents.append(bytes(16))
    with pytest.raises(InputError, match="both contents and raw_input_contents"):
        GrpcRequest(message).decode(signature_of("float32"))
    message.raw_input_contents.append(bytes(16))
    with pytest.raises(InputError, match="there are 1 inputs and 2 raw_input_contents"):
        GrpcRequest(message).decode(signature_of("float32"))


def test_the_outputs_asked_for_are_answered_in_their_order() -> None:
    signature = signature_of("float32")
    message = asking("FP32", contents={"fp32_contents": [1, 2, 3, 4]})
    message.id = "a"
    message.outputs.add(name="z")
    message.outputs.add(name="y")
    request = GrpcRequest(message).decode(signature)
    outputs = {"y": request.inputs["x"], "z": np.array([5, 6])}
    answer = encode_answer(
        Answer(request, Card("tiny", 3, "ab", "onnxruntime", signature), outputs, 7, "", False)
    )
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "3", "a")
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("z", "INT64", [2]),
        ("y", "FP32", [2, 2]),
    ]
    assert np.frombuffer(answer.raw_output_contents[0], "<i8").tolist() == [5, 6]
    assert np.frombuffer(answer.raw_output_contents[1], "<f4").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "output,sentence",
    [
        (["y", "y"], "output 'y' is there twice"),
        (["q"], "'q' is not an output of this model"),
    ],
)
def test_what_is_wrong_with_an_output_is_named(output: list[str], sentence: str) -> None:
    message = asking("FP32", contents={"fp32_contents": [1, 2, 3, 4]})
    message.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in output)
    with pytest.raises(InputError, match=sentence):
        GrpcRequest(message).decode(signature_of("float32"))


def test_classes_cannot_be_asked_for_as_an_output() -> None:
    message = asking("FP32", contents={"fp32_contents": [1, 2, 3, 4]})
    message.outputs.add(name="y").parameters["classification"].int64_param = 1
    with pytest.raises(InputError, match="cannot be turned into classes here"):
        GrpcRequest(message).decode(signature_of("float32"))


def test_an_answer_says_what_answered_in_the_versions_place() -> None:
    signature = signature_of("float32")
    request = GrpcRequest(asking("FP32", contents={"fp32_contents": [1] * 4})).decode(signature)
    card = Card("tiny", 3, "ab", "onnxruntime", signature)
    outputs = {"y": request.inputs["x"], "z": np.array([5, 6])}
    parameters = encode_answer(Answer(request, card, outputs, 7, "constant", True)).parameters
    assert {name: str(value).strip() for name, value in parameters.items()} == {
        "release": "int64_param: 7",
        "version": 'string_param: "3"',
        "fallback": 'string_param: "constant"',
        "cache": 'string_param: "hit"',
    }


def test_a_parameter_keeps_a_user_on_a_version() -> None:
    message = asking("FP32")
    message.parameters["user"].int64_param = 42
    message.parameters["region"].string_param = "north"
    message.parameters["empty"].SetInParent()
    request = GrpcRequest(message)
    assert (request.field("user"), request.field("region"), request.field("other")) == ("42", "north", None)
    assert request.parameters == {"user": 42, "region": "north"}


def test_an_id_of_a_book_is_refused() -> None:
    with pytest.raises(InputError, match="'id' is not a string of at most 256"):
        GrpcRequest(pb.ModelInferRequest(id="a" * 257))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    try:
        request = GrpcRequest.parse(body).decode(signature_of("float32"))
    except InputError:
        return
    assert request.inputs


@pytest.mark.parametrize(
    "text,address",
    [
        ("ipv4:127.0.0.1:4711", "127.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[fe80::1%25eth0]:4711", "fe80::1"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:4711", "10.0.0.7"),
        ("unix:/run/kit", None),
        ("unknown", None),
    ],
)
def test_a_peer_is_an_address_without_its_port(text: str, address: str | None) -> None:
    assert peer_of(text) == address


class Remaining(NamedTuple):
    left_s: float | None

    def time_remaining(self) -> float | None:
        return self.left_s


@pytest.mark.parametrize(
    "client_s,timeout_s,bound_s",
    [(None, None, 30), (5, None, 5), (60, None, 30), (5, 2, 2), (5, 9, 5), (None, 9, 9)],
)
def test_the_first_of_three_bounds_is_the_deadline(
    client_s: float | None, timeout_s: float | None, bound_s: float
) -> None:
    assert left_s_of(Remaining(client_s), longest_s=30, timeout_s=timeout_s) == bound_s
