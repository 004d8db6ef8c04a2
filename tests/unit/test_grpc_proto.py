"""The generated code and the .proto it was generated from say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from serve.grpc import inference_pb2 as pb

PROTO = Path(pb.__file__).with_name("inference.proto")
_SCALARS = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}
_BLOCK = re.compile(r"(message|enum|oneof|service) (\w+) \{")
_RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\) \{\}")
_FIELD = re.compile(r"(repeated )?(map<\w+, \w+>|\w+) (\w+) = (\d+);")
_VALUE = re.compile(r"(\w+) = (\d+);")


def written() -> Iterator[str]:
    """Say what the .proto declares, one line each."""
    opened: list[tuple[str, str]] = []
    for line in PROTO.read_text(encoding="utf-8").splitlines():
        code = line.partition("//")[0].strip()
        inside = opened[-1][0] if opened else ""
        place = ".".join(name for kind, name in opened if kind != "oneof")
        if block := _BLOCK.match(code):
            if not code.endswith("{}"):
                opened.append((block[1], block[2]))
            if block[1] == "message":
                yield f"message {'.'.join(filter(None, (place, block[2])))}"
        elif code == "}":
            opened.pop()
        elif rpc := _RPC.match(code):
            yield f"rpc {rpc[1]}: {rpc[2] or ''}{rpc[3]} -> {rpc[4] or ''}{rpc[5]}"
        elif inside == "enum" and (value := _VALUE.match(code)):
            yield f"{place}: {value[1]} = {value[2]}"
        elif field := _FIELD.match(code):
            choice = f" in {opened[-1][1]}" if inside == "oneof" else ""
            yield f"{place}: {field[1] or ''}{field[2]} {field[3]} = {field[4]}{choice}"
        else:
            assert not code or code.startswith(("syntax", "package")), f"this test cannot read {code!r}"


def generated() -> Iterator[str]:
    """Say what the generated code declares, in the same words."""
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        yield from _message(message)
    for enum in pb.DESCRIPTOR.enum_types_by_name.values():
        yield from _enum(enum)
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        ask = f"{'stream ' if method.client_streaming else ''}{method.input_type.name}"
        answer = f"{'stream ' if method.server_streaming else ''}{method.output_type.name}"
        yield f"rpc {method.name}: {ask} -> {answer}"


def _name(described: Descriptor | EnumDescriptor) -> str:
    return str(described.full_name).removeprefix("inference.")


def _message(message: Descriptor) -> Iterator[str]:
    name = _name(message)
    yield f"message {name}"
    for field in message.fields:
        choice = f" in {field.containing_oneof.name}" if field.containing_oneof else ""
        kind = _kind(field)
        repeated = "repeated " if field.is_repeated and not kind.startswith("map<") else ""
        yield f"{name}: {repeated}{kind} {field.name} = {field.number}{choice}"
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from _message(nested)
    for enum in message.enum_types:
        yield from _enum(enum)


def _enum(enum: EnumDescriptor) -> Iterator[str]:
    for value in enum.values:
        yield f"{_name(enum)}: {value.name} = {value.number}"


def _kind(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{_kind(key)}, {_kind(value)}>"
    named = field.message_type or field.enum_type
    return str(named.name) if named is not None else _SCALARS[field.type]


def test_the_generated_code_is_what_the_proto_says() -> None:
    assert sorted(generated()) == sorted(written())


def test_the_generated_code_has_the_services_twelve_methods() -> None:
    assert len([line for line in written() if line.startswith("rpc ")]) == 12
