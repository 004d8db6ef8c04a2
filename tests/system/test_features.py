"""[[prepare.features]]: each step answers in the graph and on a device as it does in Python."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from jobs.exporting.converters import RULES_OPSET
from jobs.exporting.graph import export_onnx, preprocessing_graph, python_reference
from jobs.exporting.parity import adversarial_rows, check_parity, run_onnx
from jobs.preparation.changes import describe_changes
from jobs.preparation.columns import Terms, WindowStatistics, lost_share
from jobs.preparation.device import fitted_steps, missing_steps
from jobs.preparation.frame import steps_of, to_features, to_frame
from jobs.preparation.imputing import ColumnImputer
from jobs.preparation.prepared import Prepared, _warn_of_lost_words, fit_preparation
from kit.errors import InputError, ProjectError
from kit.project import Project
from kit.rows import Part, Split
from kit.tensors import Tensors

HEAD = """
[project]
name = "shop"
task = "{task}"

[data]
path = "rows.parquet"
label = "y"

[[data.inputs]]
name = "numbers"
columns = ["age", "income", "visits", "height"]
nullable = true

[[data.inputs]]
name = "count"
dtype = "int64"
minimum = 0

[[data.inputs]]
name = "words"
dtype = "string"
columns = ["color", "size"]
nullable = true

[[data.inputs]]
name = "note"
dtype = "string"
nullable = true

[[data.inputs]]
name = "history"
columns = ["history"]
shape = [5]
nullable = true

[model]
factory = "model:build"
"""

NUMBERS = """
[[prepare.features]]
columns = ["age", "income", "visits", "height"]
{}
"""
REST = """
[[prepare.features]]
columns = ["history"]
statistics = ["mean"]
missing = "constant"
fill = 0.0

[[prepare.features]]
columns = "strings"
encode = "ordinal"
"""
#: Relative, between the graph and Python.
TOLERANCE = 1e-5
PLAIN = 'missing = "median"\n'


def table(n_rows: int = 240, *, seed: int = 0) -> Tensors:
    random = np.random.default_rng(seed)
    base = random.normal(size=n_rows)
    numbers = np.stack(
        [
            40 + 12 * base,
            3000 + 900 * base + 400 * random.normal(size=n_rows),
            random.poisson(3, size=n_rows),
            np.round(170 + 9 * random.normal(size=n_rows)),
        ],
        axis=1,
    )
    numbers[random.random(numbers.shape) < 0.1] = np.nan
    history = random.normal(size=(n_rows, 5)).cumsum(axis=1)
    history[random.random(history.shape) < 0.3] = np.nan
    history[:3] = np.nan
    words = np.stack(
        [
            random.choice(np.array(["red", "grün", "blau", ""], dtype=object), n_rows),
            random.choice(np.array(["S", "M", "XL", "x-1", "12 cm"], dtype=object), n_rows),
        ],
        axis=1,
    )
    vocabulary = np.array(
        ["Good", "bad", "very", "Straße", "東京", "K9", "\u212aelvin", "İst", "x_1", "!"], dtype=object
    )
    notes = [" ".join(random.choice(vocabulary, random.integers(0, 7))) for _ in range(n_rows)]
    return {
        "numbers": numbers.astype(np.float32),
        "count": random.integers(0, 9, size=(n_rows, 1)),
        "words": words,
        "note": np.array(notes, dtype=object)[:, None],
        "history": history.astype(np.float32),
    }


def split(*, task: str = "classification", n_classes: int = 3, n_rows: int = 240) -> Split:
    random = np.random.default_rng(1)
    parts = []
    for seed, size in ((0, n_rows), (1, 60), (2, 60)):
        rows = table(size, seed=seed)
        signal = np.nan_to_num(rows["numbers"][:, 0], nan=40.0) / 12 + (rows["words"][:, 0] == "red")
        noisy = signal + 0.3 * random.normal(size=size)
        if task == "regression":
            labels = noisy.astype(np.float32)
        else:
            labels = np.searchsorted(np.quantile(noisy, np.linspace(0, 1, n_classes + 1)[1:-1]), noisy)
        parts.append(
            Part(rows, labels.astype(np.float32 if task == "regression" else np.int64), np.arange(size))
        )
    classes = tuple(range(n_classes)) if task == "classification" else ()
    return Split(*parts, classes, "0" * 64, n_rows + 120)


def project(folder: Path, features: str, *, task: str = "classification") -> Project:
    (folder / "kit.toml").write_text(HEAD.format(task=task) + features, encoding="utf-8")
    return Project.open(folder)


def prepared(folder: Path, features: str, *, task: str = "classification", n_classes: int = 3) -> Prepared:
    opened = project(folder, features, task=task)
    return fit_preparation(opened, split(task=task, n_classes=n_classes))


def difference(found: Prepared, *, device: bool) -> float:
    """Compare graph and device with Python, on ordinary and on adversarial rows; gives the graph's worst."""
    model = preprocessing_graph(
        found.transformer, signature=found.signature, n_features=found.n_features
    ).SerializeToString()
    strange = adversarial_rows(
        found.signature, sample={name: array[:8] for name, array in found.split.test.tensors.items()}
    )
    ordinary = found.split.test.tensors
    everything = {name: np.concatenate([ordinary[name], array]) for name, array in strange.items()}

    def reference(rows: Any) -> Tensors:
        return {"prepare/features": to_features(found.transformer, rows, signature=found.signature)}

    report = check_parity(reference, run_onnx(model), rows=ordinary, adversarial=strange, tolerance=TOLERANCE)
    assert report.outputs[0].shape == (len(everything["count"]), found.n_features)
    assert len(found.features) == found.n_features
    assert len(set(found.features)) == found.n_features
    steps = fitted_steps(found.transformer, signature=found.signature)
    assert (steps is not None) == device
    assert (missing_steps(found.transformer, signature=found.signature) is None) == device
    if steps is not None:
        expected = reference(everything)["prepare/features"]
        np.testing.assert_allclose(steps.apply(everything)["features"], expected, rtol=1e-6, atol=0)
    return report.max_relative_difference


