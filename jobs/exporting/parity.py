"""Whether a model file answers like the Python it was made from.

Two functions from input tensors to output tensors are run on the same rows, ordinary and
adversarial, and every value is compared. It knows nothing of torch, scikit-learn or files; the
caller says what the reference and what the candidate is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kit.errors import GateError, InputError, ProjectError
from kit.signature import Signature
from kit.tensors import DTYPES, Tensors, TensorSpec

# Beyond this a network overflows, and an exporter may reorder arithmetic (a normalisation folded into the
# layer before it), so that one side gives infinity or NaN where the other still gives a number.
_OVERFLOW = 1e30
_FLOAT16_MAX = 65504.0

_HINT = (
    "replace the preprocessing step or layer that differs; if such values cannot occur, bound the input "
    "with minimum and maximum in kit.toml"
)

Answer = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

#: Strings no training set is likely to hold: unseen, non-ASCII, spaces, a quote, digits, long.
STRANGE_STRINGS = ("never seen before", "Zürich 東京 \U0001f600", " ", "'\"\\", "0", "x" * 300)

#: Values put where no bound forbids them: zeros, denormal, tiny, huge, the edges of float32.
STRANGE_NUMBERS = (
    0.0,
    -0.0,
    1e-45,
    -1e-38,
    1e-30,
    1.0,
    -1.0,
    1e6,
    -1e6,
    1e15,
    -1e15,
    3.4028235e38,
    -3.4028235e38,
)

# A wide input (an image) is probed one value at a time at this many places, not at all.
_MAX_PLACES = 32


@dataclass(frozen=True)
class Units:
    """Say what differences are measured in besides the spread of the answers.

    Attributes:
        shares: Outputs between 0 and 1, whose unit is 1 whatever their spread.
        ulps: How many float32 ulps an answer may differ by however small the spread: answers on a large
            offset have few digits left for it, and one sum in two orders differs by some.
    """

    shares: Collection[str] = ("probabilities",)
    ulps: int = 8


@dataclass(frozen=True)
class OutputParity:
    """Compare one output of reference and candidate.

    Attributes:
        name: The output.
        shape: The candidate's shape, rows first.
        max_abs_difference: Over the values that are finite on both sides.
        max_relative_difference: The largest share of what is allowed in its row, times the tolerance:
            about the difference in units of the answers' spread. This is what the tolerance bounds.
        worst_row: Where that maximum stands, from 0; the adversarial rows follow the ordinary ones.
    """

    name: str
    shape: tuple[int, ...]
    max_abs_difference: float
    max_relative_difference: float
    worst_row: int


@dataclass(frozen=True)
class ParityReport:
    """Say how close a candidate is to its reference.

    Attributes:
        n_rows: Rows compared.
        tolerance: The bound on ``max_relative_difference``.
        outputs: One entry per float output.
        label_agreement: Share of rows with the same ``label``, 0 to 1; rows whose logits are not
            finite are left out. None for regression.
        n_overflowed: Rows with an input beyond 1e30 that one of the two answered without a finite
            number; nothing can be said about them.
    """

    n_rows: int
    tolerance: float
    outputs: tuple[OutputParity, ...]
    label_agreement: float | None
    n_overflowed: int

    @property
    def max_relative_difference(self) -> float:
        """The largest difference of all outputs."""
        return max((output.max_relative_difference for output in self.outputs), default=0.0)


def check_parity(
    reference: Answer,
    candidate: Answer,
    *,
    rows: Mapping[str, np.ndarray],
    adversarial: Mapping[str, np.ndarray] | None = None,
    tolerance: float = 1e-4,
    units: Units = Units(),
) -> ParityReport:
    """Run both on the same rows, and the candidate on the first row alone, and compare.

    How far a value may be off is said in units of the spread: the standard deviation of the reference's
    finite answers over the ordinary rows, all columns of an output together. It may differ

    - in an ordinary row, by ``tolerance`` times the spread and ``ulps`` of the row's largest answer;
    - in an adversarial row, by ``tolerance`` times the larger of the spread and the row's largest answer;
    - by ``tolerance`` times the larger of 1 and the row's largest answer in an output of ``shares``, and
      where there is no spread: one ordinary row, or one answer for all of them.

    Where a row of the reference is not finite (it overflowed, or a missing value went through), that of
    the candidate must not be either; rows with an input beyond 1e30 are free of that, and counted. Labels
    must agree unless the two best logits are closer than what they may differ by.

    Args:
        reference: What is right.
        candidate: What is checked.
        rows: Ordinary input tensors, one row at least; their answers say what the spread is.
        adversarial: Made-up input tensors; None for none.
        tolerance: Relative, above 0.
        units: Which outputs are shares, and how many ulps are free.

    Returns:
        The differences, all within the tolerance.

    Raises:
        GateError: Names of outputs, a shape, a dtype or a value differ; the message names the
            output, the row and both values.
        InputError: There are no ordinary rows.
    """
    n_ordinary = len(next(iter(rows.values()), ()))
    if n_ordinary == 0:
        raise InputError("parity needs at least one row")
    if adversarial is not None:
        rows = {name: np.concatenate([array, adversarial[name]]) for name, array in rows.items()}
    n_rows = len(next(iter(rows.values())))
    expected = {name: np.asarray(value) for name, value in reference(rows).items()}
    found = {name: np.asarray(value) for name, value in candidate(rows).items()}
    free = units.ulps / tolerance
    scales = {
        name: _scale(value, n_ordinary=n_ordinary, ulps=None if name in units.shares else free)
        for name, value in expected.items()
        if value.dtype.kind == "f"
    }
    bounds = _Bounds(tolerance, n_ordinary, scales)
    edge = _beyond(rows, n_rows)
    report = _compare(expected, found, edge=edge, bounds=bounds)
    alone = {name: np.asarray(value) for name, value in candidate(_rows(rows, slice(0, 1))).items()}
    _compare({name: value[:1] for name, value in expected.items()}, alone, edge=edge[:1], bounds=bounds)
    return report


def adversarial_rows(signature: Signature, *, sample: Mapping[str, np.ndarray]) -> Tensors:
    """Build the rows on which exports go wrong, all of them allowed by the signature.

    The sample's rows, changed: everything missing and each value missing (where nullable), unseen
    and non-ASCII categories, empty strings, zeros, denormals, and the extremes the bounds leave,
    in every place at once and one place at a time. Infinities are not among them: the signature
    refuses them before a model sees one.

    Args:
        signature: What is allowed.
        sample: Ordinary input tensors, one row at least.

    Returns:
        Input tensors; the first row is the sample's first.

    Raises:
        InputError: The sample itself breaks the signature, or is empty.
    """
    base = signature.validate(sample)
    n_sample = len(next(iter(base.values())))
    if n_sample == 0:
        raise InputError("adversarial rows need a sample of at least one row")
    changes: list[tuple[str, object, int | None]] = [
        (spec.name, value, place)
        for spec in signature.inputs
        for value in _strange(spec)
        for place in (None, *_places(spec))
    ]
    # one copy of the sample's rows, changed in place: input by input it would be quadratic in the inputs
    sources = np.arange(len(changes) + 1) % n_sample
    rows = {name: array[sources] for name, array in base.items()}
    flat = {name: array.reshape(len(sources), -1) for name, array in rows.items()}
    for row, (name, value, place) in enumerate(changes, start=1):
        flat[name][row, slice(None) if place is None else place] = value
    return signature.validate(rows)


def run_onnx(model: bytes) -> Answer:
    """Answer with an ONNX graph on onnxruntime's CPU provider.

    Args:
        model: The bytes of ``model.onnx``, made by this process: they are not verified here.

    Returns:
        A function from input tensors to every output of the graph.

    Raises:
        ProjectError: The runtime does not accept the graph, or fails on the rows.
    """
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions; what is left is noise
    failures = (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
    )
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise ProjectError(
            f"onnxruntime does not accept the exported graph: {str(error)[:200]}",
            hint="use simpler options for the preprocessing step or network layer the message names",
        ) from error
    names = [output.name for output in session.get_outputs()]

    def answer(tensors: Mapping[str, np.ndarray]) -> Tensors:
        try:
            return dict(zip(names, session.run(names, dict(tensors)), strict=True))
        except failures as error:
            raise ProjectError(f"onnxruntime fails on the exported graph: {str(error)[:200]}") from error

    return answer


def _rows(tensors: Mapping[str, np.ndarray], chosen: slice) -> Tensors:
    return {name: array[chosen] for name, array in tensors.items()}


def _places(spec: TensorSpec) -> list[int]:
    """Choose positions within a row, evenly spread; none when the row is one value."""
    if spec.row_size == 1:
        return []
    count = min(spec.row_size, _MAX_PLACES)
    return sorted({int(place) for place in np.linspace(0, spec.row_size - 1, count)})


def _strange(spec: TensorSpec) -> Sequence[object]:
    if spec.dtype == "string":
        return [*STRANGE_STRINGS, *([""] if spec.nullable else [])]
    if spec.dtype == "bool":
        return [False, True]
    low = -np.inf if spec.minimum is None else spec.minimum
    high = np.inf if spec.maximum is None else spec.maximum
    if DTYPES[spec.dtype].kind in "iu":
        info = np.iinfo(spec.dtype)
        # beyond 2^24 float32, in which preprocessing computes, no longer holds every integer
        edges = [0, 1, -1, 255, 2**24, -(2**24)]
        edges += [] if spec.minimum is None else [math.ceil(low)]
        edges += [] if spec.maximum is None else [math.floor(high)]
        return sorted({v for v in edges if low <= v <= high and info.min <= v <= info.max})
    if spec.dtype == "float16":
        low, high = max(low, -_FLOAT16_MAX), min(high, _FLOAT16_MAX)
    bounds = [bound for bound in (spec.minimum, spec.maximum) if bound is not None]
    numbers: list[object] = [_inside(value, spec) for value in bounds]
    numbers += [value for value in STRANGE_NUMBERS if low <= np.float32(value) <= high]
    return [*numbers, *([np.nan] if spec.nullable else [])]


def _inside(value: float, spec: TensorSpec) -> float:
    """Round a bound to float32 towards the inside of the allowed range."""
    rounded = np.float32(value)
    if spec.maximum is not None and rounded > spec.maximum:
        return float(np.nextafter(rounded, np.float32(-np.inf)))
    if spec.minimum is not None and rounded < spec.minimum:
        return float(np.nextafter(rounded, np.float32(np.inf)))
    return float(rounded)


def _beyond(rows: Mapping[str, np.ndarray], n_rows: int) -> np.ndarray:
    edge = np.zeros(n_rows, dtype=bool)
    for array in rows.values():
        if array.dtype.kind == "f":
            edge |= (np.abs(array.reshape(n_rows, -1)) > _OVERFLOW).any(axis=1)
    return edge


def _finite(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))


@dataclass(frozen=True)
class _Bounds:
    """What values may differ by: in a row of an output, the tolerance times its scale.

    Attributes:
        tolerance: Relative.
        n_ordinary: How many of the rows are ordinary; they come first.
        scales: Per float output, shape (n_rows,).
    """

    tolerance: float
    n_ordinary: int
    scales: Mapping[str, np.ndarray]

    def place(self, row: int) -> str:
        """Name a row."""
        return f"row {row}" if row < self.n_ordinary else f"adversarial row {row - self.n_ordinary}"


def _scale(values: np.ndarray, *, n_ordinary: int, ulps: float | None) -> np.ndarray:
    """Give, per row of the reference, what the tolerance is multiplied with; see ``check_parity``.

    Args:
        values: The reference's, shape (n_rows, ...), ordinary rows first.
        n_ordinary: How many are ordinary.
        ulps: How many ulps count like the spread; None for shares.
    """
    wide = values.reshape(len(values), -1).astype(np.float64)
    finite = _finite(wide)
    largest = np.where(finite[:, None], np.abs(wide), 0.0).max(axis=1, initial=0.0)
    ordinary = wide[:n_ordinary][finite[:n_ordinary]]
    if ulps is None or len(ordinary) < 2 or ordinary.size == 0 or ordinary.min() == ordinary.max():
        return np.asarray(np.maximum(1.0, largest))
    spread = float(ordinary.std())
    scale = np.asarray(np.maximum(spread, largest))
    scale[:n_ordinary] = spread + ulps * np.spacing(largest[:n_ordinary].astype(np.float32)).astype(
        np.float64
    )
    return scale


def _compare(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], *, edge: np.ndarray, bounds: _Bounds
) -> ParityReport:
    if set(expected) != set(found):
        raise GateError(f"the model file answers {sorted(found)}, but its source answers {sorted(expected)}")
    for name, values in expected.items():
        if found[name].shape != values.shape or found[name].dtype != values.dtype:
            raise GateError(
                f"output {name!r} of the model file is {found[name].dtype} of shape "
                f"{list(found[name].shape)}; its source gives {values.dtype} of shape {list(values.shape)} "
                f"for {len(edge)} rows"
            )
    floats = [name for name, values in expected.items() if values.dtype.kind == "f"]
    outputs = tuple(_close(name, expected[name], found[name], edge=edge, bounds=bounds) for name in floats)
    lost = np.zeros(len(edge), dtype=bool)
    for name in floats:
        lost |= edge & ~(_finite(expected[name]) & _finite(found[name]))
    agreement = _labels(expected, found, lost=lost, bounds=bounds) if "label" in expected else None
    return ParityReport(
        n_rows=len(edge),
        tolerance=bounds.tolerance,
        outputs=outputs,
        label_agreement=agreement,
        n_overflowed=int(lost.sum()),
    )


def _close(
    name: str, expected: np.ndarray, found: np.ndarray, *, edge: np.ndarray, bounds: _Bounds
) -> OutputParity:
    wide = expected.reshape(len(expected), -1).astype(np.float64)
    other = found.reshape(len(found), -1).astype(np.float64)
    finite, other_finite = _finite(wide), _finite(other)
    unequal = (finite ^ other_finite) & ~edge
    if unequal.any():
        row = int(np.argmax(unequal))
        raise GateError(_difference(name, row, expected, found, bounds), hint=_HINT)
    both = finite & other_finite
    with np.errstate(invalid="ignore"):
        absolute = np.where(both[:, None], np.abs(wide - other), 0.0)
    by_row = absolute.max(axis=1, initial=0.0) / bounds.scales[name][: len(wide)]
    worst = int(np.argmax(by_row))
    if by_row[worst] > bounds.tolerance:
        raise GateError(_difference(name, worst, expected, found, bounds), hint=_HINT)
    return OutputParity(
        name=name,
        shape=tuple(found.shape),
        max_abs_difference=float(absolute.max(initial=0.0)),
        max_relative_difference=float(by_row[worst]),
        worst_row=worst,
    )


def _difference(name: str, row: int, expected: np.ndarray, found: np.ndarray, bounds: _Bounds) -> str:
    right, wrong = expected[row].reshape(-1), found[row].reshape(-1)
    with np.errstate(invalid="ignore"):
        gap = np.abs(right.astype(np.float64) - wrong.astype(np.float64))
    place = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    where = f"output {name!r}, {bounds.place(row)}" + (f", value {place}" if len(right) > 1 else "")
    return (
        f"{where}: the model file answers {wrong[place]:.9g}, its source {right[place]:.9g} "
        f"(tolerance {bounds.tolerance:g} of {bounds.scales[name][row]:.3g})"
    )


def _labels(
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    *,
    lost: np.ndarray,
    bounds: _Bounds,
) -> float:
    right, wrong = expected["label"], found["label"]
    differs = right != wrong
    logits = expected.get("logits")
    counted = ~lost
    excused = np.zeros(len(right), dtype=bool)
    if logits is not None and logits.shape[1] > 1:
        counted &= _finite(logits)
        ordered = np.sort(logits.astype(np.float64), axis=1)
        scale = bounds.scales["logits"][: len(ordered)]
        with np.errstate(invalid="ignore"):
            excused = (ordered[:, -1] - ordered[:, -2]) <= bounds.tolerance * scale
    wrong_rows = differs & counted & ~excused
    if wrong_rows.any():
        row = int(np.argmax(wrong_rows))
        raise GateError(
            f"output 'label', {bounds.place(row)}: the model file answers {int(wrong[row])}, "
            f"its source {int(right[row])}"
        )
    return float(1.0 - differs[counted].mean()) if counted.any() else 1.0
