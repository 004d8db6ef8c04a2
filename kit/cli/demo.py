"""The whole path on real data: one trained model, asked everywhere about the same held-out rows.

Runs the commands a user would type, each in a process of its own, then lays the answers side by
side. ``make demo`` runs it; ``--device-python`` is the interpreter of an environment that has
neither Ray nor torch.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.cli.show.tables import table
from kit.data import held_out_table, load
from kit.engines import open_engine
from kit.errors import GateError, KitError
from kit.project import Project
from kit.signature import Signature
from kit.tensors import Tensors

_SERVE_TIMEOUT_S = 120
_TIMED_CALLS = 200


@dataclass(frozen=True)
class Place:
    """One place the model answered at.

    Attributes:
        place: What it is called on the screen.
        accuracy: Over the held-out rows.
        agreement: Share of rows with the float model's label.
        size_bytes: Of what is shipped there; None when that says nothing.
        latency_ms: Median of one row; None where rows are not asked one by one.
        exact: Whether every label must equal the float model's.
    """

    place: str
    accuracy: float
    agreement: float
    size_bytes: int | None
    latency_ms: float | None
    exact: bool


def main() -> int:
    """Run the demo; see the module."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--device-python", default=sys.executable, help="interpreter of the device")
    parser.add_argument("--folder", type=Path, help="where to work (default: a new temporary folder)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kit-demo-"))
    started = time.monotonic()
    places, project = _run(folder / "digits", device_python=options.device_python)
    seconds = time.monotonic() - started
    _record(project, places)
    report = project.folder / "report.html"
    _kit(project.folder, "report", "--output", str(report))
    _show(places, n_rows=len(load(project).test.rows))
    print(f"the report lies at {report}")
    print(f"the project lies at {project.folder}; everything above took {seconds:.0f} s")
    _require_agreement(places)
    return 0


def _run(folder: Path, *, device_python: str) -> tuple[list[Place], Project]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _kit(folder.parent, "init", folder.name, "--template", "digits")
    _kit(folder, "keys", "init")
    _kit(folder, "train", "--promote")
    project = Project.open(folder)
    rows = _held_out(project)
    test = load(project).test
    labels, tensors = test.labels, test.tensors
    _, version = project.open_version("digits")
    float_labels = _float_answers(version.folder / "model.pt2", tensors)

    def place(name: str, answered: np.ndarray, *, size_bytes: int | None, latency_ms: float | None) -> Place:
        return Place(
            place=name,
            accuracy=float(np.mean(answered == labels)),
            agreement=float(np.mean(answered == float_labels)),
            size_bytes=size_bytes,
            latency_ms=latency_ms,
            exact="int8" not in name,
        )

    onnx = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    onnx_bytes = version.model_path.stat().st_size
    places = [
        place("float model (torch)", float_labels, size_bytes=None, latency_ms=None),
        place(
            "ONNX (onnxruntime)",
            onnx.run(tensors)["label"],
            size_bytes=onnx_bytes,
            latency_ms=_latency_ms(lambda row: onnx.run(row), tensors),
        ),
        place(
            "batch (Ray)",
            _batch(folder, version.signature)[test.rows],
            size_bytes=onnx_bytes,
            latency_ms=None,
        ),
    ]
    answered, latency_ms = _http(project, tensors)
    places.append(place("HTTP (Ray Serve)", answered, size_bytes=onnx_bytes, latency_ms=latency_ms))
    _kit(folder, "export", "digits")
    for target in ("litert-int8", "openvino-int8"):
        answered, latency_ms, size = _device(folder, target, rows, version.signature, python=device_python)
        places.append(place(f"device ({target})", answered, size_bytes=size, latency_ms=latency_ms))
    return places, project


def _kit(folder: Path, *words: str) -> None:
    """Run one command as a user would, showing it."""
    _run_shown([sys.executable, "-m", "kit", *words], folder, shown=f"kit {shlex.join(words)}")


def _run_shown(words: list[str], folder: Path, *, shown: str) -> None:
    print(f"\n$ {shown}", flush=True)
    code = subprocess.run(words, cwd=folder, check=False).returncode
    if code:
        raise KitError(
            f"{shown} ended with exit code {code}", hint=f"read its message above; it ran in {folder}"
        )


def _held_out(project: Project) -> Path:
    """Write the held-out rows as JSON Lines, which a device reads."""
    path = project.folder / "data" / "held_out.jsonl"
    lines = (json.dumps(row) for row in held_out_table(project).to_pylist())
    path.write_text("\n".join(lines) + "\n")
    return path


