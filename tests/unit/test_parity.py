"""The parity check finds what differs, and its adversarial rows are allowed ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from jobs.exporting.parity import Answer, Units, adversarial_rows, check_parity, run_onnx
from kit.errors import GateError, InputError, ProjectError
from kit.signature import Signature
from kit.tensors import TensorSpec

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
    free = 8 * np.spacing(np.float32(40)) / 1e-4
    assert report.max_relative_difference == pytest.approx(1e-3 / (LOGITS.std() + free), rel=1e-2)


def test_a_differing_value_names_output_row_and_both_values():
    with pytest.raises(
        GateError, match=r"'logits', row 2, value 1: the model file answers 6\.5, its source 6 "
    ) as e:
        check_parity(answers(logits=LOGITS), answers(logits=moved(2, 1, 0.5)), rows=ROWS)
    assert "1e-05" not in e.value.message
    assert "0.0001" in e.value.message


LINE = {"x": np.linspace(0, 1, 600, dtype=np.float32)}


def valued(slope: float, start: float = 0.0) -> Answer:
    return lambda rows: {"value": (start + slope * rows["x"].astype(np.float64)).astype(np.float32)}


@pytest.mark.parametrize(
    "right, wrong",
    [
        pytest.param(valued(2e-5), valued(0), id="small units"),
        pytest.param(valued(100, 1e6), valued(0, 1e6 + 50), id="a large offset"),
    ],
)
def test_a_candidate_that_answers_one_value_is_refused_in_any_units(right: Answer, wrong: Answer):
    with pytest.raises(GateError, match="'value', row "):
        check_parity(right, wrong, rows=LINE)
    assert check_parity(right, right, rows=LINE).max_relative_difference == 0


def test_what_float32_cannot_hold_of_a_large_offset_is_allowed():
    right = valued(100, 1e6)(LINE)["value"]

    def off(ulps: int) -> Answer:
        moved_by = {
            float(x): value + ulps * np.spacing(value) for x, value in zip(LINE["x"], right, strict=True)
        }
        return lambda rows: {"value": np.array([moved_by[float(x)] for x in rows["x"]], dtype=np.float32)}

    assert check_parity(valued(100, 1e6), off(8), rows=LINE).max_relative_difference <= 1e-4
    with pytest.raises(GateError, match=r"tolerance 0\.0001 of"):
        check_parity(valued(100, 1e6), off(9), rows=LINE)
    assert check_parity(valued(100, 1e6), off(20), rows=LINE, units=Units(ulps=20)).n_rows == 600


def test_adversarial_answers_are_bounded_by_their_size_and_say_nothing_about_the_spread():
    strange = {"x": np.array([1e6, -1e6], dtype=np.float32)}

    def scaled(by: float, beyond: float) -> Answer:
        return lambda rows: {
            "value": rows["x"] * np.where(np.abs(rows["x"]) > 1, np.float32(beyond), np.float32(by))
        }

    report = check_parity(scaled(1, 1), scaled(1, 1.00005), rows=LINE, adversarial=strange)
    assert (report.n_rows, report.outputs[0].worst_row) == (602, 600)
    with pytest.raises(GateError, match="'value', adversarial row 0: the model file answers 1000200"):
        check_parity(scaled(1, 1), scaled(1, 1.0002), rows=LINE, adversarial=strange)
    with pytest.raises(GateError, match="'value', row 5"):
        check_parity(scaled(1, 1), scaled(1.0002, 1), rows=LINE, adversarial=strange)


def test_answers_without_a_spread_are_measured_in_ones():
    assert check_parity(valued(0, 1e-3), valued(0, 1.05e-3), rows=LINE).max_relative_difference < 1e-4
    one = {"x": LINE["x"][:1]}
    assert check_parity(valued(1, 1e-3), valued(1, 1.05e-3), rows=one).n_rows == 1


def test_probabilities_are_measured_in_ones_whatever_their_spread():
    def sure(by: float) -> Answer:
        return lambda rows: {"probabilities": np.stack([rows["x"] * 0 + by, rows["x"] * 1e-3], axis=1)}

    report = check_parity(sure(0.5), sure(0.50009), rows=LINE)
    assert report.max_relative_difference == pytest.approx(9e-5, rel=1e-2)


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


def test_adversarial_integers_stay_inside_bounds_that_are_no_whole_numbers():
    signature = Signature(
        "regression", (TensorSpec("ids", "int32", (-1, 2), columns=("ids",), minimum=2.5, maximum=6.5),), ()
    )
    rows = adversarial_rows(signature, sample={"ids": np.full((1, 2), 4, dtype=np.int32)})
    assert set(rows["ids"].reshape(-1).tolist()) == {3, 4, 6}


def test_a_wide_input_is_probed_at_a_bounded_number_of_places():
    wide = Signature(
        "regression", (TensorSpec("image", "float32", (-1, 1, 64, 64), minimum=0, maximum=1),), ()
    )
    rows = adversarial_rows(wide, sample={"image": np.zeros((2, 1, 64, 64), dtype=np.float32)})
    assert len(rows["image"]) < 300


def test_bytes_that_are_no_graph_are_refused():
    with pytest.raises(ProjectError, match="onnxruntime does not accept"):
        run_onnx(b"not a graph")


def test_adversarial_rows_of_many_inputs_hold_each_ones_change_and_the_sample_elsewhere():
    names = [f"x{index}" for index in range(40)]
    wide = Signature("regression", tuple(TensorSpec(name, "float32", (-1, 1), (name,)) for name in names), ())
    sample = {name: np.array([[2.5], [3.5]], dtype=np.float32) for name in names}
    rows = adversarial_rows(wide, sample=sample)
    matrix = np.concatenate([rows[name] for name in names], axis=1)
    changed = ~np.isin(matrix, (2.5, 3.5))
    assert changed.sum(axis=1).tolist() == [0] + [1] * (len(matrix) - 1)
    assert (changed.sum(axis=0) == (len(matrix) - 1) // len(names)).all()
    assert sample["x0"].ravel().tolist() == [2.5, 3.5]
