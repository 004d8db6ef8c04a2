"""The Open Inference Protocol v2 over REST: a body becomes a request, answers become a body.

JSON, and JSON followed by binary tensors in both directions. Bytes in, bytes out: it opens no socket, runs
no model and knows neither Ray nor ASGI. What it makes of a body is final; what the model thinks of the
tensors is the signature's.

Sources: Open Inference Protocol v2, kserve/open-inference-protocol, ``inference_rest.md``; Triton Inference
Server, "Binary Tensor Data Extension".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kit.errors import InputError, nearest
from kit.inference.binary import decode_binary, encode_binary
from kit.inference.body import MAX_SHOWN_CHARS, check_keys
from kit.inference.card import Card, Reply
from kit.inference.plan import InputPlan, Plan, output_head, plan_of
from kit.inference.request import (
    NO_PARAMETERS,
    InferRequest,
    Requested,
    as_field,
    check_parameters,
    checked_id,
)
from kit.signature import Signature
from kit.tensors import Tensors
from kit.wire import check_object, check_shape, decode_tensor

#: ``model_name`` and ``model_version`` are what some clients repeat of the path; they are not looked at.
_REQUEST_KEYS = frozenset({"id", "parameters", "inputs", "outputs", "model_name", "model_version"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})
_INPUT_KEYS = frozenset({"name", "datatype", "shape", "data", "parameters"})
Read = Callable[[bytes], Any]
Write = Callable[[Any], bytes]

_NO_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


class TensorRequest:
    """A request of the protocol, parsed.

    Attributes:
        id: What the client calls it.
        parameters: Its own parameters.
    """

    __slots__ = ("_binary", "_body", "_inputs", "_outputs", "id", "parameters")

    def __init__(self, body: bytes, *, header_length: int | None, read: Read) -> None:
        self._body = body
        self._binary: memoryview | None = None
        self._inputs: Any = None
        self._outputs: Any = None
        self.id: str | None = None
        self.parameters = NO_PARAMETERS
        if header_length is not None:
            if header_length > len(body):
                raise InputError(
                    f"inference-header-content-length is {header_length}, but the body has {len(body)} bytes"
                )
            self._binary = memoryview(body)[header_length:]
            if not header_length:  # nothing but the bytes of the one input
                return
            self._body = body = body[:header_length]
        value = read(body)
        if type(value) is not dict or not _REQUEST_KEYS.issuperset(value) or "inputs" not in value:
            check_object(value, what="the request", allowed=_REQUEST_KEYS, required=("inputs",))
        inputs = self._inputs = value["inputs"]
        if type(inputs) is not list or not inputs or type(inputs[0]) is not dict:
            raise _no_entries(inputs, what="inputs")
        n_colons = body.count(b":")
        if (len(inputs) > 1 or n_colons != len(value) + len(inputs[0])) and n_colons != _n_keys(value):
            check_keys(body, value)
        self._outputs = value.get("outputs")
        if "id" in value:
            self.id = checked_id(value["id"])
        if value.get("parameters") is not None:
            check_object(value, what="the request", allowed=_REQUEST_KEYS, required=())
            check_parameters(value["parameters"])
            self.parameters = value["parameters"]

    def field(self, name: str) -> str | None:
        """Give one of the parameters as a release's sticky value; None where it is not there."""
        return as_field(self.parameters.get(name))

    def decode(self, signature: Signature) -> InferRequest:
        """Check the request against a signature.

        Raises:
            InputError: A tensor breaks the signature or is not what its bytes say.
        """
        plan = plan_of(signature)
        if self._inputs is None:
            return self._decode_raw(plan)
        body, binary = self._body, self._binary
        usual = binary is None and not _may_hold_truth(body)
        if usual and len(plan.inputs) == len(self._inputs) == 1:
            array = plan.inputs[0].usual(self._inputs[0])
            if array is not None:
                return InferRequest(self.id, {plan.inputs[0].name: array}, len(array), self._requested(plan))
        found: Tensors = {}
        place = 0
        for index, entry in enumerate(self._inputs):
            input_plan = _input_of(entry, index=index, plan=plan, found=found)
            array = input_plan.usual(entry) if usual else None
            if array is None:
                n_bytes = _binary_size(entry)
                if n_bytes is None:
                    array = decode_tensor(input_plan.spec, entry, kind="input")
                else:
                    array = self._slice(input_plan, entry, place=place, n_bytes=n_bytes)
                    place += n_bytes
                array = input_plan.check(array)
            found[input_plan.name] = array
        if binary is not None and place != len(binary):
            raise InputError(
                f"{len(binary)} bytes follow the JSON, but its inputs name {place}",
                hint="give each binary input its binary_data_size",
            )
        if len(plan.inputs) > 1 or len(found) != 1:
            found = signature.validate(found)
        n_rows = len(found[plan.inputs[0].name])
        return InferRequest(self.id, found, n_rows, self._requested(plan))

    def _slice(self, plan: InputPlan, entry: Mapping[str, Any], *, place: int, n_bytes: int) -> np.ndarray:
        """Read one input from the bytes after the JSON."""
        what = f"input {plan.name!r}"
        if "data" in entry and entry["data"] is not None:
            raise InputError(f"{what} has both 'data' and binary_data_size")
        if self._binary is None:
            raise InputError(
                f"{what} has a binary_data_size, but all of the body is JSON",
                hint="send the header Inference-Header-Content-Length",
            )
        end = place + n_bytes
        if end > len(self._binary):
            raise InputError(
                f"{what} has {n_bytes} bytes, but {max(len(self._binary) - place, 0)} are left of the body"
            )
        if "datatype" not in entry or "shape" not in entry:
            check_object(entry, what=what, allowed=_INPUT_KEYS, required=("datatype", "shape"))
        shape = check_shape(plan.spec, entry, what=what)
        return decode_binary(plan.spec, self._binary[place:end], shape=shape, what=what)

    def _decode_raw(self, plan: Plan) -> InferRequest:
        """Read a body that is one tensor; its rows follow from its size."""
        if len(plan.inputs) != 1:
            raise InputError(
                f"a body without JSON is one input, and this model has {len(plan.inputs)}",
                hint="send the JSON before the bytes, with their inference-header-content-length",
            )
        input_plan = plan.inputs[0]
        spec = input_plan.spec
        buffer = self._binary if self._binary is not None else memoryview(b"")
        array = decode_binary(spec, buffer, shape=None, what=f"input {spec.name!r}")
        checked = {spec.name: input_plan.check(array)}
        return InferRequest(None, checked, len(array), plan.binary_outputs)

    def _requested(self, plan: Plan) -> tuple[Requested, ...]:
        binary = self.parameters.get("binary_data_output", False)
        if self._outputs is None:
            return plan.binary_outputs if binary else plan.json_outputs
        if type(self._outputs) is not list or not self._outputs:
            raise _no_entries(self._outputs, what="outputs")
        chosen: dict[str, Requested] = {}
        for index, entry in enumerate(self._outputs):
            check_object(entry, what=f"entry {index} of 'outputs'", allowed=_OUTPUT_KEYS, required=("name",))
            name = _name(entry, kind="output", valid=plan.outputs, seen=chosen)
            chosen[name] = Requested(plan.outputs[name], _wants_binary(entry, name, default=binary))
        return tuple(chosen.values())


