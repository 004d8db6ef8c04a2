"""Structured pruning: a network with fewer channels, by torch-pruning.

torch-pruning follows which channels depend on each other and removes them everywhere at once, so
files and arithmetic shrink; zeroing weights, as ``torch.nn.utils.prune`` does, shrinks neither.
It knows nothing of training, versions or Ray.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.compression.measure import n_parameters
from jobs.compression.parent import load_weights, recorded_network
from jobs.fitting.network import check_network
from kit.errors import ProjectError
from kit.project import Project

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("kit")


def pruned_network(
    project: Project,
    *,
    weights: bytes,
    ratio: float,
    parameters: Mapping[str, Any],
    rows: np.ndarray,
    n_classes: int,
) -> torch.nn.Module:
    """Build a version's network again and remove a share of its channels.

    The same arguments give the same network in every process, so each worker builds its own.

    Args:
        project: Names the factory.
        weights: Of the version, from ``Parent.weights``: they decide which channels go.
        ratio: Share of each layer's channels that goes, above 0 and below 1.
        parameters: Arguments of the factory the version was built with.
        rows: A few rows as the network reads them; their values change nothing.
        n_classes: 0 for regression.

    Raises:
        ProjectError: The network cannot be pruned; the message says why.
    """
    network = recorded_network(
        project, parameters=parameters, n_features=int(np.prod(rows.shape[1:])), n_classes=n_classes
    )
    load_weights(network, weights)
    return prune(network, ratio=ratio, rows=rows, n_classes=n_classes)


def prune(network: torch.nn.Module, *, ratio: float, rows: np.ndarray, n_classes: int) -> torch.nn.Module:
    """Remove a share of the channels of every layer but those that give the answer.

    Channels that depend on each other form a group; those whose weights in it have the smallest
    norm go first.

    Args:
        network: Trained; changed, and given back.
        ratio: Share of each layer's channels that goes, above 0 and below 1.
        rows: As for ``pruned_network``.
        n_classes: 0 for regression.

    Raises:
        ProjectError: torch-pruning cannot follow the network, or nothing can be removed.

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023).
    """
    import torch
    import torch_pruning as pruning

    before = n_parameters(network)
    read = torch.from_numpy(np.array(rows))
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters outside any layer: those it leaves alone
        try:
            kept = _answering_layers(network, read)
            pruning.pruner.BasePruner(
                network,
                read,
                importance=pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                ignored_layers=kept,
            ).step()
        except Exception as error:  # torch-pruning meets a structure it does not know in many ways
            raise _unprunable(f"{type(error).__name__}: {error}") from error
    network.requires_grad_(True)
    try:
        check_network(network, rows=rows, n_classes=n_classes)
    except ProjectError as error:
        raise _unprunable(error.message) from error
    after = n_parameters(network)
    if after == before:
        raise ProjectError(
            f"ratio = {ratio:g} removes no channel from this network",
            hint="choose another ratio, or another method: kit compress --method quantize",
        )
    _log.debug("pruning left %d of %d parameters", after, before)
    return network


def _answering_layers(network: torch.nn.Module, rows: torch.Tensor) -> list[torch.nn.Module]:
    """Find the layers whose channels are the answer: walk back from the graph's ends to the first of each."""
    import torch_pruning as pruning

    graph = pruning.DependencyGraph().build_dependency(network, example_inputs=rows)
    roots = (pruning.ops.TORCH_CONV, pruning.ops.TORCH_LINEAR)
    open_nodes = [node for node in graph.module2node.values() if not node.outputs]
    seen: set[int] = set()
    found: list[torch.nn.Module] = []
    while open_nodes:
        node = open_nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node.module, roots):
            found.append(node.module)
        else:
            open_nodes.extend(node.inputs)
    return found


def _unprunable(why: str) -> ProjectError:
    first = next((line.strip() for line in why.splitlines() if line.strip()), why)
    return ProjectError(
        f"torch-pruning cannot remove channels from this network: {first[:200]}",
        hint="use another method: kit compress --method distill, or --method quantize",
    )
