"""What a network costs and how well it answers: size, operations, metrics, latency, INT8.

Measures a network beside the model file it was exported to. It decides nothing and knows nothing
of training or of how the network came to be.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.preparation.prepared import Prepared
from kit.bootstrap import Bootstrap
from kit.metrics import LOSSES, evaluate, leading_metric, score, statistic
from kit.rows import Part, Split
from kit.runner import output_error
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec

if TYPE_CHECKING:
    import torch

_CALIBRATION_ROWS = 512
_BATCH_ROWS = 256
_WARM_UP_CALLS = 20
_CALLS = 200
#: What a device's core leaves out: these turn logits into answers.
_NEVER_INT8 = frozenset({"ArgMax", "Softmax"})


@dataclass(frozen=True)
class Measured:
    """What a version costs and how well it answers the held-out rows.

    Attributes:
        size_bytes: Of model.onnx.
        operations: Multiplications with addition that the network does for one row.
        parameters: Values the network learns.
        metrics: Of model.onnx.
        latency_ms: Of model.onnx for one row: the median, by onnxruntime on one thread.
        batch_latency_ms: Likewise, for ``batch_rows`` rows at once.
        batch_rows: How many.
        int8_metric: The task's leading metric after a plain post-training conversion to INT8.
        int8_metrics: All metrics after it.
        int8_error: How far the INT8 answers lie from the float ones: the mean difference of the
            raw outputs, in standard deviations of the float outputs.
    """

    size_bytes: int
    operations: int
    parameters: int
    metrics: dict[str, float]
    latency_ms: float
    batch_latency_ms: float
    batch_rows: int
    int8_metric: float
    int8_metrics: dict[str, float]
    int8_error: float


@dataclass(frozen=True)
class Shift:
    """How a metric moved from parent to result, on the same rows.

    Attributes:
        metric: Its name.
        before: Of the parent.
        after: Of the result.
        worse: How much worse it became, in its unit; below 0 where it became better.
        noise: Half the width of the paired 95 % bootstrap interval of the difference.
    """

    metric: str
    before: float
    after: float
    worse: float
    noise: float


@dataclass(frozen=True)
class Comparison:
    """Parent and result, measured on the same rows.

    Attributes:
        before: The parent.
        after: The result.
        answers: The leading metric of the two model files.
        int8: The leading metric of their INT8 conversions.
        n_rows: Held-out rows.
    """

    before: Measured
    after: Measured
    answers: Shift
    int8: Shift
    n_rows: int


@dataclass(frozen=True)
class Subject:
    """Something to measure.

    Attributes:
        network: Trained.
        onnx: The model file it was exported to.
    """

    network: torch.nn.Module
    onnx: bytes


def compare(before: Subject, after: Subject, *, prepared: Prepared) -> Comparison:
    """Measure two networks on the same rows; the timing takes turns, so both meet the same disturbances.

    Args:
        before: The parent.
        after: What became of it.
        prepared: Calibration takes training rows, everything else the held-out rows.
    """
    split, metric = prepared.split, leading_metric(prepared.signature.task)
    sides = [_side(each, prepared=prepared) for each in (before, after)]
    latencies = _latencies(before.onnx, after.onnx, held_out=split.test)
    measured = [
        replace(side.measured, latency_ms=row, batch_latency_ms=batch)
        for side, (row, batch) in zip(sides, latencies, strict=True)
    ]
    return Comparison(
        before=measured[0],
        after=measured[1],
        answers=_shift(metric, split, sides[0].answers, sides[1].answers),
        int8=_shift(metric, split, sides[0].int8, sides[1].int8),
        n_rows=len(split.test.labels),
    )


def answers(onnx: bytes, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Answer rows with a model file made or verified by this process, on one thread."""
    session = _session(onnx)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(tensors)), strict=True))


