"""Rules of answering from a bundle: what was accepted is answered, however extreme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kit import files
from kit.runner import Runner
from kit.steps import Block, Steps

SCALED = Steps(
    (
        Block(
            "number",
            (("features", 0), ("features", 1)),
            ({"op": "scale", "subtract": [0.0, 0.0], "divide": [1e-3, 1e-3]},),
        ),
    ),
    2,
)


@pytest.fixture
def scaled(bundles) -> Runner:
    """A bundle whose preprocessing divides by a small number."""
    folder: Path = bundles.make().folder
    files.write_atomic(folder / "preprocessing.json", files.canonical_json(SCALED.to_json()))
    return Runner.open(folder, threads=1)


def test_a_row_whose_features_overflow_is_answered_like_any_other(scaled: Runner) -> None:
    ordinary = np.array([[1.0, 0.0]], dtype=np.float32)
    extreme = np.array([[1.0, 0.0], [3e38, 1.0]], dtype=np.float32)
    answers = scaled.run({"features": extreme})
    assert answers["label"].tolist() == [0, 0]
    np.testing.assert_array_equal(answers["logits"][:1], scaled.run({"features": ordinary})["logits"])
    assert np.isinf(answers["logits"][1]).all()


def test_no_rows_have_no_answers(scaled: Runner) -> None:
    answers = scaled.run({"features": np.zeros((0, 2), np.float32)})
    assert {name: array.shape for name, array in answers.items()} == {
        "label": (0,),
        "probabilities": (0, 2),
        "logits": (0, 2),
    }


def test_an_extreme_saturates_in_8_bits() -> None:
    from kit.engines.litert import _quantised

    rows = np.array([[np.inf, -np.inf, np.nan, 3e38, 0.5]], dtype=np.float32)
    levels = _quantised(rows, {"dtype": np.int8, "quantization": (0.5, 3)})
    assert levels.tolist() == [[127, -128, 3, 127, 4]]
    assert levels.dtype == np.int8
