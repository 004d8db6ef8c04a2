"""How results look on a terminal: one function per command, tables where a table says it better."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.export import ExportReport
    from edge.flash import FlashResult
    from jobs.predict import PredictResult
    from jobs.submit import SubmitResult
    from jobs.train import TrainResult
    from kit.doctor import DoctorResult
    from kit.init import InitResult
    from kit.keys import KeysResult
    from kit.models import ModelsResult
    from kit.query import QueryResult
    from kit.report import ReportResult
    from serve.serve import ServeResult


def to_json(result: Any) -> str:
    """Give any result as JSON text."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    return json.dumps(plain(result), indent=2, ensure_ascii=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table; numbers stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = [list(row) for row in rows]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        right = bool(listed) and all(isinstance(row[index], (int, float, type(None))) for row in listed)
        made.add_column(heading, justify="right" if right else "left")
    for row in listed:
        made.add_row(*(Text(_cell(value)) for value in row))
    console = Console()
    if not console.is_terminal:  # a pipe has no width to fold to
        console.width = 200
    if title:
        print(title)
    with console.capture() as captured:
        console.print(made)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def init(result: InitResult) -> None:
    """Show a new project."""
    print(f"wrote {_near(result.folder)}")
    for name in result.files:
        print(f"  {name}")
    print(f"next: cd {result.folder.name} && kit keys init && kit train --promote")


def doctor(result: DoctorResult) -> None:
    """Show what this machine has."""
    table(
        ("", "found", "detail", "needed for", "to install"),
        (
            (check.name, "yes" if check.found else "no", check.detail, check.needed_for, check.install or "")
            for check in result.checks
        ),
    )


def keys(result: KeysResult) -> None:
    """Show the key that signs."""
    print(f"{'made' if result.created else 'key'} {result.key_id}")
    print(f"  private: {_near(result.private)} (mode 0600; keep it out of version control)")
    print(f"  public:  {_near(result.public)}")


def train(result: TrainResult) -> None:
    """Show a candidate, its metrics and its gates."""
    version = result.version
    bounds = {gate.metric: gate for gate in result.gates}
    table(
        ("metric", "held out", "gate", "passed"),
        (
            (name, value, bounds[name].bound if name in bounds else None, _passed(bounds.get(name)))
            for name, value in result.metrics.items()
        ),
        title=f"{version.model}@{version.number}  sha256:{version.digest[:12]}",
    )
    print(
        f"epochs: {len(result.epochs)} (best: {result.best_epoch}); ONNX differs from Python by at most "
        f"{result.parity.max_relative_difference:.1e} over {result.parity.n_rows:,} rows"
    )
    if result.promoted:
        print(f"{version.model}@{version.number} is champion")
    else:
        anyway = "" if all(gate.passed for gate in result.gates) else " --no-gates"
        print(
            f"{version.model}@{version.number} is candidate; "
            f"kit models promote {version.model}@candidate{anyway}"
        )


def _passed(gate: Any) -> str:
    return "" if gate is None else "yes" if gate.passed else "NO"


def models(result: ModelsResult) -> None:
    """Show versions, a manifest or the log."""
    if result.action == "log":
        table(
            ("#", "when (UTC)", "what", "model", "details"),
            (
                (
                    event.seq,
                    _when(event.at_ns),
                    event.kind,
                    event.model,
                    ", ".join(
                        f"{key} {_short(event.body[key])}"
                        for key in ("number", "alias", "digest", "previous")
                        if event.body.get(key) is not None
                    ),
                )
                for event in result.events
            ),
        )
        return
    if result.action == "list" and not result.versions:
        print("no models yet; kit train makes one")
        return
    table(
        ("model", "version", "aliases", "digest", "registered (UTC)", "metrics"),
        (
            (
                record.model,
                record.number,
                ", ".join(record.aliases),
                record.digest[:12],
                _when(record.registered_ns),
                ", ".join(f"{name} {value:.4f}" for name, value in record.summary.get("metrics", {}).items()),
            )
            for record in result.versions
        ),
    )
    if result.manifest:
        print(json.dumps(result.manifest, indent=2, ensure_ascii=False))
    if result.checked:
        print(f"verified: {', '.join(result.checked)}")


def _when(at_ns: int) -> str:
    return datetime.datetime.fromtimestamp(at_ns / 1e9, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def predict(result: PredictResult) -> None:
    """Show what a batch run did."""
    print(
        f"{result.rows_out:,} rows by {result.model} in {result.seconds:.1f} s "
        f"({result.rows_per_second:,.0f} rows/s), {result.n_parts} parts in {_near(result.output)}"
    )
    if result.labels:
        table(("label", "rows"), result.labels.items())


def serve(result: ServeResult | None) -> None:
    """Show that an endpoint has ended."""
    if result is None:
        print("stopped before it answered")
    else:
        print(f"{result.status.model}@{result.status.version} stopped after {result.uptime_s:.0f} s")


def query(result: QueryResult) -> None:
    """Show an endpoint's answers."""
    table(
        result.columns,
        result.rows,
        title=f"{result.model}, version {result.version}, {result.latency_ms:.1f} ms a request",
    )


def export(result: ExportReport) -> None:
    """Show the targets against the reference."""
    reference = result.reference
    rows: list[tuple[Any, ...]] = [
        (
            "float (ONNX)",
            reference.value,
            None,
            None,
            _kilobytes(reference.size_bytes),
            reference.latency.p50_ms,
            "reference",
        )
    ]
    for each in result.targets:
        compared = each.comparison
        rows.append(
            (
                each.target,
                compared.value if compared else None,
                compared.agreement if compared else None,
                compared.output_error if compared else None,
                _kilobytes(each.size_bytes),
                each.latency.p50_ms if each.latency else None,
                _near(each.bundle) if each.bundle else f"NOT WRITTEN: {each.reason}",
            )
        )
    table(
        ("target", reference.metric, "agreement", "output error", "size kB", "p50 ms", "bundle"),
        rows,
        title=f"{result.model}  sha256:{result.digest[:12]}",
    )


def _near(place: Path | str) -> str:
    """Show a place as a user would type it: relative where it lies below the current folder."""
    path = Path(place)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(place)


def _kilobytes(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / 1000, 1)


def flash(result: FlashResult) -> None:
    """Show what a device runs now."""
    print(f"{_near(result.device)}: {result.status} {result.name} {result.target} release {result.release}")
    print(f"  running sha256:{result.digest[:12]}")
    if result.detail:
        print(f"  {result.detail}")


def submit(result: SubmitResult) -> None:
    """Show how a job ended."""
    print(f"{result.job_id} on {result.address}: {result.status}")


def report(result: ReportResult) -> None:
    """Show where the page lies."""
    print(f"wrote {_near(result.path)} about {result.n_runs} runs")
