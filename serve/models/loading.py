"""From a version's key to an engine that is warm and proven right, in this process.

Blocking by nature: call it in a thread. Each step may fail with a sentence about that version; nothing of a
version that failed is kept. What cannot be caught is a crash of the runtime itself: a segmentation fault in
an engine ends the process, and Ray starts another replica. It knows neither the registry nor who may ask:
the key names the digest, and the trusted keys are pinned by whoever makes the loader.

Measured on 2 cores with a 10 MB graph of 50 layers and the imports done: verify 17 ms (graph and program,
20 MB to hash), open 12-17 ms, golden rows 1.5 ms, first calls 2 ms, self-test 1.5 ms, timing 5 ms; 40-60 ms
in all. The event loop goes on meanwhile but for onnxruntime's parsing of the file, which holds the
interpreter: 1-5 ms for 10 MB, 65-90 ms for 200 MB. A shorter switch interval does not change that.
"""

from __future__ import annotations

import importlib
import logging
import math
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from kit.engines import ENGINES, Engine, open_engine
from kit.errors import InputError, ModelError, VerificationError
from kit.inference.card import Card
from kit.machine import resident_bytes
from kit.model_version import ModelVersion
from kit.store import Store
from kit.tensors import Tensors
from serve.models.self_test import check_answers, tolerance_of
from serve.version_key import VersionKey

_logger = logging.getLogger("kit")
_MEASURE_S = 0.02
_MEASURE_CALLS = 5


@dataclass(frozen=True)
class EngineChoice:
    """What runs a version: engine, device and threads of a call, as ``kit.engines.open_engine`` has them."""

    engine: str = "onnxruntime"
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Loaded:
    """A version that is ready to answer.

    Attributes:
        card: What clients may know about it.
        engine: What answers; ``run_validated`` from any one thread at a time.
        sample: One golden row, input name to (1, ...).
        memory_bytes: What it takes, an estimate: twice its model file (the weights as read and as the engine
            laid them out), or, if that is more, by how much the process grew while it alone was loaded; at
            most 8 times the file and 64 MiB, beyond which somebody else grew. A GPU's memory is not in it.
        times_s: Seconds by step: fetch, verify, open, golden, warm, test, measure.
        one_row_s: Seconds of one call with one row, the median of some.
        batch_rows: Rows of the middle-sized batch it was warmed with.
        batch_s: Seconds of one call with that many.
    """

    card: Card
    engine: Engine
    sample: Tensors
    memory_bytes: int
    times_s: Mapping[str, float]
    one_row_s: float
    batch_rows: int
    batch_s: float


def prime(engine: str = "onnxruntime") -> float:
    """Import what the first load would otherwise wait for; returns the seconds it took.

    Raises nothing where the engine is not installed: the load says so.
    """
    began_s = time.perf_counter()
    for module in (
        "kit.model_version",
        "numpy.lib.format",
        "zipfile",
        ENGINES.get(engine, ("kit.engines",))[0],
    ):
        try:
            importlib.import_module(module)
        except ImportError:
            _logger.debug("%s cannot be imported ahead", module)
    return time.perf_counter() - began_s


