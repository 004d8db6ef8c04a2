"""Rows as JSON objects and as CSV, in and out."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.batch.actor import _with_outputs
from kit.errors import InputError
from kit.signature import Signature
from kit.tensors import TensorSpec
from serve.protocol import Card, InferRequest, encode_rows, parse_rows

SIGNATURE = Signature(
    "classification",
    (
        TensorSpec("x", "float32", (-1, 2), columns=("a", "b"), nullable=True, maximum=100),
        TensorSpec("n", "int64", (-1, 1), columns=("n",)),
        TensorSpec("ok", "bool", (-1, 1), columns=("ok",)),
        TensorSpec("kind", "string", (-1, 1), columns=("kind",), nullable=True),
        TensorSpec("list", "float64", (-1, 3), columns=("list",)),
    ),
    (
        TensorSpec("label", "int64", (-1,), classes=("no", "yes, sir")),
        TensorSpec("probabilities", "float32", (-1, 2)),
        TensorSpec("logits", "float32", (-1, 2)),
    ),
)
NUMBERS = Signature(
    "regression",
    (
        TensorSpec("x", "float32", (-1, 2), columns=("a", "b"), maximum=100),
        TensorSpec("n", "int64", (-1, 1), columns=("n",)),
    ),
    (TensorSpec("value", "float32", (-1,)),),
)
CARD = Card("digits", 3, "ab" * 32, "onnxruntime", SIGNATURE)
ROW = {"a": 1.5, "b": 2, "n": 7, "ok": True, "kind": "x", "list": [1, 2, 3], "unread": {}}
PLAIN = {"a": 1.5, "b": 2, "n": 7}
ANSWERS = {
    "label": np.array([1, 0]),
    "probabilities": np.array([[0.1, 0.9], [0.75, np.nan]], dtype=np.float32),
    "logits": np.zeros((2, 2), dtype=np.float32),
}


def parse(value: object, signature: Signature = SIGNATURE) -> InferRequest:
    return parse_rows(json.dumps(value).encode(), content_type=b"application/json").decode(signature)


def parse_csv(text: str, signature: Signature = SIGNATURE) -> InferRequest:
    return parse_rows(text.encode(), content_type=b"Text/CSV; charset=utf-8").decode(signature)


@pytest.mark.parametrize(
    "value", [ROW, [ROW], {"rows": [ROW]}, {"rows": [ROW], "id": "r", "parameters": {"u": 1}}]
)
def test_a_row_may_come_alone_in_a_list_or_wrapped(value: Any) -> None:
    read = parse(value)
    assert {name: array.tolist() for name, array in read.inputs.items()} == {
        "x": [[1.5, 2.0]],
        "n": [[7]],
        "ok": [[True]],
        "kind": [["x"]],
        "list": [[1.0, 2.0, 3.0]],
    }
    assert (read.n_rows, read.id) == (1, "r" if "id" in value else None)


def test_rows_of_plain_numbers_are_read_as_any_others() -> None:
    fast = parse([PLAIN, {"n": -1, "a": 0, "b": 1e-3}], NUMBERS)
    slow = parse([{**PLAIN, "ok": True}, {"n": -1, "a": 0, "b": 1e-3}], NUMBERS)
    for name, array in NUMBERS.from_rows([PLAIN, {"n": -1, "a": 0, "b": 1e-3}]).items():
        for read in (fast, slow):
            np.testing.assert_array_equal(read.inputs[name], array)
            assert read.inputs[name].dtype == array.dtype


VALUE = (
    st.integers(-3, 200)
    | st.floats(-1e39, 1e39, allow_nan=False)
    | st.sampled_from([None, "", "[1]", True, []])
)


@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "n", "c"]), VALUE, max_size=4), max_size=3))
def test_the_fast_way_and_the_signature_agree(rows: list[dict[str, Any]]) -> None:
    def read(way: Any) -> Any:
        try:
            return {name: (array.dtype, array.tolist()) for name, array in way().items()}
        except InputError as error:
            return error.message

    if rows:
        assert read(lambda: parse(rows, NUMBERS).inputs) == read(lambda: NUMBERS.from_rows(rows))


def test_null_and_an_absent_column_are_missing_values_where_these_may_be() -> None:
    read = parse([{**ROW, "a": None, "kind": None}, {key: ROW[key] for key in ROW if key != "b"}])
    assert np.isnan(read.inputs["x"]).tolist() == [[True, False], [False, True]]
    assert read.inputs["kind"].tolist() == [[""], ["x"]]


@pytest.mark.parametrize(
    "value,sentence",
    [
        ([], "the body holds no rows"),
        (1, "the body holds no rows"),
        ({"rows": []}, "the body holds no rows"),
        ([ROW, 1], "row 1 is not an object"),
        ({"rows": [ROW], "id": 7}, "'id' is not a string"),
        ({"rows": [ROW], "parameters": []}, "'parameters' of the request are not an object"),
        ({"rows": [ROW], "parameters": {"timeout": "1"}}, "parameter 'timeout'"),
        ({"a": 1}, "column 'b' is missing"),
        ([ROW, {**ROW, "n": 1.5}], "row 1: 1.5 is not a whole"),
        ([ROW, {**ROW, "n": None}], "row 1: a value is missing"),
        ([ROW, {**ROW, "a": 101}], "row 1: 101.0 is above the maximum 100"),
        ([ROW, {**ROW, "a": "1"}], "row 1: '1' is not a number"),
        ([ROW, {**ROW, "a": True}], "row 1: True is not a number"),
        ([ROW, {**ROW, "list": [1, 2]}], "rows of different lengths"),
    ],
)
def test_wrong_rows_are_named(value: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse(value)


@pytest.mark.parametrize("body", [b"", b"[", b"\xff", b'{"a": NaN}', b'[{"a": 1, "a": 2}]', b"[" * 5000])
def test_bytes_that_are_no_rows_are_refused(body: bytes) -> None:
    with pytest.raises(InputError):
        parse_rows(body)


DEEP = "[" * 990 + "1" + "]" * 990
ODD = [DEEP, f'{{"k": {DEEP}}}', "[[]]", "[[1, [2]]]", '"[[1"', '"%s"' % ("[" * 99_999), "{}", "[{}]"]


@pytest.mark.parametrize("column", ["a", "n", "ok", "kind", "list"])
@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_odd_values_are_refused_with_a_sentence(column: str, value: str) -> None:
    if column == "kind" and value.startswith('"'):
        return
    body = json.dumps({**ROW, column: "HERE"}).replace('"HERE"', value).encode()
    with pytest.raises(InputError):
        parse_rows(body).decode(SIGNATURE)


CSV = 'n,ok,kind,list,a,b,unread\n7,true,x,"[1, 2, 3]",1.5,2,\n-8,0,,"[0,0,1e3]",,3.0,z\n'


def test_csv_is_read_as_a_table_with_a_header() -> None:
    read = parse_csv(CSV)
    np.testing.assert_array_equal(read.inputs["x"], np.array([[1.5, 2], [np.nan, 3]], np.float32))
    assert read.inputs["n"].tolist() == [[7], [-8]]
    assert read.inputs["ok"].tolist() == [[True], [False]]
    assert read.inputs["kind"].tolist() == [["x"], [""]]
    assert read.inputs["list"].tolist() == [[1, 2, 3], [0, 0, 1000]]
    assert parse_csv("\ufeff" + CSV.replace("\n", "\r\n")).n_rows == 2


@pytest.mark.parametrize(
    "text,sentence",
    [
        ("", "the body holds no rows"),
        ("a,b,n\n", "the body holds no rows"),
        ("a,b,a\n1,2,3\n", "column 'a' twice"),
        ("a,b,n\n1,2\n", "row 0 has 2 cells where the header has 3"),
        ("a,b\n1,2\n", "the body has no column 'n'"),
        ("a,b,n\n1,2,3\n1,x,3\n", "column 'b', row 1: 'x' is not a number"),
        ("a,b,n\n1,1_0,3\n", "'1_0' is not a number"),
        ("a,b,n\n1,2,1.5\n", "'1.5' is not a whole number"),
        ("a,b,n\n1,2,1e999\n", "'1e999' is not a whole number"),
        ("a,b,n\n1,2,99999999999999999999\n", "column 'n'"),
        ("a,b,n\n1,inf,3\n", "infinity is not allowed"),
        ("a,b,n\n1,,3\n", "row 0: a value is missing"),
        ('a,b,n\n1,"2,3\n', "is not CSV"),
        ("a,b,n\n1," + "2" * 200_000 + ",3\n", "is not CSV"),
    ],
)
def test_a_wrong_table_is_named(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_csv(text, NUMBERS)


@given(st.text(alphabet='abn,"\n\r1[.-\0é', max_size=40), st.binary(max_size=40))
def test_no_table_ends_in_a_traceback(text: str, body: bytes) -> None:
    for each in (text.encode(), f"a,b,n\n{text}".encode(), body):
        for content_type in (b"text/csv", b"application/json"):
            try:
                read = parse_rows(each, content_type=content_type).decode(NUMBERS)
            except InputError:
                continue
            assert read.inputs.keys() == {spec.name for spec in NUMBERS.inputs}


def test_the_first_row_holds_the_sticky_value() -> None:
    wrapped = json.dumps({"rows": [{"user": 7, "f": 1.5}], "parameters": {"user": "p", "team": "t"}}).encode()
    raw = parse_rows(wrapped)
    assert [raw.field(name) for name in ("user", "team", "f", "no")] == ["7", "t", None, None]
    table = parse_rows(b"user,empty\nu1,\n", content_type=b"text/csv")
    assert [table.field(name) for name in ("user", "empty", "no")] == ["u1", None, None]


def test_an_answer_names_classes_and_leaves_logits_out() -> None:
    asked = parse({"rows": [ROW, ROW], "id": "r-1"})
    value = json.loads(encode_rows(asked, CARD, ANSWERS, parameters={"fallback": "version"}).body)
    assert value == {
        "model": "digits",
        "version": "3",
        "id": "r-1",
        "parameters": {"fallback": "version"},
        "rows": [
            {"label": "yes, sir", "probability": 0.9, "probabilities": [0.1, 0.9]},
            {"label": "no", "probability": None, "probabilities": [0.75, None]},
        ],
    }


def test_csv_out_has_lists_as_json_and_nothing_where_nothing_is() -> None:
    reply = encode_rows(parse([ROW, ROW]), CARD, ANSWERS, accept=b"text/csv")
    assert dict(reply.headers)[b"content-type"].startswith(b"text/csv")
    assert list(csv.reader(io.StringIO(reply.body.decode()))) == [
        ["label", "probability", "probabilities"],
        ["yes, sir", "0.9", "[0.1,0.9]"],
        ["no", "", "[0.75,null]"],
    ]


def test_rows_say_what_a_batch_run_writes() -> None:
    import pyarrow as pa

    shaped = Signature(
        "x", SIGNATURE.inputs, (*SIGNATURE.outputs[:2], TensorSpec("value", "float32", (-1, 1, 2)))
    )
    answers = {**ANSWERS, "value": np.array([[[0.1, 1e-7]], [[3e38, 2]]], dtype=np.float32)}
    written = _with_outputs(
        pa.table({"k": [1, 2]}), answers, shaped, wanted=("label", "probabilities", "value")
    )
    reply = encode_rows(parse([ROW, ROW]), Card("m", 1, "", "", shaped), answers)
    for name in ("label", "probabilities", "value"):
        column = [row[name] for row in json.loads(reply.body)["rows"]]
        if name == "label":
            assert column == written.column(name).to_pylist()
        else:
            ours = np.array(column, dtype=np.float32)
            np.testing.assert_array_equal(ours, np.array(written.column(name).to_pylist(), dtype=np.float32))


def test_a_regression_answers_values() -> None:
    card = Card("price", 1, "", "onnxruntime", NUMBERS)
    answers = {"value": np.array([0.1], dtype=np.float32)}
    asked = parse(PLAIN, NUMBERS)
    assert json.loads(encode_rows(asked, card, answers).body)["rows"] == [{"value": 0.1}]
    assert encode_rows(asked, card, answers, accept=b"text/csv").body == b"value\n0.1\n"


@pytest.mark.parametrize(
    "accept,is_csv",
    [
        *((b"", False), (b"*/*", False), (b"text/csv", True), (b"application/json, text/csv", False)),
        *((b"application/json;q=0.5, text/csv", True), (b"TEXT/CSV;q=0.9, */*;q=0.1", True)),
        *((b"text/csv;q=x", False), (b"text/csv;q=0", False), (b"text/csv, */*", False)),
    ],
)
def test_csv_comes_only_to_those_who_would_rather_have_it(accept: bytes, is_csv: bool) -> None:
    reply = encode_rows(parse([ROW, ROW]), CARD, ANSWERS, accept=accept)
    assert dict(reply.headers)[b"content-type"].startswith(b"text/csv" if is_csv else b"application/json")
