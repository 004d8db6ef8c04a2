"""The kit's own steps answer like the scikit-learn steps they stand for, and rules like ``re``."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes IterativeImputer importable
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.preprocessing import QuantileTransformer

from jobs.exporting.parity import run_onnx
from jobs.preparation.columns import Ranks, Terms, WindowStatistics
from jobs.preparation.imputing import MOST_DONORS, ChainedImputer, NeighborImputer
from jobs.preparation.outliers import Isolated
from jobs.preparation.patterns import compile_pattern, portable_pattern


def rows(n_rows: int = 300, n_columns: int = 6) -> np.ndarray:
    random = np.random.default_rng(3)
    values = random.normal(size=(n_rows, 2)) @ random.normal(size=(2, n_columns))
    values += 0.3 * random.normal(size=values.shape)
    values[random.random(values.shape) < 0.15] = np.nan
    return values.astype(np.float32)


def test_mice_fills_what_scikit_learns_iterative_imputer_fills():
    train, new = rows(), rows(400)[300:]
    wide = train.astype(np.float64)
    theirs = IterativeImputer(
        max_iter=5, random_state=0, min_value=np.nanmin(wide, axis=0), max_value=np.nanmax(wide, axis=0)
    ).fit(wide)
    ours = ChainedImputer().fit(train)
    for values in (train, new):
        expected = theirs.transform(values.astype(np.float64))
        np.testing.assert_allclose(ours.transform(values), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("neighbors", [1, 4])
def test_neighbors_fill_what_scikit_learns_imputer_fills(neighbors: int):
    train = rows()
    new = rows(400)[300:]
    new[0] = np.nan  # shares no column with any donor
    theirs = KNNImputer(n_neighbors=neighbors).fit(train.astype(np.float64))
    ours = NeighborImputer(neighbors).fit(train)
    for values in (train, new):
        expected = theirs.transform(values.astype(np.float64))
        np.testing.assert_allclose(ours.transform(values), expected, rtol=1e-5, atol=1e-6)


def test_no_more_than_so_many_rows_become_donors():
    imputer = NeighborImputer().fit(rows(MOST_DONORS + 50))
    assert imputer.donors_.shape == (MOST_DONORS, 6)
    np.testing.assert_array_equal(imputer.donors_, NeighborImputer().fit(rows(MOST_DONORS + 50)).donors_)


def test_an_isolation_forest_flags_what_scikit_learns_flags():
    values = np.nan_to_num(rows(500))
    theirs = IsolationForest(n_estimators=100, contamination=0.04, random_state=0).fit(values)
    flagged = Isolated(0.04).fit(values).transform(values)[:, 0] > 0
    assert flagged.sum() == 20
    assert ((theirs.predict(values) == -1) == flagged).mean() >= 0.998


def test_ranks_are_scikit_learns_also_where_values_repeat():
    train = np.stack([np.arange(200) % 7, np.random.default_rng(0).normal(size=200)], axis=1)
    new = np.array([[-9, -9], [0, 0], [3, 0.1], [3.5, 0.2], [6, 9], [99, 99]], dtype=np.float32)
    theirs = QuantileTransformer(n_quantiles=200).fit(train)
    np.testing.assert_allclose(
        Ranks().fit(train).transform(new), theirs.transform(new.astype(np.float64)), atol=1e-6
    )


def test_terms_of_ascii_text_are_scikit_learns():
    texts = np.array([["Good and very good"], ["bad x_1"], [""], ["very BAD day 12"]], dtype=object)
    theirs = TfidfVectorizer(token_pattern="[a-zA-Z0-9_]+", ngram_range=(1, 2))
    expected = theirs.fit_transform(texts[:, 0]).toarray()
    np.testing.assert_allclose(Terms(100, (1, 2)).fit(texts).transform(texts), expected, atol=1e-6)


def test_statistics_are_numpys_where_nothing_is_missing_and_skip_what_is():
    values = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    names = ("mean", "std", "minimum", "maximum", "first", "last", "slope")
    slopes = np.polyfit(np.arange(5), values.T.astype(np.float64), 1)[0]
    columns = [
        values.mean(1),
        values.std(1),
        values.min(1),
        values.max(1),
        values[:, 0],
        values[:, -1],
        slopes,
    ]
    step = WindowStatistics((5,), names)
    np.testing.assert_allclose(step.transform(values), np.stack(columns, axis=1), rtol=1e-4, atol=1e-6)
    gaps = np.array([[np.nan, 2, np.nan, 4, np.nan], [np.nan, np.nan, 7, np.nan, np.nan]], dtype=np.float32)
    np.testing.assert_allclose(step.transform(gaps), [[3, 1, 2, 4, 2, 4, 1], [7, 0, 7, 7, 7, 7, 0]])
    assert np.isnan(step.transform(np.full((1, 5), np.nan, dtype=np.float32))).all()


PATTERNS = (
    r"\d+",
    r"\w*",
    r"(?i)[a-k]+s?",
    r"[^\W\d]+",
    r"^a.*$",
    r"^a$|^k$",
    r"(?s).+",
    r"\s+|\S+",
    r"(?i:k)s",
    r"a\b.*",
    r"(a|k)*?1",
    r"(?i)[^k]+",
    r"(?x) a  k ",
    r"(?:^a|k)+\Z",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_graph_matches_what_python_matches_beyond_ascii_too(pattern: str):
    letters = [*"aAkKsS1 _-.\n\v", "\u212a", "\u017f", "İ", "ß", "東", "٣", "\u00a0", "\U0001f600"]
    tried = [
        "",
        "abc\n",
        *("".join(each) for n in (1, 2, 3) for each in itertools.product(letters, repeat=n)),
    ]
    strings = np.array(tried, dtype=object)
    node = onnx.helper.make_node("RegexFullMatch", ["x"], ["y"], pattern=portable_pattern(pattern))
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, ["n"])
        for name, kind in (("x", onnx.TensorProto.STRING), ("y", onnx.TensorProto.BOOL))
    ]
    graph = onnx.helper.make_graph([node], "rule", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    compiled = compile_pattern(pattern)
    expected = [compiled.fullmatch(string) is not None for string in strings]
    assert any(expected)
    np.testing.assert_array_equal(run_onnx(model.SerializeToString())({"x": strings})["y"], expected)
