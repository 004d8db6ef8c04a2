"""Standard architectures, small and with random weights, go the way of every project: train, export, answer.

They are fitted in this process and registered as ``kit train`` registers them, so what they are exported to
has passed the parity check. Networks that read integers go farther: through a batch, an endpoint, and what
explains and measures a version.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from jobs.batch.refusals import Batches, accepted
from jobs.candidate import Candidate, register_candidate
from jobs.compression.measure import int8_answers, n_operations
from jobs.evaluation.explain import shap_values
from jobs.evaluation.importance import permutation_importance
from jobs.fitting.local import fit_here
from jobs.fitting.loop import FitConfig, Fitted
from jobs.fitting.network import build_network, check_network
from jobs.preparation.prepared import Prepared, prepare_rows
from jobs.train import train
from kit.engines import open_engine
from kit.errors import InputError, ProjectError
from kit.keypair import generate_key
from kit.metrics import score
from kit.model_version import ModelVersion
from kit.project import Project
from kit.settings import TrainSettings
from kit.tables import to_tensors
from tests.unit.test_replica import Asked, run

PLACES, N_IDS = 16, 200
FIRST_WORD = 10
SAYS = {"cat": 3, "dog": 4}  # the id that decides the label

KIT_TOML = """
[project]
name = "small"

[data]
path = "rows.parquet"
label = "kind"

[[data.inputs]]
%s

[model]
factory = "model:build"

[train]
batch_size = 32
golden_rows = 4
%s
"""

IDS = """
name = "ids"
dtype = "{dtype}"
shape = [16]
minimum = {minimum}
maximum = 199
"""
IMAGE = """
name = "image"
shape = [3, 32, 32]
minimum = 0
maximum = 255
"""
SIGNAL = """
name = "signal"
shape = [3, 64]
minimum = -100
maximum = 100
"""

BERT = """
import torch
from transformers import BertConfig, BertForSequenceClassification


class Phrases(torch.nn.Module):
    def __init__(self, n_ids, n_classes):
        super().__init__()
        self.bert = BertForSequenceClassification(
            BertConfig(
                vocab_size=n_ids,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=32,
                num_labels=n_classes,
            )
        )

    def forward(self, ids):
        # The first place is always read: attention over nothing at all is not defined.
        mask = torch.cat([torch.ones_like(ids[:, :1]), (ids[:, 1:] != 0).long()], dim=1)
        return self.bert(input_ids=ids, attention_mask=mask).logits


def build(n_classes, n_ids=200):
    return Phrases(n_ids, n_classes)
"""

VISION = """
import torch
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification
from transformers import ViTConfig, ViTForImageClassification

CONFIGS = {
    "mobilenet": (MobileNetV2ForImageClassification, MobileNetV2Config, dict(depth_multiplier=0.35)),
    "vit": (
        ViTForImageClassification,
        ViTConfig,
        dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8),
    ),
}


class Vision(torch.nn.Module):
    def __init__(self, kind, n_classes):
        super().__init__()
        network, config, chosen = CONFIGS[kind]
        self.network = network(config(image_size=32, num_labels=n_classes, **chosen))

    def forward(self, image):
        return self.network(pixel_values=image / 255).logits


def build(kind, n_classes):
    return Vision(kind, n_classes)
"""

#: A table of its own, whose integers start above 0.
TABLE = """
from torch import nn


class Bag(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.table = nn.Embedding(200, 16)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, n_classes))

    def forward(self, ids):
        return self.head(self.table(ids - 3).mean(1))


def build(n_classes):
    return Bag(n_classes)
"""

SERIES = """
from torch import nn


def build(n_classes):
    return nn.Sequential(
        nn.Conv1d(3, 16, 7, stride=2, padding=3),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, n_classes),
    )
