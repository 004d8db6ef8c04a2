"""Compressing a real network: what becomes smaller, what is refused, what is said when it does not pay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge.export import export
from jobs.candidate import register_candidate
from jobs.compress import CompressResult, compress, conclude, plan
from jobs.compression.measure import int8_answers, n_operations, n_parameters
from jobs.compression.parent import logits_of
from jobs.compression.prune import prune
from jobs.compression.quantize import plain_network, quantising, round_weight
from jobs.fitting.local import fit_here
from jobs.fitting.loop import FitConfig
from jobs.fitting.network import build_network
from jobs.preparation.prepared import Prepared, prepare_rows
from kit.cli.show import making
from kit.errors import InputError, ProjectError
from kit.keypair import generate_key
from kit.metrics import score
from kit.model_version import Parts, write_model_version
from kit.project import Project
from kit.settings import CompressSettings, ExportSettings, TrainSettings


@dataclass(frozen=True)
class Lab:
    """A digits project whose champion was trained in this process."""

    project: Project
    prepared: Prepared

    def twin(self, folder: Path) -> Project:
        """Copy the project with its registry, its store and its key."""
        shutil.copytree(self.project.folder, folder)
        return Project.open(folder)


@pytest.fixture(scope="module")
def lab(project_templates: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("compress") / "digits"
    shutil.copytree(project_templates["digits"], folder)
    for old, new in (("width = 24", "width = 12"), ("epochs = 25", "epochs = 8"), ("= 0.96", "= 0.9")):
        change(folder / "kit.toml", old, new)
    project = Project.open(folder)
    generate_key(project.signing_key_path())
    settings = project.command("train", TrainSettings)
    prepared = prepare_rows(project)
    fitted = fit_here(
        project,
        FitConfig.of(settings, project=project, n_classes=10),
        prepared.arrays,
        build=lambda each: build_network(each, n_features=64, n_classes=10),
        hear=lambda epoch: None,
    )
    register_candidate(project, settings, prepared, fitted, promote=True)
    return Lab(project, prepared)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32)


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def run(project: Project, **flags: Any) -> CompressResult:
    """Compress as ``compress`` does, fine-tuning in this process."""
    values = {"model": project.name, "epochs": 4, **flags}
    planned = plan(project, project.command("compress", CompressSettings, values))
    fitted = fit_here(project, planned.fit, planned.arrays, build=planned.build, hear=lambda epoch: None)
    return conclude(planned, fitted)


def program_of(project: Project, result: CompressResult) -> Any:
    _, version = project.open_version(f"digits@{result.candidate.version.number}")
    return torch.export.load(version.folder / "model.pt2")


@pytest.fixture(scope="module")
def pruned(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, CompressResult]:
    """The champion with half its channels, promoted, in a project of its own."""
    project = lab.twin(tmp_path_factory.mktemp("pruned") / "digits")
    return project, run(project, ratio=0.5, promote=True)


def test_pruning_shrinks_file_and_arithmetic_and_is_promoted(pruned: tuple[Project, CompressResult]) -> None:
    project, result = pruned
    assert result.pays, result.reason
    assert result.after.size_bytes < 0.5 * result.before.size_bytes
    assert result.after.operations < 0.4 * result.before.operations
    assert result.after.metrics["accuracy"] > result.before.metrics["accuracy"] - 0.03
    assert result.candidate.parity.max_relative_difference < 1e-4
    assert project.registry().resolve("digits").number == 2
    _, version = project.open_version("digits@champion")
    parent, _ = project.open_version("digits@1")
    assert version.manifest["lineage"]["parent"] == {"number": 1, "digest": parent.digest}
    assert version.manifest["lineage"]["compress"] == {"method": "prune", "ratio": 0.5}


def test_the_record_holds_what_was_measured(pruned: tuple[Project, CompressResult]) -> None:
    _, result = pruned
    record = json.loads(result.record.read_text())
    assert (record["kind"], record["method"], record["pays"]) == ("compress", "prune", True)
    assert (record["number"], record["parent"]["number"]) == (2, 1)
    for side in ("before", "after"):
        assert {"size_bytes", "operations", "parameters", "metrics", "latency_ms", "int8_metric"} <= set(
            record[side]
        )
    assert record["after"]["metrics"] == result.candidate.metrics


def test_the_table_says_before_after_and_whether_it_pays(
    pruned: tuple[Project, CompressResult], capsys: pytest.CaptureFixture[str]
) -> None:
    making.compress(pruned[1])
    said = capsys.readouterr().out
    for words in ("digits@1, prune", "accuracy in INT8", "it pays: ", "digits@2 is champion"):
        assert words in said


def test_a_pruned_model_still_becomes_a_bundle(pruned: tuple[Project, CompressResult]) -> None:
    project, _ = pruned
    flags = {"model": "digits", "target": ["openvino-int8"]}
    report = export(project, project.command("export", ExportSettings, flags))
    report.require_passed()
    assert report.targets[0].bundle is not None
    assert report.targets[0].bundle.is_file()


def test_a_pruned_model_is_not_pruned_again(pruned: tuple[Project, CompressResult]) -> None:
    with pytest.raises(InputError, match="digits@2 was pruned already") as caught:
        run(pruned[0], model="digits@2")
    assert "kit compress digits@1" in str(caught.value.hint)


def test_the_same_compression_gives_the_same_version(
    lab: Lab, pruned: tuple[Project, CompressResult], tmp_path: Path
) -> None:
    again = run(lab.twin(tmp_path / "digits"), ratio=0.5)
    assert again.candidate.version.digest == pruned[1].candidate.version.digest


def test_a_student_is_taught_by_its_parent_and_can_be_compressed_itself(lab: Lab, tmp_path: Path) -> None:
    project = lab.twin(tmp_path / "digits")
    flags = {"method": "distill", "student": {"width": 8}, "epochs": 12}
    planned = plan(project, project.command("compress", CompressSettings, {"model": "digits", **flags}))
    assert (planned.fit.teacher_weight, planned.fit.temperature) == (0.5, 1.0)
    np.testing.assert_allclose(
        planned.arrays["train_teacher"], logits_of(planned.parent.network, lab.prepared.train)
    )
    result = run(project, **flags)
    assert result.pays, result.reason
    assert result.after.parameters < result.before.parameters
    _, version = project.open_version("digits@2")
    assert version.manifest["lineage"]["model"]["parameters"] == {"width": 8}
    again = plan(project, project.command("compress", CompressSettings, {"model": "digits@2"}))
    assert n_parameters(again.parent.network) == result.after.parameters


def test_quantising_leaves_a_plain_network_with_weights_on_their_grid(lab: Lab, tmp_path: Path) -> None:
    project = lab.twin(tmp_path / "digits")
    before = torch.export.load(project.open_version("digits@1")[1].folder / "model.pt2")
    result = run(project, method="quantize")
    program = program_of(project, result)
    assert list(program.state_dict) == list(before.state_dict)
    assert result.after.size_bytes == result.before.size_bytes
    for name, value in program.state_dict.items():
        if name.endswith("weight"):
            levels = value.flatten(1) / value.abs().flatten(1).amax(dim=1, keepdim=True) * 127
            torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert result.after.int8_metric >= result.before.int8_metric - 0.02
    assert result.candidate.parity.max_relative_difference < 1e-4


def test_a_step_that_does_not_pay_is_said_and_never_promoted(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = lab.twin(tmp_path / "digits")
    flags = {"method": "distill", "student": {"width": 4}, "epochs": 1, "learning_rate": 1e-7}
    result = run(project, promote=True, **flags)
    result.require_passed()  # the exit code is 0
    assert not result.pays
    assert "worse by more than" in result.reason
    assert project.registry().resolve("digits").number == 1
    assert project.registry().resolve("digits@candidate").number == 2
    making.compress(result)
    assert "it does not pay: accuracy goes from" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message, hint",
    [
        ({"method": "distill"}, r"\[compress\] student is empty", "width = 12"),
        ({"method": "distill", "student": {"widht": 4}}, "no parameter 'widht'", "did you mean 'width'"),
        ({"method": "distill", "student": {"width": 12}}, "no fewer than", "smaller values"),
    ],
)
def test_a_compression_that_cannot_work_is_refused(
    lab: Lab, flags: dict[str, Any], message: str, hint: str
) -> None:
    settings = lab.project.command("compress", CompressSettings, {"model": "digits", **flags})
    with pytest.raises(InputError, match=message) as caught:
        compress(lab.project, settings)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("model.py", "2 * width", "3 * width", "the weights of digits@1 do not fit .*layers"),
        ("model.py", "image / 16.0", "image / 8.0", "no longer answers the golden rows of digits@1"),
        ("kit.toml", 'label = "digit"', 'label = "digit"\nseed = 7', "trained"),
        ("kit.toml", '"model:build"', '"model:other"', "built by 'model:build', but .* 'model:other'"),
    ],
)
def test_a_project_that_is_no_longer_the_versions_is_refused(
    lab: Lab, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    project = lab.twin(tmp_path / "digits")
    change(project.folder / file, old, new)
    project = Project.open(project.folder)
    with pytest.raises(InputError, match=message) as caught:
        compress(project, project.command("compress", CompressSettings, {"model": "digits"}))
    assert caught.value.hint


def test_on_fewer_held_out_rows_than_the_gates_ask_for_nothing_is_promoted(lab: Lab, tmp_path: Path) -> None:
    project = lab.twin(tmp_path / "digits")
    change(project.folder / "kit.toml", "[gates.floors]", "[gates]\nmin_rows = 361\n[gates.floors]")
    result = run(Project.open(project.folder), ratio=0.5, promote=True)
    assert not result.pays
    assert "too few rows to tell" in result.reason
    assert "on 360 held-out rows, fewer than min_rows = 361 under [gates]" in result.reason
    assert not result.candidate.promoted
    assert project.registry().resolve("digits").number == 1


ESTIMATOR = {"model": {"estimator": "sklearn.svm:SVC", "factory": None}}
FACTORY = {"model": {"estimator": None, "factory": "model:build"}}


@pytest.mark.parametrize(
    "changed, message",
    [
        (lambda parts: _with(parts, lineage=ESTIMATOR), "is the estimator 'sklearn.svm:SVC'"),
        (lambda parts: replace(_with(parts, lineage=FACTORY), program=None), "holds no model.pt2"),
    ],
)
def test_a_version_that_holds_no_network_is_refused(
    lab: Lab, tmp_path: Path, tiny_parts: Parts, changed: Callable[[Parts], Parts], message: str
) -> None:
    project = lab.twin(tmp_path / "digits")
    folder = tmp_path / "version"
    digest = write_model_version(changed(tiny_parts), folder=folder, key=project.signing_key())
    uri = project.store().put(folder, digest=digest)
    made = project.registry().register("tiny", digest=digest, uri=uri, summary={"metrics": {}})
    settings = project.command("compress", CompressSettings, {"model": f"tiny@{made.number}"})
    with pytest.raises(InputError, match=message) as caught:
        compress(project, settings)
    assert caught.value.hint


def _with(parts: Parts, *, lineage: dict[str, Any]) -> Parts:
    return replace(parts, manifest={**parts.manifest, "lineage": lineage})


class Joined(nn.Module):
    """Branches that are added, and two layers whose sum is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.stem(x)
        y = (y + self.branch(y)).mean(dim=(2, 3))
        return self.first(y) + self.second(torch.relu(y))


