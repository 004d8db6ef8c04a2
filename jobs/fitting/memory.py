"""Memory of a training: recognising that it ran out, needing less of it, computing activations twice.

Knows nothing of the loop that runs out of it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kit.errors import InputError, ProjectError

if TYPE_CHECKING:
    import torch

_MAX_DEPTH = 8  # of errors wrapped in errors
#: What allocators, C++ libraries and Ray's memory monitor say, in lower case; each is its own class or none.
_SAYINGS = (
    "defaultcpuallocator",
    "out of memory",
    "outofmemory",
    "std::bad_alloc",
    "cannot allocate memory",
    "unable to allocate",
    "running low on memory",
    "_alloc_failed",
)


class OutOfMemoryError(InputError):
    """A batch, or the network itself, needs more memory than there is."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Say whether a lack of memory is behind an error, however many times it was wrapped on the way."""
    return _is_out_of_memory(error, depth=0)


def _is_out_of_memory(error: object, *, depth: int) -> bool:
    if not isinstance(error, BaseException) or depth > _MAX_DEPTH:
        return False
    said = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, (OutOfMemoryError, MemoryError)) or any(each in said for each in _SAYINGS):
        return True
    inner = [getattr(error, "cause", None), error.__cause__, error.__context__]
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, dict):
        inner += list(failures.values())
    return any(_is_out_of_memory(each, depth=depth + 1) for each in inner)


def out_of_memory(*, batch_size: int, gradient_checkpointing: bool, auto_batch: bool) -> OutOfMemoryError:
    """Say that memory ran out, and what to do about it.

    Args:
        batch_size: Rows per batch when it happened.
        gradient_checkpointing: Whether activations are computed twice already.
        auto_batch: Whether smaller batches were tried already, down to one row.
    """
    steps = [] if auto_batch else ["add --auto-batch (it goes on from the last checkpoint)"]
    steps += [] if gradient_checkpointing else ["set gradient_checkpointing"]
    steps += [f"set batch_size below {batch_size}"] if batch_size > 1 and not auto_batch else []
    steps += ["make the network smaller"] if batch_size == 1 else []
    return OutOfMemoryError(
        f"memory ran out while training with batch_size = {batch_size}",
        hint=", or ".join(steps) or "use a machine with more memory",
    )


@contextlib.contextmanager
def memory_watched(say: Callable[[], OutOfMemoryError]) -> Iterator[None]:
    """Raise one error of ours for every way in which torch says that memory ran out."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:  # RuntimeError, MemoryError or torch's own, by allocator
        if is_out_of_memory(error):
            raise say() from error
        raise


def compute_twice(network: torch.nn.Module) -> None:
    """Let a network keep less for its backward pass and compute the rest again.

    A ``Sequential`` is cut into about sqrt(n) stretches, each child of a ``ModuleList`` is one; only the
    outermost count. Names, weights and results stay the same: random numbers are drawn again alike, and
    running averages move once.

    Args:
        network: Changed: the ``forward`` of some of its modules.

    Raises:
        ProjectError: It has no such modules, or they keep state that a second pass would change.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
    """
    from torch import nn

    found = 0
    keeping: list[nn.Module] = []
    waiting = [network]
    while waiting:
        module = waiting.pop()
        if isinstance(module, nn.Sequential) and len(module) > 1:
            if keeps_only_averages(module):
                module.forward = _in_stretches(module)  # type: ignore[method-assign]  # names must stay
                found += 1
            else:
                keeping.append(module)
        elif isinstance(module, nn.ModuleList):
            for child in module:
                if not any(True for _ in child.parameters()):
                    continue
                if keeps_only_averages(child):
                    child.forward = _again(child.forward, child)
                    found += 1
                else:
                    keeping.append(child)
        else:
            waiting += module.children()
    if not found and keeping:
        raise ProjectError(
            "gradient_checkpointing is set, but computing twice would change what these layers keep: "
            + ", ".join(_kept_state(network, keeping)),
            hint="keep it outside the nn.Sequential or nn.ModuleList, or leave gradient_checkpointing out",
        )
    if not found:
        raise ProjectError(
            "gradient_checkpointing is set, but the network has no stretch of layers to compute twice",
            hint="put its layers into nn.Sequential or nn.ModuleList, or leave gradient_checkpointing out",
        )


def keeps_only_averages(module: torch.nn.Module) -> bool:
    """Say whether all buffers of a module are the running averages of normalisation layers."""
    return not _kept_state(module, [module])


def _kept_state(network: torch.nn.Module, modules: list[torch.nn.Module]) -> list[str]:
    """Name the buffers of some modules of a network that are no running averages of normalisation layers."""
    from torch.nn.modules.batchnorm import _NormBase

    names = {each: name for name, each in network.named_modules()}
    return [
        f"{names[each]}.{name}".lstrip(".")
        for module in modules
        for each in module.modules()
        if not isinstance(each, _NormBase)
        for name, _ in each.named_buffers(recurse=False)
    ]


def _in_stretches(module: torch.nn.Sequential) -> Callable[[Any], Any]:
    layers = list(module)
    length = math.ceil(len(layers) / math.ceil(math.sqrt(len(layers))))
    stretches = []
    for start in range(0, len(layers), length):
        stretch = layers[start : start + length]
        stretches.append(_again(_chained(stretch), module))

    def forward(value: Any) -> Any:
        for stretch in stretches:
            value = stretch(value)
        return value

    return forward


def _chained(layers: list[torch.nn.Module]) -> Callable[[Any], Any]:
    def run(value: Any) -> Any:
        for layer in layers:
            value = layer(value)
        return value

    return run


def _again(forward: Callable[..., Any], module: torch.nn.Module) -> Callable[..., Any]:
    """Wrap a forward so that what it makes on the way is dropped, and made again in the backward pass."""
    import torch
    from torch.nn.modules.batchnorm import _NormBase
    from torch.utils.checkpoint import checkpoint

    averaging = [
        each for each in module.modules() if isinstance(each, _NormBase) and each.track_running_stats
    ]

    @contextlib.contextmanager
    def second_pass() -> Iterator[None]:
        kept = [dict(each._buffers) for each in averaging]
        for each in averaging:  # moves copies: the running averages have moved in the first pass
            each._buffers.update({name: value.clone() for name, value in each.named_buffers(recurse=False)})
        try:
            yield
        finally:
            for each, buffers in zip(averaging, kept, strict=True):
                each._buffers.update(buffers)

    def run(*values: Any, **named: Any) -> Any:
        if not (torch.is_grad_enabled() and module.training):
            return forward(*values, **named)
        return checkpoint(
            forward,
            *values,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), second_pass()),
            **named,
        )

    return run
