"""One subject: everybody's file, its error, latency and size, and ours by theirs."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ours import TARGET_NAMES, export_bundles
from peers import PEERS, make_file, open_file
from rounds import Call, Ratio, take_turns
from subjects import Subject

from edge.targets import find_target
from kit.engines import Engine
from kit.runner import output_error

ENGINES = ("litert", "openvino", "onnxruntime")
FLOAT = {"litert": "litert-float32", "openvino": "openvino-float32", "onnxruntime": "onnx-float32"}
"""Engine to the file in float32 that its others are timed beside."""

Opener = Callable[[], Engine]

_N_OPENED = 4

PAIRS = (
    ("litert-int8", "aiedge-static"),
    ("litert-int8", "aiedge-dynamic"),
    ("litert-int8-linear", "aiedge-dynamic"),
    ("openvino-int8", "nncf"),
    ("onnx-int8", "onnx-static"),
)
"""Our target, and whose defaults it is measured against."""


@dataclass
class Shown:
    """A file and what it showed.

    Attributes:
        name: A key of ``PEERS``, or a target.
        title: What the tables call it.
        engine: What runs it.
        reason: Why there is no file; empty when there is.
        output_error: Mean difference to float in onnxruntime, in standard deviations of its outputs.
        agreement: Share of rows with its label.
        p50_ms: Median latency of a row.
        n_bytes: Size of the model files.
        ladder: What was tried; empty for others.
    """

    name: str
    title: str
    engine: str
    reason: str = ""
    output_error: float | None = None
    agreement: float | None = None
    p50_ms: float | None = None
    n_bytes: int | None = None
    ladder: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Compared:
    """One of ours beside one of theirs.

    Attributes:
        ours: The target.
        peer: A key of ``PEERS``.
        reason: Whose file is missing; empty when neither is.
        error: Output error, ours by theirs; None like the others where one of the files is missing.
        latency: Likewise, within rounds.
        latency_to_float: By the same engine's float32.
        size_factor: Size of float32 by ours.
    """

    ours: str
    peer: str
    reason: str
    error: float | None
    latency: Ratio | None
    latency_to_float: Ratio | None
    size_factor: float | None


def compare(
    subject: Subject, engines: list[str], *, folder: Path, seconds: float
) -> tuple[list[Shown], list[Compared]]:
    """Make all files, ask all of them and time those of each engine in turns.

    Args:
        subject: What is compared.
        engines: Of ``ENGINES``.
        folder: Where files go; emptied before.
        seconds: How long each engine's are timed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    subject.hand_out(folder / "given")
    shown: dict[str, Shown] = {}
    files: dict[str, Opener] = {}
    for name, peer in PEERS.items():
        if peer.engine in engines:
            shown[name] = _ask_peer(name, subject, folder, files)
    targets = [name for name in TARGET_NAMES if find_target(name).engine in engines]
    _say(subject, f"kit export for {', '.join(targets)}")
    shown |= _ask_ours(subject, targets, folder / "bundles", files)
    turns: dict[str, list[float]] = {}
    for engine in engines:
        _say(subject, f"timing in {engine}")
        calls: dict[str, list[Call]] = {
            name: [partial(_ask, opener()) for _ in range(_N_OPENED)]
            for name, opener in files.items()
            if shown[name].engine == engine
        }
        if calls:
            turns |= take_turns(calls, subject.held_out, seconds=seconds)
    for name, taken in turns.items():
        shown[name].p50_ms = statistics.median(taken)
    pairs = [pair for pair in PAIRS if pair[0] in shown]
    return list(shown.values()), [_compared(shown, turns, *pair) for pair in pairs]


def _ask_peer(name: str, subject: Subject, folder: Path, files: dict[str, Opener]) -> Shown:
    peer = PEERS[name]
    _say(subject, f"{peer.title} ({peer.engine})")
    output = folder / name
    found = Shown(name, peer.title, peer.engine)
    found.reason = make_file(name, given=folder / "given", output=output)
    if not found.reason:
        found.n_bytes = sum(path.stat().st_size for path in output.glob("model.*"))
        _judge(found, np.load(output / "answers.npy"), subject)
        files[name] = partial(open_file, name, given=folder / "given", output=output)
    return found


def _ask_ours(
    subject: Subject, targets: list[str], folder: Path, files: dict[str, Opener]
) -> dict[str, Shown]:
    found = {}
    for name, bundle in export_bundles(subject, targets, folder=folder).items():
        recipe, engine = bundle.result and bundle.result.recipe, find_target(name).engine
        title = f"kit export {name}" + (f" (recipe {recipe})" if recipe else "")
        shown = found[name] = Shown(name, title, engine, bundle.reason)
        shown.ladder = bundle.ladder
        if not bundle.reason:
            shown.n_bytes = bundle.model_bytes
            _judge(shown, _ask(bundle.open(), subject.held_out), subject)
            files[name] = bundle.open
    return found


def _ask(engine: Engine, rows: np.ndarray) -> np.ndarray:
    return engine.run_validated({engine.signature.inputs[0].name: rows})[engine.signature.outputs[0].name]


def _judge(shown: Shown, answers: np.ndarray, subject: Subject) -> None:
    expected = {"logits": subject.expected}
    shown.output_error = output_error({"logits": answers}, expected, scale=subject.scale)
    shown.agreement = float(np.mean(answers.argmax(axis=1) == subject.expected.argmax(axis=1)))


def _compared(shown: dict[str, Shown], turns: dict[str, list[float]], ours: str, peer: str) -> Compared:
    mine, theirs = shown[ours], shown[peer]
    plain = shown[FLOAT[mine.engine]]

    def within(name: str) -> Ratio | None:
        return Ratio.of(turns[ours], turns[name]) if ours in turns and name in turns else None

    return Compared(
        ours,
        peer,
        reason="ours is missing" if mine.reason else "theirs is missing" if theirs.reason else "",
        error=_by(mine.output_error, theirs.output_error),
        latency=within(peer),
        latency_to_float=within(plain.name),
        size_factor=_by(plain.n_bytes, mine.n_bytes),
    )


def _by(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def facts_of(shown: list[Shown], compared: list[Compared]) -> dict[str, Any]:
    """Give both as JSON."""
    return {"files": [asdict(each) for each in shown], "compared": [asdict(each) for each in compared]}


def _say(subject: Subject, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {subject.name}: {text}", file=sys.stderr, flush=True)