class Loader:
    """Loads versions; one loader serves a whole process, from several threads.

    Args:
        store: Where the files lie.
        trusted: Public keys (PEM), one of which must have signed a version.
        choice: What runs a version.
        own: By model's name, what runs it instead.
        max_batch_rows: Most rows of one call, from which the middle-sized batch is derived.
    """

    def __init__(
        self,
        store: Store,
        *,
        trusted: Sequence[bytes],
        choice: EngineChoice = EngineChoice(),
        own: Mapping[str, EngineChoice] | None = None,
        max_batch_rows: int = 256,
    ) -> None:
        self._store = store
        self._trusted = tuple(trusted)
        self._choice = choice
        self._own = dict(own or {})
        self._batch_rows = max(2, math.isqrt(max_batch_rows))
        self._alone = _Alone()
        self._cards: dict[VersionKey, Card] = {}

    def card(self, key: VersionKey) -> Card:
        """Fetch and verify a version and say what clients may know of it, without opening it.

        Raises:
            NotFoundError: The store does not have it.
            UnavailableError: The store cannot be reached.
            VerificationError: A digest or the signature does not hold.
        """
        if key not in self._cards:
            folder = self._store.fetch(key.digest)
            version = ModelVersion.open(folder, trusted=self._trusted, digest=key.digest)
            engine = self._own.get(key.model, self._choice).engine
            self._cards[key] = Card(key.model, key.number, key.digest, engine, version.signature)
        return self._cards[key]

    def load(self, key: VersionKey) -> Loaded:
        """Fetch, verify, open, warm and test a version.

        Args:
            key: Which one.

        Raises:
            InputError: The engine is unknown or refuses the file.
            MissingDependencyError: The engine or its device is not installed.
            ModelError: The version fails on its own golden samples, or answers NaN.
            NotFoundError: The store does not have it.
            UnavailableError: The store cannot be reached.
            VerificationError: A digest, the signature or the name does not hold, or the golden samples are
                answered otherwise than when the version was made.
        """
        choice = self._own.get(key.model, self._choice)
        steps = _Steps()
        with self._alone.measure() as grown:
            with steps.step("fetch"):
                folder = self._store.fetch(key.digest)
            with steps.step("verify"):
                version = ModelVersion.open(folder, trusted=self._trusted, digest=key.digest)
            if version.name != key.model:
                raise VerificationError(
                    f"{key} is a version of {version.name!r} by its own manifest",
                    hint="register it under its own name",
                )
            with steps.step("open"):
                engine = open_engine(
                    version.model_path,
                    engine=choice.engine,
                    threads=choice.threads,
                    signature=version.signature,
                    device=choice.device,
                )
            with steps.step("golden"):
                inputs, outputs = version.golden()
            if not len(next(iter(inputs.values()), ())):
                raise VerificationError(
                    f"{key} has no golden samples, so nothing shows that it answers right"
                )
            tolerance = tolerance_of(version.manifest, device=engine.device)
            try:
                one_row_s, batch_s = self._warm(engine, inputs, outputs, tolerance=tolerance, steps=steps)
            except VerificationError as error:
                raise VerificationError(f"{key}: {error.message}", hint=error.hint) from error
            except (InputError, MemoryError, ModelError) as error:
                raise ModelError(f"{key} fails on its own golden samples: {error}") from error
        memory_bytes = _estimate(version.model_path.stat().st_size, grown=grown.bytes)
        _logger.info("loaded %s: %s, %.1f MB", key, steps, memory_bytes / 1e6)
        return Loaded(
            card=Card(key.model, key.number, key.digest, engine.name, version.signature),
            engine=engine,
            sample={name: array[:1] for name, array in inputs.items()},
            memory_bytes=memory_bytes,
            times_s=dict(steps.times_s),
            one_row_s=one_row_s,
            batch_rows=self._batch_rows,
            batch_s=batch_s,
        )

    def _warm(
        self, engine: Engine, inputs: Tensors, outputs: Tensors, *, tolerance: float, steps: _Steps
    ) -> tuple[float, float]:
        """Make the first calls, compare the golden answers, and time one row and a batch."""
        one = {name: array[:1] for name, array in inputs.items()}
        batch = repeat_rows(inputs, n_rows=self._batch_rows)
        with steps.step("warm"):
            alone = engine.run(one)
            engine.run(batch)
        with steps.step("test"):
            check_answers(engine.run(inputs), outputs, tolerance=tolerance)
            # The scale of an output is only known from many rows, so one row is compared in their place.
            first = {name: np.concatenate([alone[name], value[1:]]) for name, value in outputs.items()}
            check_answers(first, outputs, tolerance=tolerance)
        with steps.step("measure"):
            return median_s(engine, one), median_s(engine, batch)


def repeat_rows(inputs: Tensors, *, n_rows: int) -> Tensors:
    """Make a batch of ``n_rows`` out of sample rows, repeating them as often as needed.

    Raises:
        InputError: There is no row to repeat.
    """
    if not all(len(array) for array in inputs.values()):
        raise InputError("there are no sample rows to make a batch of")
    return {name: array[np.arange(n_rows) % len(array)] for name, array in inputs.items()}


def median_s(engine: Engine, inputs: Tensors) -> float:
    """Give the median seconds of some calls with the same validated rows; ends after about 20 ms."""
    seconds: list[float] = []
    end_s = time.perf_counter() + _MEASURE_S
    while len(seconds) < _MEASURE_CALLS and (not seconds or time.perf_counter() < end_s):
        began_s = time.perf_counter()
        engine.run_validated(inputs)
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds)


@dataclass
class _Steps:
    """Seconds by step, in their order."""

    times_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began_s = time.perf_counter()
        yield
        self.times_s[name] = time.perf_counter() - began_s

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in self.times_s.items())


@dataclass
class _Grown:
    """By how much the process grew; 0 where that cannot be told."""

    bytes: int = 0


class _Alone:
    """Measures by how much the process grows during a load, where no other one runs beside it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self._begun = 0

    @contextmanager
    def measure(self) -> Iterator[_Grown]:
        with self._lock:
            self._now += 1
            self._begun += 1
            alone, mine = self._now == 1, self._begun
        before_bytes = resident_bytes()
        grown = _Grown()
        try:
            yield grown
            if alone and self._begun == mine:
                after_bytes = resident_bytes()
                if before_bytes is not None and after_bytes is not None:
                    grown.bytes = max(0, after_bytes - before_bytes)
        finally:
            with self._lock:
                self._now -= 1


def _estimate(file_bytes: int, *, grown: int) -> int:
    return max(2 * file_bytes, min(grown, 8 * file_bytes + (64 << 20)))
