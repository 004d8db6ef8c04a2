"""Protobuf to tensors and back.

A request is parsed once and checked against a signature once its version is known. Answers are written as raw
bytes, which every client of the protocol reads. It knows no connection and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from kit.errors import InputError, nearest
from kit.inference.binary import decode_binary, encode_binary
from kit.inference.body import MAX_SHOWN_CHARS
from kit.inference.plan import InputPlan, Plan, plan_of, request_of
from kit.inference.request import (
    NO_PARAMETERS,
    InferRequest,
    Requested,
    as_field,
    check_parameters,
    checked_id,
)
from kit.signature import Signature
from kit.tensors import DTYPES, Tensors, check_tensor
from kit.wire import DATATYPES
from serve.calls import Answer
from serve.grpc import inference_pb2 as pb

#: Where a datatype's values lie when they are not raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcRequest:
    """An infer request that is parsed, and not yet checked against a signature.

    Args:
        message: What came.

    Raises:
        InputError: Its id is too long, or it asks by a parameter for what is not done here.
    """

    __slots__ = ("id", "message", "parameters")

    def __init__(self, message: pb.ModelInferRequest) -> None:
        self.message = message
        self.id = checked_id(message.id or None)
        self.parameters: Mapping[str, Any] = NO_PARAMETERS
        if message.parameters:
            self.parameters = plain(message.parameters)
            check_parameters(self.parameters)

    @classmethod
    def parse(cls, body: bytes) -> GrpcRequest:
        """Read a serialised ``ModelInferRequest``.

        Raises:
            InputError: It is none.
        """
        try:
            return cls(pb.ModelInferRequest.FromString(body))
        except DecodeError as error:
            raise InputError("the message is not a ModelInferRequest") from error

    def field(self, name: str) -> str | None:
        """Give the parameter that keeps a user on one version, as text; None without it."""
        return as_field(self.parameters.get(name))

    def decode(self, signature: Signature) -> InferRequest:
        """Check the request against a signature.

        Raises:
            InputError: A tensor is unknown, missing, or not what the signature allows; the message names
                it and the rule.
        """
        message = self.message
        plan = plan_of(signature)
        raw: Sequence[bytes] = message.raw_input_contents
        if raw and len(raw) != len(message.inputs):
            raise InputError(
                f"there are {len(message.inputs)} inputs and {len(raw)} raw_input_contents",
                hint="send one for every input, or none",
            )
        tensors: Tensors = {}
        for index, tensor in enumerate(message.inputs):
            name = _known(tensor.name, kind="input", valid=plan.by_name, seen=tensors)
            tensors[name] = _decoded(plan.by_name[name], tensor, raw[index] if raw else None)
        outputs = _requested(message, plan) if message.outputs else plan.binary_outputs
        if len(plan.inputs) == len(tensors) == 1:  # nothing to compare it with
            spec = plan.inputs[0].spec
            array = check_tensor(spec, tensors[spec.name])
            return InferRequest(self.id, {spec.name: array}, len(array), outputs)
        return request_of(signature, tensors, identity=self.id, outputs=outputs)


def encode_answer(answer: Answer) -> pb.ModelInferResponse:
    """Write an answer, its tensors as raw bytes.

    The parameters say which release chose the version, and what answered in its place.
    """
    request, card = answer.request, answer.card
    message = pb.ModelInferResponse(model_name=card.name, model_version=card.version, id=request.id or "")
    parameters = message.parameters
    parameters["release"].int64_param = answer.release
    parameters["version"].string_param = card.version
    if answer.fallback:
        parameters["fallback"].string_param = answer.fallback
    if answer.cached:
        parameters["cache"].string_param = "hit"
    outputs, contents = message.outputs, message.raw_output_contents
    for spec, _ in request.outputs:
        array = answer.outputs[spec.name]
        outputs.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=array.shape)
        contents.append(bytes(encode_binary(spec, array)))
    return message


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Give parameters as Python values; those without a value are left out."""
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in parameters.items())
    return {name: getattr(value, choice) for name, value, choice in chosen if choice}


def _known(name: str, *, kind: str, valid: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    shown = name[:MAX_SHOWN_CHARS]
    if name not in valid:
        raise InputError(f"{shown!r} is not an {kind} of this model", hint=nearest(shown, valid))
    if name in seen:
        raise InputError(f"{kind} {shown!r} is there twice")
    return name


def _decoded(plan: InputPlan, tensor: Any, raw: bytes | None) -> np.ndarray:
    """Make an array of one input; whether its values are allowed is the signature's to say."""
    what = f"input {plan.name!r}"
    if tensor.datatype != plan.datatype:
        shown = tensor.datatype[:MAX_SHOWN_CHARS]
        raise InputError(f"{what} has datatype {shown!r}; {plan.datatype} is expected")
    if tensor.parameters:
        _refuse_memory(tensor, what=what)
    shape = tuple(tensor.shape)
    if shape[1:] != plan.row_shape or not shape or shape[0] < 0:
        raise InputError(
            f"{what} has shape {list(shape[:16])}; {list(plan.spec.shape)} is expected "
            "(-1 stands for any number of rows)"
        )
    if not shape[0]:
        raise InputError(f"{what} has no rows", hint="send at least one row")
    if raw is None:
        return _from_contents(plan, tensor.contents, shape)
    if tensor.HasField("contents"):
        raise InputError(f"{what} has both contents and raw_input_contents", hint="send one of them")
    return decode_binary(plan.spec, raw, shape=shape, what=what)


def _from_contents(plan: InputPlan, contents: Any, shape: tuple[int, ...]) -> np.ndarray:
    what = f"input {plan.name!r}"
    field = _CONTENTS.get(plan.datatype)
    if field is None:
        raise InputError(
            f"{what} is {plan.datatype}, which has no contents", hint="send it in raw_input_contents"
        )
    values = getattr(contents, field)
    count = shape[0] * plan.row_size
    if len(values) != count:
        raise InputError(f"{what} has {len(values)} values in {field}; its shape {list(shape)} says {count}")
    if plan.datatype == "BYTES":
        return _texts(values, what=what).reshape(shape)
    dtype = DTYPES[plan.spec.dtype]
    array = np.array(values)
    narrow = array.astype(dtype)
    if dtype.itemsize < 4 and dtype.kind in "iu" and (narrow != array).any():
        index = int((narrow != array).argmax())
        row = index // plan.row_size
        raise InputError(f"{what}, row {row}: {values[index]} does not fit {plan.datatype}")
    return narrow.reshape(shape)


def _texts(values: Sequence[bytes], *, what: str) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        try:
            array[index] = str(value, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{what}: string {index} is not UTF-8") from error
    return array


def _requested(message: pb.ModelInferRequest, plan: Plan) -> tuple[Requested, ...]:
    chosen: dict[str, Requested] = {}
    for output in message.outputs:
        name = _known(output.name, kind="output", valid=plan.outputs, seen=chosen)
        what = f"output {name!r}"
        _refuse_memory(output, what=what)
        if "classification" in output.parameters:
            raise InputError(
                f"{what} cannot be turned into classes here", hint="POST /predict/MODEL names them"
            )
        chosen[name] = Requested(plan.outputs[name], True)
    return tuple(chosen.values())


def _refuse_memory(tensor: Any, *, what: str) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise InputError(f"{what} lies in shared memory, which is not read here", hint="send its values")