def test_pruning_follows_branches_and_keeps_every_layer_that_answers() -> None:
    torch.manual_seed(0)
    network: Any = prune(Joined(), ratio=0.5, rows=zeros(2, 1, 6, 6), n_classes=8)
    assert network.stem[0].out_channels == network.stem[1].num_features == network.branch.out_channels == 4
    assert (network.first.in_features, network.first.out_features) == (4, 8)
    assert network.second.out_features == 8
    assert all(each.requires_grad for each in network.parameters())


class Stubborn(nn.Module):
    """Takes its own width for granted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(self.first(x).reshape(-1, 2, 4).reshape(-1, 8))


def test_a_network_that_cannot_be_pruned_is_refused_with_the_reason() -> None:
    with pytest.raises(ProjectError, match=r"cannot remove channels from this network: .+") as caught:
        prune(Stubborn(), ratio=0.5, rows=zeros(2, 4), n_classes=3)
    assert "--method distill" in str(caught.value.hint)


def test_a_network_whose_every_channel_answers_has_nothing_to_lose() -> None:
    with pytest.raises(ProjectError, match="removes no channel from this network"):
        prune(nn.Linear(4, 3), ratio=0.5, rows=zeros(2, 4), n_classes=3)


def test_a_ratio_that_leaves_less_than_a_channel_is_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(ProjectError, match=r"ratio = 0\.99 removes no channel") as caught:
        prune(network, ratio=0.99, rows=zeros(2, 4), n_classes=3)
    assert "choose another ratio" in str(caught.value.hint)
    assert prune(network, ratio=0.9, rows=zeros(2, 4), n_classes=3)(torch.ones(2, 4)).shape == (2, 3)


def test_rounding_a_weight_twice_changes_nothing_more() -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[2] = 0.0
    once = round_weight(weight)
    torch.testing.assert_close(round_weight(once), once, atol=1e-7, rtol=1e-6)
    step = weight.flatten(1).abs().amax(dim=1) / 127
    assert ((once - weight).flatten(1).abs().amax(dim=1) <= step / 2 + 1e-7).all()


def test_ranges_move_while_there_are_batches_and_are_fixed_afterwards() -> None:
    network: Any = quantising(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), n_batches=2)
    network.train()
    for scale in (1.0, 3.0, 100.0):
        network(scale * torch.ones(4, 2))
    kept = network.state_dict()
    assert int(kept["reading.0.seen"]) == 2
    assert float(kept["reading.0.high"]) == pytest.approx(1.2)  # 1, then a tenth of the way to 3
    assert float(kept["reading.0.low"]) == 0.0
    network.eval()
    torch.testing.assert_close(network.network[0].weight, round_weight(network.network[0].weight))


def test_a_trained_quantising_network_answers_like_its_plain_one_in_int8(lab: Lab) -> None:
    planned = plan(lab.project, lab.project.command("compress", CompressSettings, {"model": "digits"}))
    network = planned.parent.network
    plain = build_network(lab.project, n_features=64, n_classes=10)
    rounding = quantising(network, n_batches=30)
    rounding.train()
    with torch.no_grad():
        for start in range(0, 1280, 64):
            rounding(torch.from_numpy(lab.prepared.train[start : start + 64]))
    rounding.eval()
    held_out = lab.prepared.split.test
    thought = logits_of(rounding, lab.prepared.read(held_out))
    found = int8_answers(plain_network(rounding, plain=plain), prepared=lab.prepared)
    assert float(np.mean(thought.argmax(axis=1) == found["label"])) > 0.98
    assert np.abs(thought - found["logits"]).mean() < 0.03 * thought.std()
    assert score("accuracy", held_out.labels, found) > 0.9


def test_operations_are_counted_for_one_row() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    assert n_operations(network, row=zeros(1, 1, 6, 6)) == 36 * 4 * 9 + 4 * 36 * 5


class Sequences(nn.Module):
    """One layer that PyTorch computes in a fused kernel, over rows of 16 steps, and a head."""

    def __init__(self, layer: nn.Module, *, width: int = 64) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> Any:
        alone = isinstance(self.layer, nn.MultiheadAttention)
        found = self.layer(x, x, x) if alone else self.layer(x)
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


ATTENTION = 16 * 64 * 64 * 4 + 2 * 16 * 16 * 64


@pytest.mark.parametrize(
    "layer, row_shape, expected",
    [
        (nn.LSTM(8, 64, batch_first=True), (16, 8), 16 * 4 * 64 * (8 + 64)),
        (nn.GRU(8, 64, batch_first=True), (16, 8), 16 * 3 * 64 * (8 + 64)),
        (nn.MultiheadAttention(64, 4, batch_first=True), (16, 64), ATTENTION),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 1),
            (16, 64),
            ATTENTION + 2 * 16 * 64 * 128,
        ),
    ],
    ids=["lstm", "gru", "attention", "transformer"],
)
def test_operations_inside_fused_layers_are_counted(
    layer: nn.Module, row_shape: tuple[int, ...], expected: int
) -> None:
    assert n_operations(Sequences(layer), row=zeros(1, *row_shape)) == expected + 64 * 2


@pytest.mark.parametrize("fast", [True, False])
def test_counting_leaves_the_process_as_it_was_even_when_the_network_fails(fast: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    network = nn.Linear(3, 2).train()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        with torch.backends.mkldnn.flags(enabled=fast, allow_tf32=torch.backends.mkldnn.allow_tf32):
            with pytest.raises(RuntimeError, match="shapes"):
                n_operations(network, row=zeros(1, 4))
            assert n_operations(network, row=zeros(1, 3)) == 6
            now = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
            assert now == (fast, fast)
            assert network.training
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == before
