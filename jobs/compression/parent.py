"""The version a compression starts from: verified, of this project and this data, as a network again.

Its weights come from ``model.pt2``, into the network that the project's factory builds. Whatever
does not fit is refused here, before any work starts. It knows nothing of the ways to compress.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.exporting.parity import check_parity
from jobs.fitting.network import build_network, check_network
from jobs.preparation.prepared import Prepared
from kit.errors import GateError, InputError, ProjectError
from kit.lineage import require_same_rows, require_same_signature
from kit.model_version import ModelVersion
from kit.project import Project
from kit.registry import VersionRecord

if TYPE_CHECKING:
    import torch

_TRAIN_AGAIN = "restore what the version was trained with, or train again: kit train"
#: Golden answers were given by the ONNX graph; Python may differ by as much as parity allowed, and a little.
_GOLDEN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Parent:
    """A version that can be compressed.

    Attributes:
        record: Its entry in the registry.
        version: Its verified files.
        parameters: Arguments of the factory it was built with.
        network: The network with its weights, in evaluation mode.
    """

    record: VersionRecord
    version: ModelVersion
    parameters: dict[str, Any]
    network: torch.nn.Module

    @property
    def name(self) -> str:
        """The version as a reference, ``digits@3``."""
        return f"{self.record.model}@{self.record.number}"

    def weights(self) -> bytes:
        """Give the network's weights as ``load_weights`` reads them."""
        import torch

        packed = BytesIO()
        torch.save(self.network.state_dict(), packed)
        return packed.getvalue()


def open_parent(project: Project, reference: str) -> tuple[VersionRecord, ModelVersion]:
    """Verify a version, and refuse one that is no network of this project's factory.

    Raises:
        InputError: It holds an estimator, no torch program, a pruned network, or another factory's.
        NotFoundError: Nobody knows the version.
        VerificationError: A file or the signature does not hold.
    """
    record, version = project.open_version(reference)
    name = f"{record.model}@{record.number}"
    lineage = version.manifest.get("lineage", {})
    model = lineage.get("model", {})
    if model.get("estimator"):
        raise InputError(
            f"{name} is the estimator {model['estimator']!r}; only a network can be compressed",
            hint="make the estimator itself smaller in [model.parameters], for example with fewer trees",
        )
    if not (version.folder / "model.pt2").is_file():
        raise InputError(
            f"{name} holds no model.pt2, so there are no weights to go on from",
            hint="train it with this kit: kit train",
        )
    made_by = lineage.get("compress", {}).get("method")
    if made_by == "prune":
        parent = lineage.get("parent", {}).get("number")
        raise InputError(
            f"{name} was pruned already, so its channels are no longer those of the factory",
            hint=f"compress its parent instead, with another ratio: kit compress {record.model}@{parent}",
        )
    factory = project.settings.model.factory
    if model.get("factory") != factory:
        raise InputError(
            f"{name} was built by {model.get('factory')!r}, but [model] names {factory!r}",
            hint=_TRAIN_AGAIN,
        )
    return record, version


def load_parent(
    project: Project, record: VersionRecord, version: ModelVersion, *, prepared: Prepared
) -> Parent:
    """Build the network again, give it the version's weights, and see that it still answers alike.

    Args:
        project: Whose factory and preprocessing are used.
        record: From ``open_parent``.
        version: Likewise.
        prepared: The project's rows, as they are now.

    Raises:
        InputError: The data is not what the version was trained on.
        ProjectError: The factory's network does not take the weights, or pipeline and version
            answer the golden rows differently.
    """
    name = f"{record.model}@{record.number}"
    require_same_rows(project, version, prepared.split)
    require_same_signature(project, version, classes=prepared.split.classes)
    parameters = dict(version.manifest["lineage"]["model"]["parameters"])
    n_classes = len(prepared.split.classes)
    network = recorded_network(
        project, parameters=parameters, n_features=prepared.n_features, n_classes=n_classes
    )
    check_network(network, rows=prepared.trial, n_classes=n_classes)
    _take_weights(network, version, name=name)
    _require_same_answers(network, version, prepared=prepared, name=name)
    return Parent(record, version, parameters, network.eval())


def recorded_network(
    project: Project, *, parameters: Mapping[str, Any], n_features: int, n_classes: int
) -> torch.nn.Module:
    """Build the factory's network with exactly these parameters, whatever kit.toml says now.

    Args:
        project: Names the factory.
        parameters: All of its arguments but those the kit offers.
        n_features: As in ``build_network``.
        n_classes: Likewise.

    Raises:
        ProjectError: The factory does not take a parameter, or fails.
    """
    model = project.settings.model.model_copy(update={"parameters": dict(parameters)})
    settings = project.settings.model_copy(update={"model": model})
    recorded = dataclasses.replace(project, settings=settings)
    return build_network(recorded, n_features=n_features, n_classes=n_classes)


def load_weights(network: torch.nn.Module, weights: bytes) -> None:
    """Give a network the weights that ``Parent.weights`` packed."""
    import torch

    network.load_state_dict(torch.load(BytesIO(weights), weights_only=True))


def logits_of(network: torch.nn.Module, rows: np.ndarray, *, batch_rows: int = 1024) -> np.ndarray:
    """Ask a network in evaluation mode.

    Args:
        network: Answers rows; its mode is kept.
        rows: What it reads, shape (n_rows, ...).
        batch_rows: Rows at a time, so that memory stays bounded.

    Returns:
        Its raw answers, float32, shape (n_rows, n_outputs).
    """
    import torch

    training = network.training
    network.eval()
    with torch.no_grad():
        parts = [
            network(torch.from_numpy(np.array(rows[start : start + batch_rows]))).to(torch.float32).numpy()
            for start in range(0, len(rows), batch_rows)
        ]
    network.train(training)
    return np.concatenate(parts)


def _take_weights(network: torch.nn.Module, version: ModelVersion, *, name: str) -> None:
    import torch

    try:
        program = torch.export.load(version.folder / "model.pt2")
        network.load_state_dict(program.state_dict)
    except Exception as error:  # torch raises its own, pickle's and zip's errors about a program's content
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[1 if len(lines) > 1 else 0] if lines else type(error).__name__
        raise ProjectError(
            f"the weights of {name} do not fit the network that the factory builds now: {said[:160]}",
            hint=_TRAIN_AGAIN,
        ) from error


def _require_same_answers(
    network: torch.nn.Module, version: ModelVersion, *, prepared: Prepared, name: str
) -> None:
    """Refuse code under which the version's weights mean something else."""
    from jobs.exporting.graph import python_reference

    inputs, outputs = version.golden()
    now = python_reference(network, transformer=prepared.transformer, signature=prepared.signature)
    try:
        check_parity(lambda rows: outputs, now, rows=inputs, tolerance=_GOLDEN_TOLERANCE)
    except GateError as error:
        raise ProjectError(
            f"the project no longer answers the golden rows of {name} as the version does: {error.message}",
            hint=_TRAIN_AGAIN,
        ) from error
