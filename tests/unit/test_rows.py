"""Rules of rows on a device: three file types give the same tensors, and a wrong cell is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge.agent.rows import answer_lines, read_rows
from kit.errors import InputError
from kit.signature import Signature
from kit.tensors import TensorSpec

SIGNATURE = Signature(
    task="classification",
    inputs=(
        TensorSpec("sizes", "float32", (-1, 2), ("width", "height"), nullable=True),
        TensorSpec("count", "int64", (-1, 1), ("count",)),
        TensorSpec("new", "bool", (-1, 1), ("new",)),
        TensorSpec("kind", "string", (-1, 1), ("kind",), nullable=True),
        TensorSpec("pixels", "float32", (-1, 2), ("pixels",)),
    ),
    outputs=(
        TensorSpec("label", "int64", (-1,), classes=("low", "high")),
        TensorSpec("probabilities", "float32", (-1, 2)),
    ),
)
HEADER = "width,height,count,new,kind,pixels,unused\n"
ROWS = [
    {"width": 1.5, "height": None, "count": 3, "new": True, "kind": "a,b", "pixels": [0.5, 1]},
    {"width": -2, "height": 1e-3, "count": 4, "new": False, "kind": "", "pixels": [2, 3]},
]
CSV = HEADER + '1.5,,3,true,"a,b","[0.5, 1]",x\n-2,1e-3,4,0,,"[2, 3]",y\n'


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_json_and_json_lines_give_the_same_tensors(tmp_path: Path) -> None:
    files = [
        written(tmp_path, "rows.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        written(tmp_path, "rows.json", json.dumps(ROWS)),
        written(tmp_path, "rows.jsonl", "\n".join(json.dumps(row) for row in ROWS) + "\n\n"),
    ]
    tables = [SIGNATURE.from_rows(read_rows(file, signature=SIGNATURE)) for file in files]
    for table in tables[1:]:
        for name, tensor in tables[0].items():
            np.testing.assert_array_equal(table[name], tensor)
    assert np.isnan(tables[0]["sizes"][0, 1])


def test_a_whole_number_may_be_written_with_a_point(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, "rows.csv", HEADER + "1,2,3.0,true,a,[],z\n"), signature=SIGNATURE)
    assert rows[0]["count"] == 3
    assert type(rows[0]["count"]) is int


def test_a_limit_reads_the_first_rows_only(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", json.dumps(ROWS[0]) + "\nbroken\n")
    assert read_rows(path, signature=SIGNATURE, limit=1) == ROWS[:1]


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("rows.csv", "width,width\n1,2\n", "has the column 'width' twice"),
        ("rows.csv", HEADER + "1,2\n", "row 0 has 2 cells where the header has 7"),
        ("rows.csv", CSV + "1,x,3,true,a,[],z\n", "row 2, column 'height': 'x' is not a number"),
        ("rows.csv", HEADER + "1,2,3.5,true,a,[],z\n", "column 'count': '3.5' is not a whole number"),
        ("rows.csv", HEADER + "1_0,2,3,true,a,[],z\n", "'1_0' is not a number"),
        ("rows.csv", HEADER + "1,2,3,maybe,a,[],z\n", "'maybe' is neither true nor false"),
        ("rows.csv", HEADER + '1,2,3,true,"a,[],z\n', "is not CSV"),
        ("rows.csv", "", "holds no rows"),
        ("rows.csv", "width,height\n", "has no column 'count'"),
        ("rows.json", "[]", "holds no rows"),
        ("rows.json", "{}", "holds a dict where a list"),
        ("rows.json", "[1]", "row 0, holds a int where an object"),
        ("rows.json", "[" * 100_000, "is not JSON"),
        ("rows.jsonl", '{"width": 1}\n{"width": \n', "row 1, is not JSON"),
        ("rows.jsonl", "", "holds no rows"),
        ("rows.parquet", "", "rows cannot be read from"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    name: str, text: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read_rows(written(tmp_path, name, text), signature=SIGNATURE)
    assert sentence in caught.value.message


def test_a_file_that_is_absent_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_rows(tmp_path / "rows.csv", signature=SIGNATURE)
    (tmp_path / "rows.csv").write_bytes(b"width\n\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_rows(tmp_path / "rows.csv", signature=SIGNATURE)


def test_answers_name_the_class_and_keep_float32_exactly() -> None:
    probabilities = np.array([[0.1, 0.9], [1 / 3, 2 / 3]], dtype=np.float32)
    answers = {"label": np.array([1, 0]), "probabilities": probabilities, "logits": probabilities}
    lines = [json.loads(line) for line in answer_lines(answers, signature=SIGNATURE)]
    assert [line["label"] for line in lines] == ["high", "low"]
    assert lines[0] == {"label": "high", "probabilities": [0.1, 0.9]}
    np.testing.assert_array_equal(
        np.array([line["probabilities"] for line in lines], np.float32), probabilities
    )


def test_a_header_alone_is_a_table_of_no_rows(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, "rows.csv", HEADER), signature=SIGNATURE)
    tensors = SIGNATURE.from_rows(rows)
    assert {name: array.shape for name, array in tensors.items()} == {
        spec.name: (0, *spec.row_shape) for spec in SIGNATURE.inputs
    }


def test_an_answer_that_is_not_finite_is_null() -> None:
    values = np.array([np.nan, np.inf, 1.5], dtype=np.float32)
    assert list(answer_lines({"value": values}, signature=SIGNATURE)) == [
        '{"value": null}',
        '{"value": null}',
        '{"value": 1.5}',
    ]


def test_a_regression_answers_values() -> None:
    answers = {"value": np.array([1.5, -2.25], dtype=np.float32)}
    assert list(answer_lines(answers, signature=SIGNATURE)) == ['{"value": 1.5}', '{"value": -2.25}']