def parse_infer(body: bytes, *, read: Read, header_length: int | None = None) -> TensorRequest:
    """Read the body of an infer request.

    Args:
        body: What was sent.
        read: Makes a value of JSON: strictly, or it raises ``InputError``.
        header_length: From ``inference-header-content-length``: how many of the bytes are JSON; 0 when the
            body is the bytes of the one input, None when it is all JSON.

    Raises:
        InputError: The body is not JSON, has a key twice or one the protocol does not know.
    """
    return TensorRequest(body, header_length=header_length, read=read)


def encode_answer(
    request: InferRequest,
    card: Card,
    answers: Mapping[str, np.ndarray],
    *,
    write: Write,
    parameters: Mapping[str, Any] | None = None,
) -> Reply:
    """Write the answer to an infer request.

    Args:
        request: What was asked.
        card: The version that answered.
        answers: Every output of the signature by name, shape (n_rows, ...); JSON writes NaN as null.
        write: Makes JSON of values and arrays; NaN becomes null. Arrays it cannot write raise ``TypeError``.
        parameters: What else is to be said of the answer, such as that it is a fallback.
    """
    plan = plan_of(card.signature)
    parts: list[bytes] = [card.head]
    if request.id is not None:
        parts += (b',"id":', write(request.id))
    if parameters:
        parts += (b',"parameters":', write(parameters))
    if request.outputs is plan.json_outputs:
        frames = plan.frames.get(request.n_rows) or plan.frame(request.n_rows)
        for name, frame in zip(plan.output_names, frames):
            array = answers[name]
            if array.ndim != 1:
                array = array.reshape(-1)
            parts.append(frame)
            try:
                parts.append(write(array))
            except TypeError:
                parts.append(_json_data(array, write))
        parts.append(b"}]}")
        return Reply(200, b"".join(parts))
    if request.outputs is plan.binary_outputs:
        frame = plan.binary_frames.get(request.n_rows) or plan.binary_frame(request.n_rows)
        if frame:
            parts.append(frame)
            tail = [encode_binary(spec, answers[spec.name]) for spec in plan.outputs.values()]
            return _with_tail(b"".join(parts), tail)
    return _chosen(request.outputs, answers, parts, write)