"""


def make_project(folder: Path, *, rows: pa.Table, code: str, given: str, trained: str) -> Project:
    folder.mkdir()
    parquet.write_table(rows, folder / "rows.parquet")
    (folder / "kit.toml").write_text(KIT_TOML % (given.strip(), trained))
    (folder / "model.py").write_text(code)
    project = Project.open(folder)
    generate_key(project.signing_key_path())
    return project


def phrases(n_rows: int, *, seed: int = 0, shift: int = 0, dtype: str = "int64") -> pa.Table:
    """Make phrases of 4 to 16 ids, padded with 0; one of two words in them says what they are about."""
    random = np.random.default_rng(seed)
    ids = random.integers(FIRST_WORD, N_IDS - shift, (n_rows, PLACES))
    ids[np.arange(PLACES) >= random.integers(4, PLACES + 1, n_rows)[:, None]] = 0
    kinds = random.choice(list(SAYS), n_rows)
    ids[np.arange(n_rows), random.integers(0, 4, n_rows)] = [SAYS[each] for each in kinds]
    return pa.table({"ids": list((ids + shift).astype(dtype)), "kind": kinds})


def labelled(values: np.ndarray, kinds: np.ndarray, *, name: str) -> pa.Table:
    flat = values.astype(np.float32).reshape(len(values), -1)
    return pa.table({name: list(flat), "kind": np.array(list(SAYS))[kinds]})


def images(n_rows: int) -> pa.Table:
    """Make images of noise; half of them are dark in one colour."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 2, n_rows)
    pixels = random.integers(0, 256, (n_rows, 3, 32, 32)).astype(np.float32)
    pixels[kinds == 1, 0] //= 4
    return labelled(pixels, kinds, name="image")


def series(n_rows: int) -> pa.Table:
    """Make three channels of noise; half of the rows hold a wave in one of them."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 2, n_rows)
    signal = random.normal(size=(n_rows, 3, 64))
    signal[kinds == 1, 1] += 2 * np.sin(np.arange(64) / 3)
    return labelled(signal, kinds, name="signal")


def bert(folder: Path, *, n_rows: int = 600, given: str = "", trained: str = "") -> Project:
    trained = "epochs = 4\nlearning_rate = 0.003\n" + trained
    given = given or IDS.format(dtype="int64", minimum=0)
    return make_project(folder, rows=phrases(n_rows), code=BERT, given=given, trained=trained)


@dataclass(frozen=True)
class Made:
    """A project and what was made of it.

    Attributes:
        project: Its champion is ``small@1``.
        candidate: That version.
        fitted: What it was exported from.
        prepared: What it learned from.
    """

    project: Project
    candidate: Candidate
    fitted: Fitted
    prepared: Prepared

    @property
    def version(self) -> ModelVersion:
        return self.project.open_version("small")[1]


def make(project: Project) -> Made:
    """Do what ``kit train`` does, in this process."""
    settings = project.command("train", TrainSettings)
    prepared = prepare_rows(project)
    n_classes = len(prepared.split.classes)

    def build(each: Project) -> Any:
        return build_network(each, n_features=prepared.n_features, n_classes=n_classes)

    check_network(build(project), rows=prepared.trial, n_classes=n_classes)
    chosen = FitConfig.of(settings, project=project, n_classes=n_classes)
    fitted = fit_here(project, chosen, prepared.arrays, build=build, hear=lambda epoch: None)
    return Made(
        project, register_candidate(project, settings, prepared, fitted, promote=True), fitted, prepared
    )


def answers(version: ModelVersion, rows: pa.Table) -> dict[str, np.ndarray]:
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    return engine.run(to_tensors(rows, version.signature))


def changed(rows: pa.Table, *, row: int, value: int) -> pa.Table:
    ids = np.array(rows["ids"].to_pylist())
    ids[row, 2] = value
    return rows.set_column(rows.column_names.index("ids"), "ids", pa.array(list(ids)))


@pytest.fixture(scope="module")
def phrased(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A BERT that reads ids of 64 bits from 0 to 199."""
    return make(bert(tmp_path_factory.mktemp("bert") / "project"))


