"""Compressed bodies: what they become, how far they are unpacked, and which answers are compressed."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest

from kit.errors import InputError
from kit.inference.compression import QUICK_BYTES, Unpacking, answer_coding, pack
from kit.inference.paths import Paths
from kit.signature import Signature
from kit.tensors import TensorSpec
from serve.protocol.rows import parse_rows

PACKED = {b"gzip": gzip.compress, b"deflate": zlib.compress}


def unpack(body: bytes, *, coding: bytes, max_bytes: int, step: int = QUICK_BYTES) -> bytes:
    unpacking = Unpacking(body, coding=coding, max_bytes=max_bytes)
    whole = unpacking.step(step)
    whole = unpacking.step() if whole is None else whole
    assert whole is not None
    return whole


@pytest.mark.parametrize("coding", PACKED)
@pytest.mark.parametrize("n_bytes", [0, 1, QUICK_BYTES - 1, QUICK_BYTES, QUICK_BYTES + 1, 300_000])
def test_a_body_comes_out_as_it_went_in_whatever_the_steps(coding: bytes, n_bytes: int) -> None:
    body = np.random.default_rng(1).bytes(n_bytes)
    for step in (1, 1000, QUICK_BYTES):
        assert unpack(PACKED[coding](body), coding=coding, max_bytes=n_bytes, step=step) == body


@pytest.mark.parametrize("coding", PACKED)
def test_unpacking_stops_one_byte_above_the_limit(coding: bytes) -> None:
    bomb = PACKED[coding](b"\0" * 50_000_000)
    assert len(unpack(bomb, coding=coding, max_bytes=100_000)) == 100_001


@pytest.mark.parametrize(
    "body", [b"", b"text", gzip.compress(b"abc")[:-1], gzip.compress(b"abc") + b"d", gzip.compress(b"a") * 2]
)
def test_a_body_that_is_not_what_its_coding_says_is_refused(body: bytes) -> None:
    with pytest.raises(InputError, match="compressed"):
        unpack(body, coding=b"gzip", max_bytes=100)


def test_another_coding_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'br'"):
        Unpacking(b"", coding=b"br", max_bytes=1)


def test_an_answer_is_compressed_for_a_client_that_names_one_coding() -> None:
    assert answer_coding(b"gzip", n_bytes=5000) == b"gzip"
    assert gzip.decompress(pack(b"a" * 5000, coding=b"gzip")) == b"a" * 5000
    assert zlib.decompress(pack(b"a" * 5000, coding=b"deflate")) == b"a" * 5000
    for accepted in (None, b"", b"gzip, deflate", b"br", b"identity"):
        assert answer_coding(accepted, n_bytes=5000) is None
    assert answer_coding(b"gzip", n_bytes=300) is None


def test_head_is_found_where_get_is_and_nowhere_else() -> None:
    paths = Paths()
    assert paths.find("HEAD", "/v2/health/live") == paths.find("GET", "/v2/health/live")
    with pytest.raises(InputError) as refused:
        paths.find("HEAD", "/v2/models/tiny/infer")
    assert getattr(refused.value, "allowed", "") == "POST"


def test_a_whole_number_just_below_64_bits_is_refused_and_not_rounded() -> None:
    signature = Signature("regression", (TensorSpec("n", "int64", (-1,), columns=("n",)),), ())
    least = parse_rows(b'{"n": -9223372036854775808}').decode(signature)
    assert least.inputs["n"].tolist() == [-(1 << 63)]
    with pytest.raises(InputError, match="row 1"):
        parse_rows(b'[{"n": 1}, {"n": -9223372036854775809}]').decode(signature)