def _float_answers(program: Path, tensors: Tensors) -> np.ndarray:
    """Ask the trained float network itself, from the verified version."""
    import torch

    with torch.no_grad():
        logits = torch.export.load(program).module()(torch.from_numpy(tensors["image"]))
    return np.asarray(logits.argmax(dim=1))


def _batch(folder: Path, signature: Signature) -> np.ndarray:
    """Predict the whole table; the answers are in its order."""
    from kit.tables import read_table

    words = ["--input", "data/digits.parquet", "--output", "predictions", "--columns", "id"]
    _kit(folder, "predict", "digits", *words)
    return _indices(read_table(str(folder / "predictions")).column("label").to_pylist(), signature)


def _indices(names: list[object], signature: Signature) -> np.ndarray:
    position = {name: index for index, name in enumerate(signature.classes)}
    return np.array([position[name] for name in names])  # type: ignore[index]  # class names, from our own answers


def _http(project: Project, tensors: Tensors) -> tuple[np.ndarray, float]:
    from kit.query import connect, infer

    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with _serving(project.folder, port=port):
        _kit(project.folder, "query", "digits", "--input", "data/digits.parquet", "--url", url)
        key = (project.state / "serve" / "key").read_text().strip()

        with connect(url, key=key, timeout_s=10) as client:

            def ask(batch: Tensors) -> Tensors:
                return infer(client, "digits", batch)

            n_rows = len(next(iter(tensors.values())))
            parts = [
                ask({name: array[start : start + 64] for name, array in tensors.items()})["label"]
                for start in range(0, n_rows, 64)
            ]
            return np.concatenate(parts), _latency_ms(ask, tensors)


@contextmanager
def _serving(folder: Path, *, port: int) -> Iterator[None]:
    """Have ``kit serve`` running; it says when it answers."""
    words = ["serve", "digits", "--port", str(port)]
    print(f"\n$ kit {shlex.join(words)} &", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "kit", *words], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("ask it"):
                break
        else:
            raise KitError("kit serve ended before it answered", hint="read its message above")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=_SERVE_TIMEOUT_S)


def _device(
    folder: Path, target: str, rows: Path, signature: Signature, *, python: str
) -> tuple[np.ndarray, float, int]:
    """Flash a bundle and ask the device, in an environment of its own."""
    bundle, device = f"bundles/digits-{target}.bundle", f"device-{target}"
    _kit(folder, "flash", bundle, f"path:{device}", "--yes")
    answers = folder / f"answers-{target}.jsonl"
    words = ["predict", device, "--input", f"data/{rows.name}", "--output", answers.name]
    _run_shown(
        [python, "-m", "edge.agent", *words], folder, shown=f"python -m edge.agent {shlex.join(words)}"
    )
    health = subprocess.run(
        [python, "-m", "edge.agent", "health", device], cwd=folder, check=True, capture_output=True, text=True
    )
    latency_ms = float(json.loads(health.stdout)["median_latency_ms"])
    labels = [json.loads(line)["label"] for line in answers.read_text().splitlines()]
    return _indices(labels, signature), latency_ms, (folder / bundle).stat().st_size


def _latency_ms(ask: object, tensors: Tensors) -> float:
    """Median time of one row, one call at a time, after a warm-up, in ms."""
    assert callable(ask)
    times = []
    for index in range(_TIMED_CALLS + 20):
        row = {name: array[index % len(array)][None] for name, array in tensors.items()}
        began = time.perf_counter()
        ask(row)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[20:])


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _record(project: Project, places: list[Place]) -> None:
    rows = [{key: value for key, value in vars(place).items() if key != "exact"} for place in places]
    n_rows = len(load(project).test.rows)
    project.write_record("demo", "latest", {"rows": rows, "n_rows": n_rows})


def _show(places: list[Place], *, n_rows: int) -> None:
    print()
    table(
        ("where it answered", "accuracy", "same label as float", "size kB", "one row, ms"),
        (
            (
                place.place,
                place.accuracy,
                f"{place.agreement:.2%}",
                None if place.size_bytes is None else round(place.size_bytes / 1000, 1),
                place.latency_ms,
            )
            for place in places
        ),
        title=f"the same {n_rows} held-out rows everywhere",
    )


def _require_agreement(places: list[Place]) -> None:
    """Fail when the answers differ: the promise the demo makes."""
    reference = places[0].accuracy
    for place in places:
        if place.exact and place.agreement != 1.0:
            raise GateError(f"{place.place} gives another label than the float model on some rows")
        if abs(place.accuracy - reference) > 0.01:
            raise GateError(
                f"{place.place} is {place.accuracy:.4f} accurate; the float model {reference:.4f}"
            )


if __name__ == "__main__":
    from kit.cli import report_errors

    sys.exit(report_errors(main))
