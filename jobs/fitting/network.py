"""The project's network: built by its factory, and tried on a few rows before anything starts."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import ProjectError, nearest
from kit.project import Project

if TYPE_CHECKING:
    import torch


def build_network(
    project: Project,
    *,
    n_features: int,
    n_classes: int,
    parameters: Mapping[str, Any] | None = None,
) -> torch.nn.Module:
    """Call the project's factory.

    Args:
        project: Names the factory and its parameters.
        parameters: Stand in for those of the same name in kit.toml.
        n_features: Columns the network reads after preprocessing, offered to a factory that
            takes ``n_features``.
        n_classes: Likewise; 0 for regression.

    Raises:
        ProjectError: The factory does not take a parameter, fails, or returns no module.
    """
    import torch

    reference = project.settings.model.factory
    if reference is None:
        raise ProjectError(
            f"[model] names the estimator {project.settings.model.estimator!r} and no factory",
            hint="set factory in [model]; an estimator of a library has no network",
        )
    factory = project.load_object(reference)
    if not callable(factory):
        raise ProjectError(f"{reference!r} is a value of type {type(factory).__name__}, not a function")
    given = {**project.settings.model.parameters, **(parameters or {})}
    takes = inspect.signature(factory).parameters
    free = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    for name in given:
        if name not in takes and not free:
            raise ProjectError(
                f"the factory {reference!r} takes no parameter {name!r}", hint=nearest(name, takes)
            )
    offered = {"n_features": n_features, "n_classes": n_classes}
    arguments = {name: value for name, value in offered.items() if name in takes} | given
    try:
        with warnings.catch_warnings():
            # A layer of n_classes = 0 values: check_network refuses it in words of the project's own.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            network = factory(**arguments)
    except Exception as error:  # the user's code may raise anything at all
        raise ProjectError(
            f"the factory {reference!r} failed: {type(error).__name__}: {error}",
            hint="correct the function or [model.parameters] in kit.toml",
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise ProjectError(
            f"the factory {reference!r} returned a value of type {type(network).__name__}",
            hint="return a torch.nn.Module",
        )
    return network


def check_network(network: torch.nn.Module, *, rows: np.ndarray, n_classes: int) -> None:
    """Refuse a network that cannot read the rows, or answers in another shape than the task needs.

    Args:
        network: What the factory returned; left in training mode.
        rows: A few rows as the network will read them.
        n_classes: Answers per row; 0 for regression, which needs one value.

    Raises:
        ProjectError: Calling it fails, or the answer has another shape.
    """
    import torch

    network.eval()
    try:
        with torch.no_grad():
            answer = network(torch.from_numpy(np.array(rows)))
    except Exception as error:  # the user's code may raise anything at all
        raise ProjectError(
            f"the network cannot read {_described(rows)}: {type(error).__name__}: {error}",
            hint="correct the network's forward, or shape, minimum and maximum in [[data.inputs]]"
            if rows.dtype.kind == "i"
            else "correct the network's forward or the shape in [[data.inputs]]",
        ) from error
    network.train()
    wanted = [(len(rows), n_classes)] if n_classes else [(len(rows),), (len(rows), 1)]
    found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
    if found not in wanted:
        raise ProjectError(
            f"the network answers {len(rows)} rows with {found}, but {wanted[-1]} is needed",
            hint="return one logit per class"
            if n_classes
            else "return one value per row; n_classes is 0 for a regression, so write "
            "n_classes or 1 where the last layer is made",
        )


def _described(rows: np.ndarray) -> str:
    said = f"rows of shape {list(rows.shape[1:])}"
    return said if rows.dtype.kind != "i" else f"{said} with integers from {rows.min()} to {rows.max()}"


def has_idle_weights(network: torch.nn.Module, rows: np.ndarray) -> bool:
    """Say whether some weights take no part in the answers, and so never have a gradient.

    Args:
        network: On the CPU; a copy of it is tried.
        rows: A few rows as the network reads them.
    """
    import torch

    tried = copy.deepcopy(network).train()
    tried(torch.from_numpy(np.array(rows))).float().sum().backward()
    return any(each.requires_grad and each.grad is None for each in tried.parameters())
