"""The parity check finds what differs, and its adversarial rows are allowed ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from jobs.exporting.parity import Answer, adversarial_rows, check_parity, run_onnx
from kit.errors import GateError, InputError, ProjectError
from kit.signature import Signature, TensorSpec

SIGNATURE = Signature(
    "classification",
    (
        TensorSpec("numeric", "float32", (-1, 3), columns=("a", "b", "c"), nullable=True),
        TensorSpec("bounded", "float32", (-1, 1), columns=("d",), minimum=0.1, maximum=16.0),
        TensorSpec("site", "string", (-1, 1), columns=("site",), nullable=True),
        TensorSpec("count", "int64", (-1,), columns=("count",), minimum=-3),
    ),
    (
        TensorSpec("label", "int64", (-1,), classes=(0, 1)),
        TensorSpec("probabilities", "float32", (-1, 2)),
        TensorSpec("logits", "float32", (-1, 2)),
    ),
)
SAMPLE = {
    "numeric": np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32),
    "bounded": np.array([[1], [2]], dtype=np.float32),
    "site": np.array([["x"], ["y"]], dtype=object),
    "count": np.array([7, 8]),
}
ROWS = {"x": np.array([[1, 2], [4, 3], [5, 6]], dtype=np.float32)}


def answers(*, logits: np.ndarray, label: np.ndarray | None = None) -> Answer:
    """Answer from fixed logits, found by the first input value, so any slice of rows works."""
    label = logits.argmax(axis=1) if label is None else label
    keys = {float(row[0]): index for index, row in enumerate(ROWS["x"])}

    def answer(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        chosen = [keys[float(row[0])] for row in tensors["x"]]
        return {"label": label[chosen], "logits": logits[chosen]}

    return answer


LOGITS = np.array([[1, 2], [40, 3], [5, 6]], dtype=np.float32)


def moved(row: int, column: int, by: float) -> np.ndarray:
    copy = LOGITS.copy()
    copy[row, column] += by
    return copy


def test_equal_answers_pass_and_are_measured():
    report = check_parity(answers(logits=LOGITS), answers(logits=moved(1, 1, 1e-3)), rows=ROWS)
    assert report.n_rows == 3
    assert report.label_agreement == 1.0
    assert report.outputs[0].worst_row == 1
    assert report.outputs[0].max_abs_difference == pytest.approx(1e-3, rel=1e-2)
    assert report.max_relative_difference == pytest.approx(1e-3 / 40, rel=1e-2)


def test_a_differing_value_names_output_row_and_both_values():
    with pytest.raises(
        GateError, match=r"'logits', row 2, value 1: the model file answers 6\.5, its source 6 "
    ) as e:
        check_parity(answers(logits=LOGITS), answers(logits=moved(2, 1, 0.5)), rows=ROWS)
    assert "1e-05" not in e.value.message
    assert "0.0001" in e.value.message


def test_a_differing_shape_is_refused():
    wide = np.concatenate([LOGITS, LOGITS], axis=1)
    with pytest.raises(GateError, match=r"shape \[3, 4\]"):
        check_parity(answers(logits=LOGITS), answers(logits=wide), rows=ROWS)


def test_a_missing_output_is_refused():
    with pytest.raises(GateError, match="answers \\['logits'\\]"):
        check_parity(
            answers(logits=LOGITS), lambda rows: {"logits": answers(logits=LOGITS)(rows)["logits"]}, rows=ROWS
        )


def test_another_label_is_refused_unless_the_best_two_are_level():
    other = np.array([0, 0, 1])
    with pytest.raises(GateError, match="'label', row 0: the model file answers 0, its source 1"):
        check_parity(answers(logits=LOGITS), answers(logits=LOGITS, label=other), rows=ROWS)
    level = LOGITS.copy()
    level[0] = 1
    report = check_parity(
        answers(logits=level, label=np.array([1, 0, 1])), answers(logits=level, label=other), rows=ROWS
    )
    assert report.label_agreement == pytest.approx(2 / 3)


def test_nan_on_both_sides_is_equal_and_on_one_side_is_not():
    with_nan = moved(1, 0, np.nan)
    assert check_parity(answers(logits=with_nan), answers(logits=with_nan), rows=ROWS).n_rows == 3
    with pytest.raises(GateError, match="row 1, value 0: the model file answers nan, its source 40"):
        check_parity(answers(logits=LOGITS), answers(logits=with_nan), rows=ROWS)


def test_overflow_beyond_1e30_is_counted_instead_of_compared():
    def overflowing(limit: float) -> Answer:
        def answer(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            x = tensors["x"]
            return {"logits": np.where(x.astype(np.float64) > limit, np.float32(np.inf), x)}

        return answer

    rows = {"x": np.array([[1, 2], [3e38, 3]], dtype=np.float32)}
    assert check_parity(overflowing(1e38), overflowing(1e39), rows=rows).n_overflowed == 1
    rows["x"][1, 0] = 1e20
    with pytest.raises(GateError, match="row 1, value 0: the model file answers inf"):
        check_parity(overflowing(1e39), overflowing(1e10), rows=rows)


def test_an_answer_that_depends_on_the_other_rows_is_refused():
    def centred(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": tensors["x"] - tensors["x"].mean(axis=0)}

    with pytest.raises(GateError, match="row 0"):
        check_parity(centred, centred, rows=ROWS)


def test_no_rows_prove_nothing():
    with pytest.raises(InputError, match="at least one row"):
        check_parity(answers(logits=LOGITS), answers(logits=LOGITS), rows={"x": ROWS["x"][:0]})


def test_adversarial_rows_hold_every_trap_the_signature_allows():
    rows = adversarial_rows(SIGNATURE, sample=SAMPLE)
    assert np.isnan(rows["numeric"]).all(axis=1).any()
    assert (np.isnan(rows["numeric"]).sum(axis=1) == 1).any()
    assert not np.isnan(rows["bounded"]).any()
    finite = rows["numeric"][np.isfinite(rows["numeric"])]
    assert finite.max() == np.finfo(np.float32).max
    assert (np.abs(finite[finite != 0]) < np.finfo(np.float32).tiny).any()
    assert rows["bounded"].max() == 16
    assert 0.1 <= rows["bounded"].min() < 0.100001
    assert "" in rows["site"]
    assert any(not value.isascii() for value in rows["site"][:, 0])
    assert rows["count"].min() == -3
    assert SAMPLE["numeric"][0].tolist() == rows["numeric"][0].tolist()


def test_adversarial_rows_leave_out_what_the_signature_refuses():
    rows = adversarial_rows(SIGNATURE, sample=SAMPLE)
    assert not any(np.isinf(rows[name]).any() for name in ("numeric", "bounded"))
    infinite = dict(SAMPLE, numeric=np.full((2, 3), np.inf, dtype=np.float32))
    with pytest.raises(InputError, match="infinity is not allowed"):
        SIGNATURE.validate(infinite)


def test_a_wide_input_is_probed_at_a_bounded_number_of_places():
    wide = Signature(
        "regression", (TensorSpec("image", "float32", (-1, 1, 64, 64), minimum=0, maximum=1),), ()
    )
    rows = adversarial_rows(wide, sample={"image": np.zeros((2, 1, 64, 64), dtype=np.float32)})
    assert len(rows["image"]) < 300


def test_bytes_that_are_no_graph_are_refused():
    with pytest.raises(ProjectError, match="onnxruntime does not accept"):
        run_onnx(b"not a graph")