ON_NUMBERS = {
    "mean": 'missing = "mean"',
    "most frequent": 'missing = "most-frequent"',
    "constant": 'missing = "constant"\nfill = -1',
    "knn": 'missing = "knn"\nneighbors = 3\nscale = "standard"',
    "mice": 'missing = "mice"\nscale = "robust"',
    "iqr clip": PLAIN + 'outliers = "iqr"\nscale = "minmax"',
    "z-score flag": PLAIN
    + 'outliers = "z-score"\noutlier_action = "flag"\noutlier_limit = 2\nscale = "standard"',
    "iqr flag unscaled": PLAIN + 'outliers = "iqr"\noutlier_action = "flag"',
    "iqr drop": PLAIN + 'outliers = "iqr"\noutlier_action = "drop"',
    "quantile": PLAIN + 'scale = "quantile"',
    "quantile bins": PLAIN + 'scale = "bins"\nn_bins = 4',
    "uniform ordinal bins": PLAIN + 'scale = "bins"\nbins = "uniform"\nencode = "ordinal"',
    "kmeans bins": PLAIN + 'scale = "bins"\nbins = "kmeans"\nencode = "one-hot"',
}


@pytest.mark.parametrize("name", ON_NUMBERS)
def test_what_is_done_to_numbers_is_the_same_in_the_graph_and_on_a_device(name: str, tmp_path: Path):
    assert difference(prepared(tmp_path, NUMBERS.format(ON_NUMBERS[name]) + REST), device=True) <= TOLERANCE


@pytest.mark.parametrize("action", ["flag", "drop"])
def test_an_isolation_forest_decides_alike_in_the_graph(action: str, tmp_path: Path):
    step = f'outliers = "isolation-forest"\noutlier_action = "{action}"\noutlier_limit = 0.05'
    assert (
        difference(prepared(tmp_path, NUMBERS.format(PLAIN + step) + REST), device=action == "drop")
        <= TOLERANCE
    )