def bag(folder: Path) -> Project:
    return make_project(
        folder,
        rows=phrases(800, shift=3, dtype="int32"),
        code=TABLE,
        given=IDS.format(dtype="int32", minimum=3),
        trained="epochs = 10\nlearning_rate = 0.02",
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A network that looks up integers of 32 bits from 3 to 199."""
    return make(bag(tmp_path_factory.mktemp("table") / "project"))


def test_a_bert_that_reads_integers_learns_and_its_graph_reads_them_too(phrased: Made) -> None:
    assert phrased.candidate.promoted
    assert phrased.candidate.metrics["accuracy"] > 0.95
    assert phrased.candidate.parity.max_relative_difference < 1e-4
    (spec,) = phrased.version.signature.inputs
    assert (spec.dtype, spec.row_shape, spec.minimum, spec.maximum) == ("int64", (16,), 0, 199)
    (read,) = onnx.load(phrased.version.model_path).graph.input
    assert read.type.tensor_type.elem_type == onnx.TensorProto.INT64
    rows = phrases(100, seed=1)
    named = np.array(list(SAYS))[answers(phrased.version, rows)["label"]]
    assert np.mean(named == np.array(rows["kind"])) > 0.9


@pytest.mark.parametrize(
    "value, rule", [(200, "200 is above the maximum 199"), (-1, "-1 is below the minimum 0")]
)
def test_an_integer_out_of_bounds_is_refused_by_the_signature(phrased: Made, value: int, rule: str) -> None:
    with pytest.raises(InputError, match=f"input 'ids', row 7: {rule}"):
        answers(phrased.version, changed(phrases(50), row=7, value=value))


def test_a_batch_answers_its_rows_and_sets_an_integer_beyond_the_maximum_aside(phrased: Made) -> None:
    version, rows = phrased.version, phrases(50, seed=1)
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    tensors, refused = accepted(changed(rows, row=7, value=200), version.signature)
    assert refused == {7: "input 'ids': 200 is above the maximum 199"}
    found, failed = Batches(engine, batch_rows=16).answer(tensors)
    assert not failed
    alone = answers(version, rows.take(np.delete(np.arange(50), 7)))
    np.testing.assert_array_equal(found["label"], alone["label"])


@pytest.mark.parametrize("left_out", ["minimum", "maximum"])
def test_integers_without_bounds_are_refused_before_the_table_is_read(tmp_path: Path, left_out: str) -> None:
    lines = IDS.format(dtype="int64", minimum=0).splitlines()
    given = "\n".join(line for line in lines if not line.startswith(left_out))
    project = bert(tmp_path / "project", n_rows=50, given=given)
    (project.folder / "rows.parquet").unlink()
    with pytest.raises(ProjectError, match=f"input 'ids' is int64 and has no {left_out};") as caught:
        train(project, project.command("train", TrainSettings))
    assert "set minimum and maximum of the input in kit.toml" in str(caught.value.hint)


def test_a_network_whose_table_is_smaller_than_the_maximum_is_refused_before_ray_starts(
    tmp_path: Path,
) -> None:
    project = bert(tmp_path / "project", n_rows=50, trained="[model.parameters]\nn_ids = 199")
    with pytest.raises(ProjectError, match="integers from 0 to 199: IndexError") as caught:
        train(project, project.command("train", TrainSettings))
    assert "maximum" in str(caught.value.hint)


@pytest.mark.parametrize(
    "given, model, said",
    [
        (IDS.format(dtype="int16", minimum=0), "", r"float32, int32 or int64 .* names ids \(int16\)"),
        (
            IDS.format(dtype="int64", minimum=0) + '[[data.inputs]]\nname = "age"',
            "",
            r"one input .* names ids \(int64\), age \(float32\)",
        ),
        (IDS.format(dtype="int64", minimum=0), "sklearn.naive_bayes:GaussianNB", "an estimator reads"),
    ],
)
def test_what_cannot_be_read_as_it_is_has_to_be_prepared(
    tmp_path: Path, given: str, model: str, said: str
) -> None:
    project = bert(tmp_path / "project", n_rows=50, given=given)
    if model:
        path = project.folder / "kit.toml"
        text = path.read_text().replace('factory = "model:build"', f'estimator = "{model}"')
        path.write_text(text.split("[train]")[0])
        project = Project.open(project.folder)
    with pytest.raises(ProjectError, match=said) as caught:
        train(project, project.command("train", TrainSettings))
    assert "[[prepare.features]]" in str(caught.value.hint)


def test_integers_above_zero_are_stood_in_for_by_the_smallest_allowed(table: Made) -> None:
    assert table.candidate.metrics["accuracy"] > 0.9
    program = torch.export.load(table.version.folder / "model.pt2")
    (kept,) = program.example_inputs[0]
    assert (kept.dtype, kept.unique().tolist()) == (torch.int32, [3])
    rows = table.prepared.read(table.prepared.split.test)
    logits = program.module()(torch.from_numpy(rows)).detach().numpy()
    found = answers(table.version, phrases(800, shift=3, dtype="int32").take(table.prepared.split.test.rows))
    np.testing.assert_allclose(logits, found["logits"], atol=1e-4)


def test_columns_of_integers_are_explained_by_permutation_and_by_shap(table: Made) -> None:
    some = table.prepared.split.test.take(np.arange(16))
    signature = table.version.signature
    engine = open_engine(table.version.model_path, engine="onnxruntime", threads=1, signature=signature)
    importance = permutation_importance(
        engine.run, some.tensors, some.labels, signature=signature, metric="accuracy", seed=0
    )
    shap = shap_values(engine.run, some.tensors, signature=signature, seed=0)
    assert len(importance) == len(shap) == PLACES
    assert {each.column for each in shap} == {f"ids[{place}]" for place in range(PLACES)}
    assert importance[0].mean > 0
    assert shap[0].mean_abs > 0


def test_a_network_of_integers_is_measured_and_converted_to_int8(table: Made) -> None:
    found = int8_answers(table.fitted.model, prepared=table.prepared)
    assert score("accuracy", table.prepared.split.test.labels, found) > 0.9
    assert n_operations(table.fitted.model, row=table.prepared.train[:1]) == 16 * 32 + 32 * 2


def test_an_endpoint_answers_integers_and_refuses_one_that_is_not_in_the_table(table: Made) -> None:
    async def check(asked: Asked) -> None:
        for last, status in ((199, 200), (200, 400), (2, 400)):
            data = [3] * (PLACES - 1) + [last]
            tensor = {"name": "ids", "datatype": "INT32", "shape": [1, PLACES], "data": data}
            answer = await asked.ask("POST", "/v2/models/small/infer", {"inputs": [tensor]})
            assert answer is not None
            assert answer.status == status, answer.body

    run(table.project, check, models=("small",))


@pytest.mark.parametrize(
    "code, rows, given, trained",
    [
        pytest.param(VISION, images, IMAGE, "[model.parameters]\nkind = 'mobilenet'", id="mobilenet"),
        pytest.param(VISION, images, IMAGE, "[model.parameters]\nkind = 'vit'", id="vit"),
        pytest.param(SERIES, series, SIGNAL, "learning_rate = 0.01", id="series"),
    ],
)
def test_a_standard_architecture_is_trained_and_answers_like_its_python(
    tmp_path: Path, code: str, rows: Any, given: str, trained: str
) -> None:
    made = make(
        make_project(
            tmp_path / "project", rows=rows(160), code=code, given=given, trained="epochs = 1\n" + trained
        )
    )
    assert [each.epoch for each in made.fitted.epochs] == [1]
    assert made.candidate.parity.max_relative_difference < 1e-4
    assert made.candidate.parity.n_rows > len(made.prepared.split.test.rows)
    found = answers(made.version, rows(160))
    assert found["logits"].shape == (160, 2)
    assert np.isfinite(found["logits"]).all()
