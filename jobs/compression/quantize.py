"""Quantisation-aware training: a network that computes as if in INT8 while it learns.

Weights are rounded to 8 bits per output channel, symmetric; what layers read and what the network
answers is rounded to 8 bits per tensor, over a range that follows the batches and is then fixed.
Gradients pass through the rounding unchanged. Afterwards ``plain_network`` gives back an ordinary
float network whose weights lie on their 8-bit grid, so that a conversion to INT8 finds the same
grid and loses less. It knows nothing of converters, versions or Ray.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.compression.parent import load_weights, recorded_network
from kit.errors import ProjectError
from kit.project import Project

if TYPE_CHECKING:
    import torch

_LEVELS = 127  # symmetric int8 leaves -128 unused, as the converters do
_MOMENTUM = 0.1


def quantising_network(
    project: Project,
    *,
    weights: bytes,
    parameters: Mapping[str, Any],
    n_features: int,
    n_classes: int,
    n_batches: int,
) -> torch.nn.Module:
    """Build a version's network again, computing as if in INT8.

    Args:
        project: Names the factory.
        weights: Of the version, from ``Parent.weights``.
        parameters: Arguments of the factory the version was built with.
        n_features: As in ``build_network``.
        n_classes: Likewise.
        n_batches: Batches over which the ranges of activations move, then they are fixed.

    Raises:
        ProjectError: The network has no layer that INT8 arithmetic speaks of.
    """
    network = recorded_network(project, parameters=parameters, n_features=n_features, n_classes=n_classes)
    load_weights(network, weights)
    return quantising(network, n_batches=n_batches)


def quantising(network: torch.nn.Module, *, n_batches: int) -> torch.nn.Module:
    """Wrap a network so that it computes as if in INT8, and learns so.

    Args:
        network: Changed: its layers' weights are rounded wherever they are read.
        n_batches: As in ``quantising_network``.

    Returns:
        A module that answers like the network in INT8; its state holds weights and ranges.

    Raises:
        ProjectError: There is no linear or convolutional layer.
    """
    import torch
    from torch.nn.utils import parametrize

    Weight, Range = _rounding(n_batches)  # noqa: N806 - classes
    types = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    layers = [each for each in network.modules() if isinstance(each, types)]
    if not layers:
        raise ProjectError(
            "the network holds no linear or convolutional layer that could compute in INT8",
            hint="use another method: kit compress --method distill",
        )

    class Reading:
        """Rounds what a layer reads; an object, so that copies of the network carry their own ranges."""

        def __init__(self, limits: torch.nn.Module) -> None:
            self.limits = limits

        def __call__(self, module: torch.nn.Module, read: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self.limits(read[0]), *read[1:])

    class Quantising(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.reading = torch.nn.ModuleList(Range() for _ in layers)
            self.answering = Range()
            for layer, limits in zip(layers, self.reading, strict=True):
                parametrize.register_parametrization(layer, "weight", Weight())
                layer.register_forward_pre_hook(Reading(limits))

        def forward(self, x: torch.Tensor) -> Any:
            return self.answering(self.network(x))

    return Quantising()


def _rounding(n_batches: int) -> tuple[type[torch.nn.Module], type[torch.nn.Module]]:
    """Give the modules that round a weight, and a tensor over the range of its first batches."""
    import torch

    class Weight(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return round_weight(weight)

    class Range(torch.nn.Module):
        """Rounds a tensor to 8 bits over the range it has seen."""

        low: torch.Tensor
        high: torch.Tensor
        seen: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("high", torch.zeros(()))
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and int(self.seen) < n_batches:
                self._look(x.detach().float())
            if int(self.seen) == 0:
                return x
            scale = ((self.high - self.low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
            zero = torch.round(-self.low / scale).clamp(0, 255).to(torch.int32)
            rounded = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255)
            return rounded.to(x.dtype)

        def _look(self, x: torch.Tensor) -> None:
            low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)  # INT8 must be able to say 0
            share = _MOMENTUM if int(self.seen) else 1.0
            self.low.lerp_(low, share)
            self.high.lerp_(high, share)
            self.seen.add_(1)

    return Weight, Range


def round_weight(weight: torch.Tensor) -> torch.Tensor:
    """Round a weight to symmetric 8 bits per output channel; gradients pass unchanged.

    Args:
        weight: Output channels first.

    Returns:
        The same shape; every value a whole multiple, -127 to 127, of its channel's scale. Doing it
        twice changes nothing more.
    """
    import torch

    wide = weight.float()
    scale = wide.detach().abs().flatten(1).amax(dim=1) / _LEVELS
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    rounded = torch.fake_quantize_per_channel_affine(wide, scale, zero, 0, -_LEVELS, _LEVELS)
    return rounded.to(weight.dtype)


def plain_network(trained: torch.nn.Module, *, plain: torch.nn.Module) -> torch.nn.Module:
    """Give an ordinary network the trained weights, rounded to their grid.

    Args:
        trained: What ``quantising`` made, trained.
        plain: The same network as the factory builds it; changed, and given back.
    """
    inner = trained.get_submodule("network")
    state = {}
    for name in plain.state_dict():
        path, _, last = name.rpartition(".")
        state[name] = getattr(inner.get_submodule(path), last).detach().clone()
    plain.load_state_dict(state)
    return plain


def ranging_batches(n_rows: int, *, batch_size: int, workers: int, epochs: int) -> int:
    """Say over how many batches ranges move: half of the training, one epoch at least.

    Args:
        n_rows: Training rows.
        batch_size: Rows per step and worker.
        workers: Who share the rows.
        epochs: Most passes over them.
    """
    per_epoch = int(np.ceil(n_rows / workers / batch_size))
    return max(per_epoch, per_epoch * epochs // 2)