def n_operations(network: torch.nn.Module, *, row: np.ndarray) -> int:
    """Count the multiplications with addition that a network does for one row.

    Convolutions and matrix products count, those inside attention and recurrent layers included; activations,
    normalisations and products of single elements do not. PyTorch's fused kernels (the attention fast path,
    oneDNN, fused attention) hide their products from its counter, so they are off while it counts; what was
    set before is restored.

    Args:
        network: Any.
        row: One row as it reads them, shape (1, ...); its values change nothing.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    training = network.training
    network.eval()
    try:
        with torch.no_grad(), _nothing_fused(), FlopCounterMode(display=False) as counter:
            network(torch.from_numpy(np.array(row)))
    finally:
        network.train(training)
    return int(counter.get_total_flops()) // 2  # it counts an addition and a multiplication as two


def n_parameters(network: torch.nn.Module) -> int:
    """Count the values a network learns."""
    return sum(each.numel() for each in network.parameters())


def int8_answers(network: torch.nn.Module, *, prepared: Prepared) -> Tensors:
    """Convert a network to INT8 after training, and answer the held-out rows with it.

    The conversion is onnxruntime's: activations in 8 bits over the range of the training rows,
    weights in symmetric 8 bits per output channel. The rounding is computed in float32, so the
    answers do not depend on what the processor can do in INT8.

    Args:
        network: Trained; the same rounding applies whatever its kind.
        prepared: Its preprocessing stays in float, as on a device.
    """
    from jobs.exporting.form import FEATURES
    from jobs.exporting.graph import export_onnx

    core = prepared.signature
    if prepared.transformer is not None:
        spec = TensorSpec(FEATURES, "float32", (-1, *prepared.train.shape[1:]))
        core = Signature(core.task, (spec,), core.outputs)
    name = core.inputs[0].name
    graph = export_onnx(network, transformer=None, signature=core, sample=prepared.blank)
    n_rows = min(_CALIBRATION_ROWS, len(prepared.train))
    chosen = np.linspace(0, len(prepared.train) - 1, n_rows).astype(np.int64)
    quantised = _quantised(graph, {name: prepared.train[chosen]})
    session = _session(quantised, exact=True)
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: prepared.read(prepared.split.test)})
    return dict(zip(names, found, strict=True))


@dataclass(frozen=True)
class _Side:
    measured: Measured
    answers: Tensors
    int8: Tensors


def _side(subject: Subject, *, prepared: Prepared) -> _Side:
    """Measure all but the latency of one of the two."""
    held_out, task = prepared.split.test, prepared.signature.task
    found = answers(subject.onnx, held_out.tensors)
    int8 = int8_answers(subject.network, prepared=prepared)
    int8_metrics = evaluate(task, held_out.labels, int8)
    raw = found["logits" if "logits" in found else "value"]
    measured = Measured(
        size_bytes=len(subject.onnx),
        operations=n_operations(subject.network, row=prepared.train[:1]),
        parameters=n_parameters(subject.network),
        metrics=evaluate(task, held_out.labels, found),
        latency_ms=0.0,
        batch_latency_ms=0.0,
        batch_rows=min(_BATCH_ROWS, len(held_out.labels)),
        int8_metric=int8_metrics[leading_metric(task)],
        int8_metrics=int8_metrics,
        int8_error=output_error(int8, found, scale=float(raw.std(dtype=np.float64)) or 1.0),
    )
    return _Side(measured, found, int8)


def _shift(metric: str, split: Split, before: Tensors, after: Tensors) -> Shift:
    labels = split.test.labels
    first, second = (statistic(metric, labels, outputs) for outputs in (before, after))
    interval = Bootstrap(draw=split.draw).difference(second, first, n_rows=len(labels))
    values = [score(metric, labels, outputs) for outputs in (before, after)]
    rise = values[1] - values[0]
    worse = rise if metric in LOSSES else -rise
    noise = (interval.high - interval.low) / 2
    return Shift(metric, values[0], values[1], worse=worse, noise=noise)


def _latencies(*models: bytes, held_out: Part) -> list[tuple[float, float]]:
    """Time one row and a batch, in milliseconds."""
    n_rows = len(held_out.labels)
    batch_rows = min(_BATCH_ROWS, n_rows)
    sessions = [_session(each) for each in models]
    medians: list[list[float]] = [[] for _ in models]
    for count, n_calls in ((1, _CALLS), (batch_rows, _CALLS // 4)):
        taken_s: list[list[float]] = [[] for _ in models]
        for call in range(-_WARM_UP_CALLS, n_calls):
            start = call * count % (n_rows - count + 1)
            rows = {name: array[start : start + count] for name, array in held_out.tensors.items()}
            for place, session in enumerate(sessions):
                began_s = time.perf_counter()
                session.run(None, rows)
                if call >= 0:
                    taken_s[place].append(time.perf_counter() - began_s)
        for place, times in enumerate(taken_s):
            medians[place].append(float(np.median(times)) * 1e3)
    return [(row, batch) for row, batch in medians]


def _session(model: bytes, *, exact: bool = False) -> Any:
    """Load a graph; ``exact`` runs it node by node as written, fusing nothing."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _quantised(graph: bytes, calibration: Tensors) -> bytes:
    """Let onnxruntime put rounding to 8 bits around the operations that compute in INT8."""
    from onnxruntime import quantization
    from onnxruntime.quantization import registry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.left: Iterator[Tensors] = iter([calibration])

        def get_next(self) -> Tensors | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory(prefix="kit-int8-") as folder, _quiet():
        read, ready, written = (Path(folder) / name for name in ("read.onnx", "ready.onnx", "int8.onnx"))
        read.write_bytes(graph)
        quant_pre_process(str(read), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(written),
            Rows(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=sorted(set(registry.QDQRegistry) - _NEVER_INT8),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        return written.read_bytes()


@contextmanager
def _nothing_fused() -> Iterator[None]:
    """Let PyTorch compute in the operations it can count; see ``n_operations``."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    one_dnn = torch.backends.mkldnn
    # what else flags() sets is given as it is: its own default, TF32, warns where there is none
    off = one_dnn.flags(enabled=False, deterministic=one_dnn.deterministic, allow_tf32=one_dnn.allow_tf32)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with off, sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice off the screen: it speaks through the root logger."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
