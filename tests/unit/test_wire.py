"""Tensors in the protocol's JSON, one rule for requests, rows and the client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from kit.errors import InputError, KitError
from kit.signature import Signature
from kit.tensors import DTYPES, TensorSpec
from kit.wire import DATATYPES, decode_tensor, dtype_of, encode_tensor

ARRAYS: dict[str, np.ndarray] = {
    "float32": np.array([[0.1, np.nan], [1e-45, -3.4e38]], dtype=np.float32),
    "float64": np.array([[0.1, np.nan], [5e-324, 1.7e308]]),
    "float16": np.array([[0.1, np.nan], [6e-8, -65504]], dtype=np.float16),
    "int64": np.array([[-(2**63), 2**63 - 1], [0, 1]]),
    "int32": np.array([[-(2**31), 2**31 - 1], [0, 1]], dtype=np.int32),
    "int16": np.array([[-(2**15), 2**15 - 1], [0, 1]], dtype=np.int16),
    "int8": np.array([[-128, 127], [0, 1]], dtype=np.int8),
    "uint64": np.array([[0, 2**64 - 1], [2**63, 1]], dtype=np.uint64),
    "uint32": np.array([[0, 2**32 - 1], [2**31, 1]], dtype=np.uint32),
    "uint16": np.array([[0, 2**16 - 1], [2**15, 1]], dtype=np.uint16),
    "uint8": np.array([[0, 255], [1, 2]], dtype=np.uint8),
    "bool": np.array([[True, False], [False, True]]),
    "string": np.array([["ä", ""], ["\U0001f600", "\0"]], dtype=object),
}


def test_every_dtype_of_a_signature_has_a_datatype() -> None:
    assert DATATYPES.keys() == DTYPES.keys() == ARRAYS.keys()
    assert [dtype_of(datatype) for datatype in DATATYPES.values()] == list(DATATYPES)


@pytest.mark.parametrize("dtype", list(DATATYPES))
def test_every_dtype_survives_the_way_there_and_back(dtype: str) -> None:
    spec = TensorSpec("t", dtype, (-1, 2))
    sent = orjson.dumps(encode_tensor(spec, ARRAYS[dtype]), option=orjson.OPT_SERIALIZE_NUMPY)
    back = decode_tensor(spec, json.loads(sent), kind="output")
    np.testing.assert_array_equal(back, ARRAYS[dtype])
    assert back.dtype == ARRAYS[dtype].dtype


def test_bf16_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match="'BF16' is not supported") as refused:
        dtype_of("BF16")
    assert "FP32" in str(refused.value.hint)


@pytest.mark.parametrize(
    "dtype,value",
    [
        *(("uint8", 256), ("uint8", -1), ("int8", 128), ("int16", -(2**15) - 1), ("uint16", 2**16)),
        *(("int32", 2**31), ("uint32", -1), ("int64", 2**63), ("uint64", 2**64), ("uint64", -1)),
    ],
)
def test_a_number_that_does_not_fit_is_named(dtype: str, value: int) -> None:
    spec = TensorSpec("n", dtype, (-1,))
    with pytest.raises(InputError, match=f"input 'n', row 1: {value} does not fit"):
        decode_tensor(spec, {**encode_tensor(spec, np.zeros(2)), "data": [0, value]}, kind="input")


def test_a_whole_number_below_64_bits_is_not_taken_for_the_least_one() -> None:
    spec = TensorSpec("n", "int64", (-1,))
    read = orjson.loads(b'{"datatype": "INT64", "shape": [1], "data": [-9223372036854775809]}')
    with pytest.raises(InputError, match="is not a whole number"):
        decode_tensor(spec, read, kind="input")
    read["data"] = orjson.loads(b"[-9223372036854775808]")
    assert decode_tensor(spec, read, kind="input").tolist() == [-(2**63)]


ODD = (
    *(0, 1, -1, 2, 3.0, -0.0, 1.5, 255, 256, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
    *(-129, 1e30, 1e300, 3e38, 7e4, True, False, None, "", "3", "true", {}),
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
