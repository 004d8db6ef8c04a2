from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit import keypair
from kit.errors import InputError, MissingDependencyError, ModelError, NotFoundError, VerificationError
from kit.model_version import Parts, write_model_version
from kit.store import FolderStore
from kit.tensors import Tensors
from serve.models import EngineChoice, Loader, VersionKey, prime
from serve.models.loading import repeat_rows
from serve.models.self_test import DEFAULT_TOLERANCE, check_answers, tolerance_of


@dataclass(frozen=True)
class Shop:
    """A store, the key that signs for it, and the parts of one good version."""

    store: FolderStore
    key: Path
    parts: Parts
    folder: Path

    def add(self, **changes: Any) -> VersionKey:
        """Store a version with some parts changed."""
        parts = dataclasses.replace(self.parts, **changes)
        folder = self.folder / f"version-{len(list(self.folder.iterdir()))}"
        digest = write_model_version(parts, folder=folder, key=self.key)
        self.store.put(folder, digest=digest)
        return VersionKey("tiny", 3, digest)

    def loader(self, **options: Any) -> Loader:
        """Make a loader that trusts the key."""
        return Loader(self.store, trusted=keypair.load_trusted(self.key.parent), **options)


@pytest.fixture
def shop(tmp_path: Path, signing_key: Path, tiny_parts: Parts) -> Shop:
    (tmp_path / "versions").mkdir()
    return Shop(FolderStore(tmp_path / "store"), signing_key, tiny_parts, tmp_path / "versions")