def _with_tail(header: bytes, tail: list[bytes | memoryview]) -> Reply:
    """Put bytes after the JSON that describes them."""
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", b"%d" % len(header)),
    )
    return Reply(200, b"".join((header, *tail)), headers)


def _chosen(
    outputs: tuple[Requested, ...], answers: Mapping[str, np.ndarray], parts: list[bytes], write: Write
) -> Reply:
    """Write the outputs that were asked for, some of them as bytes after the JSON."""
    opening = b',"outputs":['
    tail: list[bytes | memoryview] = []
    for spec, binary in outputs:
        array = answers[spec.name]
        parts += (opening, output_head(spec, len(array)))
        opening = b","
        if binary:
            raw = encode_binary(spec, array)
            parts.append(b',"parameters":{"binary_data_size":%d}}' % len(raw))
            tail.append(raw)
        else:
            parts += (b',"data":', _json_data(array, write), b"}")
    parts.append(b"]}")
    header = b"".join(parts)
    return _with_tail(header, tail) if any(each.binary for each in outputs) else Reply(200, header)


def _may_hold_truth(body: bytes) -> bool:
    """Say whether true or false may stand in a body; one letter is found ten times as fast as a word."""
    return (b"r" in body and b"true" in body) or (b"l" in body and b"false" in body)


def _json_data(array: np.ndarray, write: Write) -> bytes:
    """Write values that ``write`` may not take as they are: strings, and such as do not lie side by side."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return write(flat.tolist() if flat.dtype == object else flat)


def _n_keys(value: Mapping[str, Any]) -> int:
    """Count a request's keys where they belong."""
    count = len(value) + _size(value.get("parameters"))
    for entries in (value["inputs"], value.get("outputs")):
        if type(entries) is list:
            for entry in entries:
                if type(entry) is dict:
                    count += len(entry) + _size(entry.get("parameters"))
    return count


def _size(value: object) -> int:
    return len(value) if isinstance(value, dict) else 0


def _no_entries(value: object, *, what: str) -> InputError:
    if isinstance(value, list) and value:
        return InputError(f"entry 0 of {what!r} is not an object")
    return InputError(f"{what!r} must be a list of at least one object")


def _input_of(entry: Any, *, index: int, plan: Plan, found: Tensors) -> InputPlan:
    """Find which input an entry is."""
    name = entry.get("name") if type(entry) is dict else None
    input_plan = plan.by_name.get(name) if type(name) is str else None
    if input_plan is None or name in found or not _INPUT_KEYS.issuperset(entry):
        check_object(entry, what=f"entry {index} of 'inputs'", allowed=_INPUT_KEYS, required=("name",))
        return plan.by_name[_name(entry, kind="input", valid=plan.by_name, seen=found)]
    return input_plan


def _name(entry: Mapping[str, Any], *, kind: str, valid: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    name = entry["name"]
    if not isinstance(name, str):
        raise InputError(f"the 'name' of an {kind} is not a string")
    shown = name[:MAX_SHOWN_CHARS]
    if name not in valid:
        raise InputError(f"{shown!r} is not an {kind} of this model", hint=nearest(shown, valid))
    if name in seen:
        raise InputError(f"{kind} {shown!r} is there twice")
    return name


def _binary_size(entry: Mapping[str, Any]) -> int | None:
    """Give how many bytes of an input follow the JSON; None when it is in the JSON."""
    parameters = entry.get("parameters")
    if not parameters:
        return None
    what = f"input {entry['name']!r}"
    if type(parameters) is not dict:
        check_object(entry, what=what, allowed=_INPUT_KEYS, required=())
    size = parameters.get("binary_data_size")
    if size is None:
        _refuse_memory(parameters, what=what)
        return None
    if type(size) is not int or size < 0:
        raise InputError(f"the binary_data_size of {what} is not a number of bytes")
    return size


def _wants_binary(entry: Mapping[str, Any], name: str, *, default: bool) -> bool:
    parameters = entry.get("parameters")
    if not parameters:
        return default
    what = f"output {name!r}"
    _refuse_memory(parameters, what=what)
    if parameters.get("classification"):
        raise InputError(f"{what} cannot be turned into classes here", hint="POST /predict/MODEL names them")
    binary = parameters.get("binary_data", default)
    if type(binary) is not bool:
        raise InputError(f"the binary_data of {what} is not true or false")
    return binary


def _refuse_memory(parameters: Mapping[str, Any], *, what: str) -> None:
    if any(name in parameters for name in _NO_MEMORY):
        raise InputError(f"{what} lies in shared memory, which is not read here", hint="send its values")