ON_STRINGS = {
    "one-hot": 'columns = ["color", "size"]\nencode = "one-hot"',
    "filled": 'columns = ["color", "size"]\nmissing = "most-frequent"\nencode = "one-hot"',
    "constant": 'columns = ["color", "size"]\nmissing = "constant"\nfill = "ähm"\nencode = "ordinal"',
    "target": 'columns = ["color", "size"]\nencode = "target"',
}


@pytest.mark.parametrize("name", ON_STRINGS)
def test_what_is_done_to_categories_is_the_same_in_the_graph_and_on_a_device(name: str, tmp_path: Path):
    features = NUMBERS.format(PLAIN) + "[[prepare.features]]\n" + ON_STRINGS[name] + REST
    assert difference(prepared(tmp_path, features), device=True) <= TOLERANCE


@pytest.mark.parametrize("task, n_classes", [("regression", 0), ("classification", 2), ("classification", 4)])
def test_target_means_follow_the_task(task: str, n_classes: int, tmp_path: Path):
    features = NUMBERS.format(PLAIN) + REST.replace("ordinal", "target")
    assert difference(prepared(tmp_path, features, task=task, n_classes=n_classes), device=True) <= TOLERANCE


@pytest.mark.parametrize("ngrams, most", [([1, 1], 1000), ([1, 2], 1000), ([2, 3], 9), ([1, 3], 5)])
def test_terms_of_text_that_is_not_ascii_are_the_same_in_the_graph(
    ngrams: list[int], most: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    text = (
        f'[[prepare.features]]\ncolumns = ["note"]\ntext = "tf-idf"\nngrams = {ngrams}\nmax_terms = {most}\n'
    )
    found = prepared(tmp_path, NUMBERS.format(PLAIN) + text + REST)
    with caplog.at_level("WARNING", logger="kit"):
        _warn_of_lost_words(found)
    assert sum("of the words of 'note' hold one" in each for each in caplog.messages) == 1
    assert difference(found, device=False) <= TOLERANCE
    assert any(name.startswith("note:") for name in found.features)
    assert "text" in str(missing_steps(found.transformer, signature=found.signature))


def test_statistics_of_a_window_ignore_what_is_missing(tmp_path: Path):
    statistics = """
    [[prepare.features]]
    columns = ["history"]
    statistics = ["mean", "std", "minimum", "maximum", "first", "last", "slope"]
    missing = "median"
    scale = "standard"
    """
    assert (
        difference(
            prepared(tmp_path, NUMBERS.format(PLAIN) + statistics + REST[REST.index("[[", 5) :]), device=True
        )
        <= TOLERANCE
    )


def test_a_column_of_lists_is_read_value_by_value(tmp_path: Path):
    values = '[[prepare.features]]\ncolumns = ["history"]\nmissing = "mice"\nscale = "standard"\n'
    found = prepared(tmp_path, NUMBERS.format(PLAIN) + values + REST[REST.index("[[", 5) :])
    assert difference(found, device=True) <= TOLERANCE
    assert "history[4]" in found.features


RULES = [r"[a-zü]+", r"(?i)[a-k]+s?|\w{1,2}", r"\S+", r"^\d+ cm$|[SMLX]+", r"[^\W\d]*"]


@pytest.mark.parametrize("pattern", RULES)
def test_a_rule_makes_values_missing_in_the_graph_as_in_python(pattern: str, tmp_path: Path):
    rules = "".join(
        f"[[prepare.rules]]\ncolumn = '{column}'\npattern = '{pattern}'\notherwise = 'missing'\n"
        for column in ("color", "note")
    )
    found = prepared(tmp_path, NUMBERS.format(PLAIN) + REST.replace("ordinal", "one-hot") + rules)
    assert difference(found, device=False) <= TOLERANCE
    assert "rule" in str(missing_steps(found.transformer, signature=found.signature))
    assert any(change.step == "rule" and change.column == "color" for change in found.changes)


SELECTIONS = {
    "variance": "threshold = 0.5",
    "chi-squared": "keep = 3",
    "mutual-information": "keep = 4",
    "recursive": "keep = 5",
    "l1": "strength = 0.05",
}


@pytest.mark.parametrize("method", SELECTIONS)
def test_features_are_selected_in_the_graph_and_on_a_device(method: str, tmp_path: Path):
    select = f'[prepare.select]\nmethod = "{method}"\n{SELECTIONS[method]}\n'
    rest = REST.replace("ordinal", "one-hot").replace("mean", "std")
    found = prepared(tmp_path, NUMBERS.format(PLAIN + 'scale = "minmax"') + rest + select)
    assert difference(found, device=True) <= TOLERANCE
    assert found.changes[-1].step == "select"
    assert f"{found.n_features} of" in found.changes[-1].detail


def test_dropped_rows_leave_the_training_part_alone(tmp_path: Path):
    features = NUMBERS.format(PLAIN + 'outliers = "iqr"\noutlier_action = "drop"') + REST
    found = prepared(tmp_path, features)
    whole = split()
    n_left = len(found.train)
    assert n_left < 240
    assert len(found.split.train.labels) == n_left == len(found.split.train.rows)
    assert len(found.validation) == len(whole.validation.rows)
    change = next(change for change in found.changes if change.step == "outliers")
    assert (change.rows_before, change.rows_after, change.n_values) == (240, n_left, 240 - n_left)


def test_every_step_says_what_it_changed(tmp_path: Path):
    found = prepared(tmp_path, NUMBERS.format(PLAIN + 'outliers = "iqr"') + REST)
    absent = int(np.isnan(found.split.train.tensors["numbers"][:, 0]).sum())
    by_step = {(change.step, change.column): change for change in found.changes}
    assert by_step["missing", "age"].n_values == absent > 0
    assert by_step["outliers", "age"].n_values > 0
    assert by_step["missing", "history:mean"].n_values == 3


def test_what_changed_is_not_worked_out_before_it_is_asked_for(tmp_path: Path):
    found = prepared(tmp_path, NUMBERS.format(PLAIN) + REST)
    assert "changes" not in vars(found)
    assert found.changes is found.changes


def test_no_step_after_the_last_one_that_is_told_of_runs_again(tmp_path: Path):
    runs: list[str] = []

    class Counted(ColumnImputer):
        def transform(self, values: Any) -> np.ndarray:
            runs.append("missing")
            return np.asarray(super().transform(values))

    frame = pandas.DataFrame({"a": np.array([1, np.nan, 3, 90], dtype=np.float32)})
    filled = Pipeline([("missing", Counted(strategy="median")), ("scale", StandardScaler())])
    fitted = ColumnTransformer([("entry1", filled, ["a"])]).fit(frame)
    runs.clear()
    (change,) = describe_changes(fitted, frame)
    assert (change.n_values, runs) == (1, [])


def test_the_mean_of_many_large_values_is_their_mean() -> None:
    history = np.random.default_rng(0).normal(1000, 1, (300_000, 2)).astype(np.float32)
    measured = WindowStatistics((2,), ("mean", "last")).fit(history).transform(history)
    imputer = ColumnImputer(strategy="mean").fit(measured)
    np.testing.assert_allclose(imputer.statistics_, measured.mean(axis=0, dtype=np.float64), rtol=1e-12)
    assert imputer.transform(np.full((1, 2), np.nan, dtype=np.float32)).dtype == np.float32


def test_a_mean_after_statistics_is_filled_in_the_same_everywhere(tmp_path: Path):
    rest = REST.replace('missing = "constant"\nfill = 0.0', 'missing = "mean"')
    found = prepared(tmp_path, NUMBERS.format('missing = "mean"') + rest)
    kinds = {type(step).__name__ for _, step in steps_of(found.transformer, "")}
    assert "ColumnImputer" in kinds
    assert "SimpleImputer" not in kinds
    assert difference(found, device=True) <= TOLERANCE


def test_terms_beside_categories_are_joined_in_float32(tmp_path: Path):
    text = '[[prepare.features]]\ncolumns = ["note"]\ntext = "tf-idf"\n'
    for encode in ("one-hot", "ordinal", "target"):
        found = prepared(tmp_path, NUMBERS.format(PLAIN) + text + REST.replace("ordinal", encode))
        frame = to_frame(found.split.train.tensors, signature=found.signature)
        assert found.transformer.transform(frame).dtype == np.float32


def test_terms_are_made_dense_in_float32_only() -> None:
    random = np.random.default_rng(0)
    words = np.array([f"w{index}" for index in range(500)], dtype=object)
    texts = np.array([[" ".join(row)] for row in random.choice(words, (2000, 4))], dtype=object)
    terms = Terms(500).fit(texts)
    tracemalloc.start()
    try:
        weighed = terms.transform(texts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert weighed.dtype == np.float32
    assert peak < 2 * weighed.nbytes


def test_a_rows_own_label_is_not_in_its_target_means(tmp_path: Path):
    found = prepared(tmp_path, NUMBERS.format(PLAIN) + REST.replace("ordinal", "target"), n_classes=2)
    place = found.features.index("color:target")
    plain = found.read(found.split.train)[:, place]
    assert len(np.unique(plain)) == 4
    assert len(np.unique(found.train[:, place])) > 4


OWN = """
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import OneHotEncoder, TargetEncoder


def target():
    return ColumnTransformer([("size", TargetEncoder(cv=StratifiedKFold(5)), ["size"])])


def sparse():
    return ColumnTransformer([("size", OneHotEncoder(handle_unknown="ignore"), ["size"])])


class Length(BaseEstimator):
    def fit(self, values, labels=None):
        return self

    def transform(self, values):
        return values[["size"]].map(len).to_numpy()
"""


def test_a_transformer_of_ones_own_is_cross_fitted_too(tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    data = split(n_classes=2)
    found = {}
    for name in ("target", "sparse", "Length"):
        (tmp_path / "kit.toml").write_text(
            HEAD.format(task="classification") + f'preprocessing = "own:{name}"\n', encoding="utf-8"
        )
        found[name] = fit_preparation(Project.open(tmp_path), data)
    assert len(np.unique(found["target"].read(data.train))) == 5
    assert len(np.unique(found["target"].train)) > 5
    for name in ("sparse", "Length"):
        np.testing.assert_array_equal(found[name].train, found[name].read(data.train))
        assert found[name].train.dtype == np.float32


BROKEN_OWN = """
from sklearn.base import BaseEstimator


class Kind(BaseEstimator):
    def fit(self, values, labels=None):
        if self.refused == "fit":
            raise KeyError("größe")
        return self

    def transform(self, values):
        if self.refused == "transform":
            raise IndexError("größe")
        return [[1], [1, 2]]


def build():
    kind = Kind()
    kind.refused = "{}"
    return kind
"""


@pytest.mark.parametrize(
    "refused, message",
    [
        ("fit", "the preprocessing 'own:build' cannot be fitted: KeyError: 'größe'"),
        ("transform", "the preprocessing 'own:build' cannot be fitted: IndexError: größe"),
        ("nothing", "the preprocessing yields values that are not numbers"),
    ],
)
def test_a_transformer_of_ones_own_that_fails_is_named(refused: str, message: str, tmp_path: Path):
    (tmp_path / "own.py").write_text(BROKEN_OWN.format(refused), encoding="utf-8")
    opened = project(tmp_path, 'preprocessing = "own:build"\n')
    with pytest.raises(ProjectError, match=message) as caught:
        fit_preparation(opened, split())
    assert caught.value.hint


@pytest.mark.filterwarnings("error")
def test_bins_of_a_column_as_it_is_raise_no_warning(tmp_path: Path):
    bins = '[[prepare.features]]\ncolumns = ["count"]\nscale = "bins"\nn_bins = 3\n'
    found = prepared(tmp_path, NUMBERS.format(PLAIN) + bins + REST)
    assert {0.0, 1.0} == set(np.unique(found.train[:, found.features.index("count:bin0")]))


BAD_ROWS = {
    "interquartile range of 0": ("age", 'missing = "median"\noutliers = "iqr"'),
    "no value in any training row": ("age", 'missing = "median"'),
    "one value": ("age", 'missing = "median"\nscale = "bins"'),
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_what_only_the_rows_show_is_refused_by_column(message: str, tmp_path: Path):
    data = split()
    column, step = BAD_ROWS[message]
    values = data.train.tensors["numbers"][:, 0]
    values[:] = np.nan if "no value" in message else 7.0
    if "quartile" in message:
        values[0] = 9.0
    features = NUMBERS.format(step).replace('"age", ', "") + REST
    features = features + f'[[prepare.features]]\ncolumns = ["{column}"]\n{step}\n'
    with pytest.raises(InputError, match=message) as caught:
        fit_preparation(project(tmp_path, features), data)
    assert repr(column) in caught.value.message
    assert caught.value.hint


EVERYTHING = """
[[prepare.features]]
columns = ["age", "income"]
missing = "knn"
outliers = "z-score"
outlier_action = "flag"
scale = "quantile"

[[prepare.features]]
columns = "numbers"
missing = "mice"
scale = "bins"

[[prepare.features]]
columns = ["note"]
text = "tf-idf"
max_terms = 6

[[prepare.features]]
columns = "strings"
encode = "target"

[[prepare.rules]]
column = "color"
pattern = "[a-zü]+"
otherwise = "missing"

[prepare.select]
method = "mutual-information"
keep = 20
"""


def test_all_of_it_stands_before_a_network_in_one_graph(tmp_path: Path):
    found = prepared(tmp_path, EVERYTHING)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(found.n_features, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    )
    parts = {"transformer": found.transformer, "signature": found.signature}
    model = export_onnx(network, **parts, sample=found.train[:2])
    test = found.split.test.tensors
    strange = adversarial_rows(found.signature, sample={name: array[:8] for name, array in test.items()})
    check_parity(python_reference(network, **parts), run_onnx(model), rows=test, adversarial=strange)
    opsets = {entry.domain: entry.version for entry in onnx.load_from_string(model).opset_import}
    assert opsets[""] == RULES_OPSET


def test_a_network_whose_operation_changed_its_meaning_is_not_joined_with_a_rule(tmp_path: Path):
    class Sampled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            image, grid = x[:, :9].reshape(-1, 1, 3, 3), x[:, :8].reshape(-1, 2, 2, 2)
            return self.head(torch.nn.functional.grid_sample(image, grid, align_corners=False).reshape(-1, 4))

    rule = "[[prepare.rules]]\ncolumn = 'color'\npattern = 'red'\notherwise = 'missing'\n"
    found = prepared(tmp_path, NUMBERS.format(PLAIN) + REST + rule)
    with pytest.raises(ProjectError, match="GridSample") as caught:
        export_onnx(
            Sampled(),
            transformer=found.transformer,
            signature=found.signature,
            sample=found.train[:2],
        )
    assert "otherwise = 'drop'" in str(caught.value.hint)


def test_chi_squared_names_the_feature_that_is_negative(tmp_path: Path):
    select = '[prepare.select]\nmethod = "chi-squared"\nkeep = 3\n'
    with pytest.raises(InputError, match="'income' is -"):
        prepared(tmp_path, NUMBERS.format(PLAIN) + REST + select)


def test_more_features_than_there_are_cannot_be_kept(tmp_path: Path):
    select = '[prepare.select]\nmethod = "mutual-information"\nkeep = 300\n'
    with pytest.raises(InputError, match="keeps 300 features, but there are 9"):
        prepared(tmp_path, NUMBERS.format(PLAIN) + REST + select)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path):
    graphs = []
    for _ in range(2):
        found = prepared(tmp_path, EVERYTHING)
        graph = preprocessing_graph(found.transformer, signature=found.signature, n_features=found.n_features)
        graphs.append(graph.SerializeToString(deterministic=True))
    assert graphs[0] == graphs[1]


def test_the_share_of_words_that_tf_idf_takes_apart_is_known() -> None:
    assert lost_share(np.array([["Zürich and"], ["東京 Bern"]], dtype=object)) == 0.5
    assert lost_share(np.array([["plain words"], [""]], dtype=object)) == 0.0
    assert lost_share(np.array([[""]], dtype=object)) == 0.0