def onnx_of(expression: Callable[[Any], list[Any]]) -> bytes:
    """Make a graph like the tiny one whose logits come from nodes of one's own between raw and logits."""
    from onnx import TensorProto, helper, numpy_helper

    shapes = {"label": (TensorProto.INT64, ["n"]), "probabilities": (TensorProto.FLOAT, ["n", 2])}
    outputs = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    weights = np.array([[2.0, -1.0], [-1.0, 2.0]], dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["raw"]),
            *expression(helper),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [*outputs, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def test_a_version_becomes_a_warm_engine_that_answers(shop: Shop) -> None:
    key = shop.add()
    loaded = shop.loader(max_batch_rows=256).load(key)
    card = loaded.card
    assert (card.name, card.number, card.digest, card.engine) == ("tiny", 3, key.digest, "onnxruntime")
    assert card.signature == shop.parts.signature
    assert loaded.sample["x"].shape == (1, 2)
    answers = loaded.engine.run_validated(loaded.sample)
    np.testing.assert_allclose(answers["logits"], shop.parts.golden_outputs["logits"][:1], rtol=1e-6)
    assert list(loaded.times_s) == ["fetch", "verify", "open", "golden", "warm", "test", "measure"]
    assert 0 < loaded.one_row_s < 1
    assert (loaded.batch_rows, loaded.batch_s > 0) == (16, True)
    assert loaded.memory_bytes >= 2 * len(shop.parts.onnx)


def test_a_model_may_have_an_engine_of_its_own(shop: Shop) -> None:
    key = shop.add()
    own = {"tiny": EngineChoice("openvino")}
    assert shop.loader(own=own).load(key).card.engine == "openvino"
    assert shop.loader(own={"other": EngineChoice("openvino")}).load(key).card.engine == "onnxruntime"


def test_a_version_that_answers_otherwise_than_it_did_is_refused(shop: Shop) -> None:
    golden = {name: array.copy() for name, array in shop.parts.golden_outputs.items()}
    golden["logits"][2, 1] += 0.01
    with pytest.raises(VerificationError, match=r"tiny@3: output 'logits' .* golden sample 2, value 1"):
        shop.loader().load(shop.add(golden_outputs=golden))


def test_a_version_that_answers_nan_is_refused(shop: Shop) -> None:
    def nan(helper: Any) -> list[Any]:
        return [
            helper.make_node("Abs", ["raw"], ["positive"]),
            helper.make_node("Neg", ["positive"], ["least"]),
            helper.make_node("Log", ["least"], ["logits"]),
        ]

    with pytest.raises(ModelError, match=r"tiny@3 fails on its own golden samples: output '.*' is NaN"):
        shop.loader().load(shop.add(onnx=onnx_of(nan)))


def test_a_version_that_answers_a_row_alone_otherwise_than_among_others_is_refused(shop: Shop) -> None:
    def alone(helper: Any) -> list[Any]:
        first = helper.make_tensor("zero", 7, [], [0])
        return [
            helper.make_node("Shape", ["raw"], ["shape"]),
            helper.make_node("Constant", [], ["first"], value=first),
            helper.make_node("Gather", ["shape", "first"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["n"], to=1),
            helper.make_node("Reciprocal", ["n"], ["share"]),
            helper.make_node("Floor", ["share"], ["one"]),  # 1 for one row, 0 for more
            helper.make_node("Add", ["raw", "one"], ["logits"]),
        ]

    with pytest.raises(VerificationError, match="'logits' is 3 for golden sample 0, value 0, and was 2"):
        shop.loader().load(shop.add(onnx=onnx_of(alone)))


def test_a_version_that_crashes_in_warm_up_is_refused(shop: Shop) -> None:
    def crash(helper: Any) -> list[Any]:
        shape = helper.make_node("Constant", [], ["shape"], value=helper.make_tensor("three", 7, [2], [3, 5]))
        return [shape, helper.make_node("Reshape", ["raw", "shape"], ["logits"])]

    with pytest.raises(ModelError, match="tiny@3 fails on its own golden samples: onnxruntime fails"):
        shop.loader().load(shop.add(onnx=onnx_of(crash)))


def test_what_is_no_model_is_refused(shop: Shop) -> None:
    with pytest.raises(InputError, match="onnxruntime cannot load"):
        shop.loader().load(shop.add(onnx=b"no model at all"))


def test_a_version_without_golden_samples_is_refused(shop: Shop) -> None:
    empty = {name: array[:0] for name, array in shop.parts.golden_outputs.items()}
    with pytest.raises(VerificationError, match="no golden samples"):
        shop.loader().load(shop.add(golden_inputs={"x": np.zeros((0, 2), np.float32)}, golden_outputs=empty))


def test_only_what_was_signed_by_a_trusted_key_under_its_name_is_loaded(shop: Shop, tmp_path: Path) -> None:
    key = shop.add()
    with pytest.raises(VerificationError, match="by its own manifest"):
        shop.loader().load(key._replace(model="digits"))
    with pytest.raises(NotFoundError):
        shop.loader().load(key._replace(digest="0" * 64))
    keypair.generate_key(tmp_path / "stranger" / "other.pem")
    with pytest.raises(VerificationError):
        Loader(shop.store, trusted=keypair.load_trusted(tmp_path / "stranger")).load(key)
    file = shop.store.root / key.digest / "model.onnx"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match=r"'model\.onnx'"):
        shop.loader().load(key)


def test_a_device_that_is_not_there_is_named(shop: Shop) -> None:
    with pytest.raises(MissingDependencyError, match="cuda"):
        shop.loader(choice=EngineChoice(device="cuda")).load(shop.add())


def test_preparing_imports_does_not_mind_an_engine_that_is_not_there() -> None:
    assert prime() < 60
    assert prime("no such engine") < 60


EXPECTED: Tensors = {
    "label": np.array([1, 0, 1]),
    "probabilities": np.array([[0.2, 0.8], [0.7, 0.3], [0.49999, 0.50001]], np.float32),
    "logits": np.array([[0.0, 1.4], [0.8, 0.0], [1.0, 1.00004]], np.float32),
}


def changed(name: str, row: int, value: Any) -> Tensors:
    found = {key: array.copy() for key, array in EXPECTED.items()}
    found[name][row] = value
    return found


@pytest.mark.parametrize(
    "name, row, value",
    [
        ("logits", 0, [0.0, 1.4 + 5e-5]),
        ("probabilities", 1, [0.7 + 9e-5, 0.3]),
        ("label", 2, 0),  # its two logits are as good as equal
    ],
)
def test_rounding_passes(name: str, row: int, value: Any) -> None:
    found = changed(name, row, value)
    assert not np.array_equal(found[name], EXPECTED[name])
    check_answers(found, EXPECTED, tolerance=1e-4)


@pytest.mark.parametrize(
    "name, row, value, said",
    [
        (
            "logits",
            0,
            [0.0, 1.41],
            r"'logits' is 1\.4\d* for golden sample 0, value 1, and was 1\.39.* apart",
        ),
        ("logits", 1, [np.inf, 0.0], "'logits' is inf for golden sample 1"),
        ("probabilities", 1, [0.701, 0.299], "'probabilities'"),
        ("label", 1, 1, "'label' is 1 for golden sample 1, and was 0"),
    ],
)
def test_a_difference_names_output_sample_and_values(name: str, row: int, value: Any, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        check_answers(changed(name, row, value), EXPECTED, tolerance=1e-4)


def test_nan_never_passes_even_where_the_reference_has_it() -> None:
    both = changed("logits", 2, [np.nan, 1.0])
    with pytest.raises(ModelError, match="'logits' is NaN for golden sample 2"):
        check_answers(both, both, tolerance=1e-4)


def test_infinity_passes_where_the_reference_has_it() -> None:
    both = changed("logits", 1, [0.8, -np.inf])
    assert np.isinf(both["logits"]).any()
    check_answers(both, both, tolerance=1e-4)


def test_a_missing_output_or_another_shape_is_named() -> None:
    with pytest.raises(VerificationError, match="'probabilities'"):
        check_answers({"label": EXPECTED["label"]}, EXPECTED, tolerance=1e-4)
    short = EXPECTED | {"logits": EXPECTED["logits"][:, :1]}
    with pytest.raises(VerificationError, match="shape"):
        check_answers(short, EXPECTED, tolerance=1e-4)


def test_a_version_says_its_tolerance_and_a_gpu_has_more() -> None:
    assert tolerance_of({"parity": {"tolerance": 1e-3}}) == 1e-3
    assert tolerance_of({}) == tolerance_of({"parity": {"tolerance": "much"}}) == DEFAULT_TOLERANCE
    assert tolerance_of({}, device="cuda") == 30 * DEFAULT_TOLERANCE


def test_sample_rows_are_repeated_to_a_batch() -> None:
    batch = repeat_rows({"x": np.arange(3)}, n_rows=7)
    assert batch["x"].tolist() == [0, 1, 2, 0, 1, 2, 0]
