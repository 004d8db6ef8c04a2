"""The exported graphs answer like their source and hold nothing about the machine that made them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes IterativeImputer importable
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.impute import IterativeImputer, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
)

from jobs.exporting.graph import export_onnx, export_program, python_reference
from jobs.exporting.parity import adversarial_rows, check_parity, run_onnx
from jobs.preparation.device import fitted_steps
from jobs.preparation.frame import check_transformer, to_features, to_frame
from kit.errors import GateError, ProjectError
from kit.files import sha256_bytes
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec

REPOSITORY = Path(__file__).resolve().parents[2]


def outputs(n_classes: int) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("label", "int64", (-1,), classes=tuple(range(n_classes))),
        TensorSpec("probabilities", "float32", (-1, n_classes)),
        TensorSpec("logits", "float32", (-1, n_classes)),
    )


NUMBERS = ("mean radius", "b", "c", "d")
TABULAR = Signature(
    "classification",
    (
        TensorSpec("numeric", "float32", (-1, 4), columns=NUMBERS, nullable=True),
        TensorSpec("site", "string", (-1, 1), columns=("site",), nullable=True),
        TensorSpec("linear", "string", (-1,), columns=("ward",)),  # an exporter's own name, on purpose
    ),
    outputs(3),
)
IMAGES = Signature(
    "classification",
    (TensorSpec("image", "float32", (-1, 1, 8, 8), columns=("pixels",), minimum=0, maximum=16),),
    outputs(10),
)


class Convolutional(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.dropout = torch.nn.Dropout(0.3)
        self.head = torch.nn.Linear(8 * 16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv(image))), 2)
        return self.head(self.dropout(hidden.flatten(1)))


def perceptron(n_features: int, n_outputs: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(n_features, 32),
        torch.nn.BatchNorm1d(32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, n_outputs),
    )


def convolutional() -> torch.nn.Module:
    torch.manual_seed(0)
    network = Convolutional()
    network(torch.from_numpy(images(64)))  # moves the running statistics off their start
    return network


def images(n_rows: int) -> np.ndarray:
    return (np.random.default_rng(0).random((n_rows, 1, 8, 8)) * 16).astype(np.float32)


def table(n_rows: int = 300) -> Tensors:
    random = np.random.default_rng(0)
    numeric = random.normal(size=(n_rows, 4)) * [1, 0.1, 100, 3] + [0, 100, -5, 1000]
    numeric[random.random(numeric.shape) < 0.1] = np.nan
    return {
        "numeric": numeric.astype(np.float32),
        "site": random.choice(np.array(["north", "süd", ""], dtype=object), size=(n_rows, 1)),
        "linear": random.choice(np.array(["w1", "w2", "w3"], dtype=object), size=n_rows),
    }


def preprocessing() -> ColumnTransformer:
    return ColumnTransformer(
        [
            ("std", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["mean radius"]),
            ("rob", make_pipeline(SimpleImputer(strategy="mean"), RobustScaler()), ["b"]),
            ("bin", make_pipeline(SimpleImputer(), KBinsDiscretizer(4, encode="onehot-dense")), ["c"]),
            (
                "minmax",
                make_pipeline(SimpleImputer(strategy="constant", fill_value=900.0), MinMaxScaler(clip=True)),
                ["d"],
            ),
            (
                "site",
                make_pipeline(
                    SimpleImputer(missing_values="", strategy="most_frequent"),
                    OneHotEncoder(handle_unknown="ignore"),
                ),
                ["site"],
            ),
            ("ward", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["ward"]),
        ]
    )


class Exported:
    """A fitted tabular pipeline and its graph, exported once for the whole module."""

    def __init__(self) -> None:
        self.rows = table()
        self.transformer = preprocessing().fit(to_frame(self.rows, signature=TABULAR))
        self.features = to_features(self.transformer, self.rows, signature=TABULAR)
        self.network = perceptron(self.features.shape[1], 3)
        self.model = export_onnx(
            self.network, transformer=self.transformer, signature=TABULAR, sample=self.features
        )
        self.reference = python_reference(self.network, transformer=self.transformer, signature=TABULAR)


@pytest.fixture(scope="module")
def exported() -> Exported:
    return Exported()


@pytest.fixture(scope="module")
def cnn() -> bytes:
    return export_onnx(convolutional(), transformer=None, signature=IMAGES, sample=images(3))


def test_the_graph_has_exactly_the_inputs_and_outputs_of_the_signature(exported: Exported):
    graph = onnx.load_from_string(exported.model).graph
    assert [value.name for value in graph.input] == ["numeric", "site", "linear"]
    assert [value.name for value in graph.output] == ["label", "probabilities", "logits"]
    assert any("features" in node.output for node in graph.node)
    assert [value.name for value in graph.value_info] == ["features"]


def test_the_graph_answers_like_its_source_on_ordinary_and_adversarial_rows(exported: Exported):
    candidate = run_onnx(exported.model)
    assert check_parity(exported.reference, candidate, rows=exported.rows).label_agreement == 1.0
    strange = adversarial_rows(TABULAR, sample=exported.rows)
    report = check_parity(exported.reference, candidate, rows=exported.rows, adversarial=strange)
    assert report.max_relative_difference < 1e-5
    assert report.label_agreement == 1.0


@pytest.mark.parametrize("n_rows", [1, 7, 1000])
def test_the_graph_takes_any_number_of_rows(exported: Exported, cnn: bytes, n_rows: int):
    assert run_onnx(exported.model)(table(n_rows))["logits"].shape == (n_rows, 3)
    compiled = openvino.Core().compile_model(openvino.Core().read_model(io.BytesIO(cnn)), "CPU")
    onnxruntime = run_onnx(cnn)({"image": images(n_rows)})
    answer = compiled({"image": images(n_rows)})
    assert onnxruntime["label"].shape == (n_rows,)
    assert onnxruntime["label"].dtype == np.int64
    np.testing.assert_allclose(answer["logits"], onnxruntime["logits"], rtol=0.05, atol=0.05)


def test_the_answer_for_a_row_does_not_depend_on_the_rows_beside_it(exported: Exported, cnn: bytes):
    cases: list[tuple[bytes, Tensors]] = [(exported.model, table(64)), (cnn, {"image": images(64)})]
    for model, rows in cases:
        answer = run_onnx(model)
        together = answer(rows)["logits"]
        for n_rows in (1, 7):
            part = {name: array[8 : 8 + n_rows] for name, array in rows.items()}
            np.testing.assert_array_equal(answer(part)["logits"], together[8 : 8 + n_rows])


def test_steps_as_data_give_the_features_of_the_transformer(exported: Exported):
    steps = fitted_steps(exported.transformer, signature=TABULAR)
    assert steps is not None
    for rows in (exported.rows, adversarial_rows(TABULAR, sample=exported.rows)):
        expected = to_features(exported.transformer, rows, signature=TABULAR)
        np.testing.assert_allclose(steps.apply(rows)["features"], expected, rtol=1e-6)


def test_a_step_without_a_counterpart_has_no_steps_as_data(exported: Exported):
    transformer = ColumnTransformer([("n", make_pipeline(SimpleImputer(), SplineTransformer()), ["b"])])
    transformer.fit(to_frame(exported.rows, signature=TABULAR))
    assert fitted_steps(transformer, signature=TABULAR) is None


def test_the_convolutional_network_answers_like_its_source(cnn: bytes):
    reference = python_reference(convolutional(), transformer=None, signature=IMAGES)
    rows = {"image": images(5)}
    strange = adversarial_rows(IMAGES, sample=rows)
    assert check_parity(reference, run_onnx(cnn), rows=rows, adversarial=strange).label_agreement == 1.0


def test_regression_answers_one_value_per_row():
    signature = Signature(
        "regression",
        (TensorSpec("x", "float32", (-1, 4), columns=NUMBERS),),
        (TensorSpec("value", "float32", (-1,)),),
    )
    network = perceptron(4, 1)
    rows = {"x": np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)}
    model = export_onnx(network, transformer=None, signature=signature, sample=rows["x"])
    assert run_onnx(model)(rows)["value"].shape == (9,)
    check_parity(python_reference(network, transformer=None, signature=signature), run_onnx(model), rows=rows)


@pytest.mark.parametrize("size, offset", [(1e-5, 0.0), (12.0, 1e6)])
def test_a_network_whose_answers_are_small_or_lie_on_an_offset_is_exported(size: float, offset: float):
    signature = Signature(
        "regression",
        (TensorSpec("x", "float32", (-1, 4), columns=NUMBERS),),
        (TensorSpec("value", "float32", (-1,)),),
    )
    network = perceptron(4, 1)
    last = next(layer for layer in reversed(list(network)) if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        last.weight.mul_(size)
        last.bias.mul_(size).add_(offset)
    rows = {"x": np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)}
    model = export_onnx(network, transformer=None, signature=signature, sample=rows["x"])
    reference = python_reference(network, transformer=None, signature=signature)
    strange = adversarial_rows(signature, sample=rows)
    check_parity(reference, run_onnx(model), rows=rows, adversarial=strange)
    middle = reference(rows)["value"].mean()
    with pytest.raises(GateError, match="'value', row "):
        check_parity(reference, lambda rows: {"value": np.full(len(rows["x"]), middle)}, rows=rows)


def test_exporting_leaves_the_network_in_training_mode():
    network = perceptron(4, 2)
    export_program(network, sample=np.zeros((1, 4), dtype=np.float32))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_program_reads_back_and_answers_like_the_network():
    network = convolutional().eval()
    program = torch.export.load(io.BytesIO(export_program(network, sample=images(1)))).module()
    for n_rows in (1, 5):
        rows = torch.from_numpy(images(n_rows))
        torch.testing.assert_close(program(rows), network(rows), rtol=0, atol=1e-6)


DIGESTS = """
import importlib.util, sys
from kit.files import sha256_bytes
spec = importlib.util.spec_from_file_location("test_graph", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
exported = module.Exported()
program = module.export_program(exported.network, sample=exported.features)
print(sha256_bytes(exported.model), sha256_bytes(program))
"""


def test_another_process_in_another_folder_writes_the_same_bytes(exported: Exported, tmp_path: Path):
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), PYTHONHASHSEED="7")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIGESTS, __file__],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    program = export_program(exported.network, sample=exported.features)
    assert result.stdout.split() == [sha256_bytes(exported.model), sha256_bytes(program)]


def test_the_sample_does_not_reach_the_files():
    network = convolutional()
    assert export_program(network, sample=images(1)) == export_program(network, sample=images(9) + 1)


def test_nothing_about_the_machine_is_in_the_files(exported: Exported, cnn: bytes):
    program = export_program(exported.network, sample=exported.features)
    places = {str(REPOSITORY), str(Path.cwd()), sys.prefix, "site-packages", "test_graph", "__main__", ".py"}
    for data in (exported.model, cnn, program):
        for place in places:
            assert place.encode() not in data
    model = onnx.load_from_string(exported.model)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not model.metadata_props


def test_exporting_prints_nothing(capfd: pytest.CaptureFixture[str]):
    export_onnx(convolutional(), transformer=None, signature=IMAGES, sample=images(1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "step, named, hint",
    [
        (SimpleImputer(add_indicator=True), "add_indicator", "leave add_indicator out"),
        (TfidfVectorizer(), "token_pattern", "a-zA-Z0-9_"),
        (IterativeImputer(), "IterativeImputer", "SimpleImputer"),
        (HashingVectorizer(), "HashingVectorizer", "TfidfVectorizer"),
        (OneHotEncoder(), "handle_unknown='error'", "handle_unknown='ignore'"),
        (OneHotEncoder(handle_unknown="infrequent_if_exist"), "infrequent_if_exist", "'ignore'"),
        (OrdinalEncoder(), "handle_unknown='error'", "use_encoded_value"),
        (KBinsDiscretizer(), "encode='onehot'", "onehot-dense"),
    ],
)
def test_a_step_that_onnx_would_get_wrong_is_refused_by_name(step: Any, named: str, hint: str):
    transformer = ColumnTransformer([("first", make_pipeline(step), ["b"])])
    with pytest.raises(ProjectError, match=r"preprocessing\.first\.\w+ \(") as caught:
        check_transformer(transformer)
    assert named in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "step, column, message",
    [
        (make_pipeline(SimpleImputer(), SplineTransformer()), "b", "SplineTransformer"),
        (
            make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
            "site",
            "missing values",
        ),
    ],
)
def test_a_step_that_cannot_be_converted_is_refused(step: Any, column: str, message: str, exported: Exported):
    transformer = ColumnTransformer([("first", step, [column])])
    transformer.fit(to_frame(exported.rows, signature=TABULAR))
    features = to_features(transformer, exported.rows, signature=TABULAR)
    with pytest.raises(ProjectError, match=message) as caught:
        export_onnx(
            perceptron(features.shape[1], 3), transformer=transformer, signature=TABULAR, sample=features
        )
    assert caught.value.hint


def test_a_pipeline_over_all_columns_needs_no_column_transformer():
    signature = Signature(
        "classification",
        (TensorSpec("numeric", "float32", (-1, 4), columns=NUMBERS, nullable=True),),
        outputs(3),
    )
    rows = {"numeric": table()["numeric"]}
    transformer = make_pipeline(SimpleImputer(), StandardScaler()).fit(to_frame(rows, signature=signature))
    network = perceptron(4, 3)
    features = to_features(transformer, rows, signature=signature)
    model = export_onnx(network, transformer=transformer, signature=signature, sample=features)
    reference = python_reference(network, transformer=transformer, signature=signature)
    check_parity(reference, run_onnx(model), rows=rows, adversarial=adversarial_rows(signature, sample=rows))
    steps = fitted_steps(transformer, signature=signature)
    assert steps is not None
    np.testing.assert_array_equal(steps.apply(rows)["features"], features)


def test_a_network_with_the_wrong_number_of_outputs_is_refused():
    with pytest.raises(ProjectError, match=r"shape \[2, 9\], but the data has 10 classes"):
        export_onnx(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 9)),
            transformer=None,
            signature=IMAGES,
            sample=images(1),
        )


def test_a_network_that_fixes_the_number_of_rows_is_refused():
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 4) if x.shape[0] == 2 else x

    with pytest.raises(ProjectError, match="free number of rows"):
        export_program(Fixed(), sample=np.zeros((1, 4), dtype=np.float32))


def test_a_list_column_is_laid_out_value_by_value():
    frame = to_frame({"image": images(2)}, signature=IMAGES)
    assert list(frame)[:2] == ["pixels[0]", "pixels[1]"]
    np.testing.assert_array_equal(frame.to_numpy(), images(2).reshape(2, 64))


def test_another_networks_graph_does_not_pass(exported: Exported):
    torch.manual_seed(1)
    other = torch.nn.Linear(exported.features.shape[1], 3)
    reference = python_reference(other, transformer=exported.transformer, signature=TABULAR)
    with pytest.raises(GateError, match="the model file answers"):
        check_parity(reference, run_onnx(exported.model), rows=exported.rows)
