"""The report: one self-contained HTML page about everything a project has run.

Reads the records the commands left and the registry's champion, and writes a page that asks for
nothing from anywhere: styles and plots stand in it. Knows no model and no data; a figure that no
record holds is not in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import report_plots as plots
from kit.errors import MissingDependencyError, NotFoundError, SettingsError, install_line
from kit.files import write_atomic
from kit.metrics import LOSSES
from kit.project import Project
from kit.registry import VersionRecord
from kit.report_records import ExportRecord, PredictRecord, Runs, TargetFacts, TrainRecord, read_runs
from kit.settings import ReportSettings

if TYPE_CHECKING:
    import jinja2

_log = logging.getLogger("kit")
_TEMPLATE = Path(__file__).parent / "templates" / "report" / "report.html.j2"
#: Metrics that are shares of the rows, shown in percent.
_SHARES = frozenset({"accuracy"})
#: Metrics that cannot pass 1.
_BOUNDED = frozenset({"accuracy", "auc", "f1_macro", "r2"})
_NO_FIGURE = "\N{EN DASH}"
_MAX_CONFUSIONS = 5


@dataclass(frozen=True)
class ReportResult:
    """What was written.

    Attributes:
        path: The page, absolute.
        n_runs: How many records it shows.
        sections: Its sections, by id, from top to bottom.
    """

    path: Path
    n_runs: int
    sections: tuple[str, ...]


@dataclass(frozen=True)
class _Training:
    """A training run as it is shown."""

    run: TrainRecord
    is_champion: bool
    curves: str | None
    confusion: str | None
    confusions: tuple[tuple[str, str, int, int], ...]


@dataclass(frozen=True)
class _Export:
    """The newest figures of every target of one model version."""

    run: ExportRecord
    targets: tuple[TargetFacts, ...]
    by_size: str | None
    by_latency: str | None


@dataclass(frozen=True)
class _Batches:
    """Every batch run, and how the newest one's labels are distributed."""

    runs: tuple[PredictRecord, ...]
    labels: str | None
    n_more_labels: int


def report(project: Project, settings: ReportSettings) -> ReportResult:
    """Write the page; see the module.

    Args:
        project: Whose records and registry are shown.
        settings: Where to write; a relative path is relative to the current folder.

    Raises:
        MissingDependencyError: Jinja or matplotlib is not installed.
        NotFoundError: The project has run nothing yet.
        SettingsError: The output is an address.
        UnavailableError: The disk is full or the file cannot be written.
    """
    path = _output(settings)
    runs = read_runs(project.state / "runs")
    if not runs.n_runs and not runs.unreadable:
        raise NotFoundError(
            f"{project.name} has no runs to report: {project.state / 'runs'} holds no records",
            hint="train first: kit train",
        )
    champion = _champion(project)
    sections = _sections(runs)
    page = (
        _environment()
        .get_template(_TEMPLATE.name)
        .render(
            project=project,
            task=project.settings.project.task,
            champion=champion,
            made_at=datetime.fromtimestamp(time.time(), tz=UTC),
            runs=runs,
            sections=sections,
            demo=runs.demo[0] if runs.demo else None,
            trainings=_trainings(runs.train, champion),
            export=_export(runs.export),
            batches=_batches(runs.predict),
        )
    )
    write_atomic(path, page.encode("utf-8", errors="replace"))
    for each in runs.unreadable:
        _log.warning("%s cannot be read: %s", each.name, each.reason)
    return ReportResult(path, runs.n_runs, tuple(sections))


def _output(settings: ReportSettings) -> Path:
    if "://" in settings.output:
        raise SettingsError(
            f"output = {settings.output!r} is an address; the report is one file", hint="name a file"
        )
    return Path(settings.output).expanduser().absolute()


def _champion(project: Project) -> VersionRecord | None:
    try:
        return project.registry().resolve(project.name)
    except NotFoundError:
        return None


def _sections(runs: Runs) -> dict[str, str]:
    """Name the sections that have something to show: id to heading, from top to bottom."""
    titles: tuple[tuple[str, str, Sequence[object]], ...] = (
        ("agreement", "The same rows everywhere", runs.demo),
        ("training", "Training", runs.train),
        ("export", "Export", runs.export),
        ("batch", "Batch runs", runs.predict),
        ("endpoints", "Endpoints", (*runs.serve, *runs.query)),
        ("devices", "Devices", runs.flash),
        ("unreadable", "Records that cannot be read", runs.unreadable),
    )
    return {name: title for name, title, records in titles if records}


def _trainings(runs: Sequence[TrainRecord], champion: VersionRecord | None) -> tuple[_Training, ...]:
    """Show the newest run and, where that is another one, the champion's."""
    crowned = [run for run in runs if champion is not None and run.digest == champion.digest][:1]
    shown = [*runs[:1], *(run for run in crowned if run != runs[0])]
    return tuple(
        _training(run, name=f"training-{index}", is_champion=run in crowned)
        for index, run in enumerate(shown)
    )


def _training(run: TrainRecord, *, name: str, is_champion: bool) -> _Training:
    curves = matrix = None
    if run.epochs:
        curves = plots.training_curves(
            [each.epoch for each in run.epochs],
            [each.train_loss for each in run.epochs],
            [each.validation_loss for each in run.epochs],
            best_epoch=run.best_epoch,
            name=f"{name}-curves",
        )
    wrong: list[tuple[str, str, int, int]] = []
    if run.has_confusion:
        if len(run.classes) <= plots.MAX_CLASSES:
            matrix = plots.confusion(run.confusion, run.classes, name=f"{name}-confusion")
        wrong = [
            (run.classes[true], run.classes[answered], count, sum(line))
            for true, line in enumerate(run.confusion)
            for answered, count in enumerate(line)
            if count and true != answered
        ]
        wrong.sort(key=lambda each: -each[2])
    return _Training(run, is_champion, curves, matrix, tuple(wrong[:_MAX_CONFUSIONS]))


def _export(runs: Sequence[ExportRecord]) -> _Export | None:
    """Put the newest figures of each target together, for the model version exported last."""
    if not runs:
        return None
    run = runs[0]
    targets: dict[str, TargetFacts] = {}
    for each in runs:
        if each.digest == run.digest:
            for target in each.targets:
                targets.setdefault(target.target, target)
    reference, metric = run.reference, run.reference.metric
    scale, unit = (100, " (%)") if metric in _SHARES else (1, "")
    value = reference.value * scale
    sizes = [("float ONNX", reference.size_bytes / 1000, value)]
    latencies = [("float ONNX", reference.latency_ms.p50, value)]
    for target in targets.values():
        if target.value is None or target.metric != metric:
            continue
        value = target.value * scale
        if target.size_bytes is not None:
            sizes.append((target.target, target.size_bytes / 1000, value))
        if target.latency_ms is not None:
            latencies.append((target.target, target.latency_ms.p50, value))

    def draw(points: list[tuple[str, float, float]], x_label: str, name: str) -> str | None:
        if len(points) < 2:
            return None
        ceiling = scale if metric in _BOUNDED else None
        return plots.trade_off(points, x_label=x_label, y_label=metric + unit, ceiling=ceiling, name=name)

    by_size = draw(sizes, "size (kB)", "by-size")
    by_latency = draw(latencies, "latency of one row (ms)", "by-latency")
    return _Export(run, tuple(targets.values()), by_size, by_latency)


def _batches(runs: tuple[PredictRecord, ...]) -> _Batches | None:
    if not runs:
        return None
    counts = list(runs[0].labels.items())
    n_more = 0
    if len(counts) > plots.MAX_BARS:
        counts.sort(key=lambda each: -each[1])
        n_more = len(counts) - plots.MAX_BARS
        counts = counts[: plots.MAX_BARS]
    drawn = plots.label_counts(counts, name="labels") if counts else None
    return _Batches(runs, drawn, n_more)


def _environment() -> jinja2.Environment:
    """Make the template engine: everything is escaped but our own drawings, nothing may be missing."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "the report needs jinja2, which is not installed", hint=install_line("cluster")
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    environment.globals["losses"] = LOSSES
    return environment


def _count(value: float | None) -> str:
    """Write a whole number with thousands separators."""
    return _NO_FIGURE if value is None else f"{value:,.0f}"


def _digits(value: float | None) -> str:
    """Write a figure with three significant digits, without an exponent from 0.001 to a million."""
    if value is None:
        return _NO_FIGURE
    if value and not 0.001 <= abs(value) < 1e6:
        return f"{value:.1e}"
    whole = len(str(int(abs(value))))
    places = max(0, 3 - whole) if abs(value) >= 1 else 3
    return f"{value:,.{places}f}"


def _percent(value: float | None) -> str:
    """Write a share; only all of the rows is 100 %, and only none is 0 %."""
    if value is None:
        return _NO_FIGURE
    shown = round(value * 100, 2)
    if value < 1:
        shown = min(shown, 99.99)
    if value > 0:
        shown = max(shown, 0.01)
    return f"{shown:.2f}\N{NO-BREAK SPACE}%"


def _metric(value: float | None, metric: str | None) -> str:
    """Write a metric: a share in percent, any other with four decimals."""
    if value is None:
        return _NO_FIGURE
    return _percent(value) if metric in _SHARES else f"{value:,.4f}"


def _size(n_bytes: int | None) -> str:
    """Write a size in decimal units."""
    if n_bytes is None:
        return _NO_FIGURE
    if n_bytes < 1000:
        return f"{n_bytes}\N{NO-BREAK SPACE}B"
    if n_bytes < 1_000_000:
        return f"{n_bytes / 1000:.1f}\N{NO-BREAK SPACE}kB"
    return f"{n_bytes / 1_000_000:,.2f}\N{NO-BREAK SPACE}MB"


def _duration(seconds: float | None) -> str:
    """Write a time span."""
    if seconds is None:
        return _NO_FIGURE
    if seconds < 60:
        return f"{_digits(seconds)}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02}:{rest:02}\N{NO-BREAK SPACE}h"
        if hours
        else f"{minutes}:{rest:02}\N{NO-BREAK SPACE}min"
    )


def _moment(moment: datetime) -> str:
    """Write a moment to the minute, in UTC."""
    return f"{moment:%Y-%m-%d %H:%M}"


def _drawing(svg: str) -> Any:
    """Let one of our own drawings through unescaped; what users wrote in it was escaped when it was drawn."""
    from markupsafe import Markup

    return Markup(svg)


_FILTERS: Mapping[str, Any] = {
    "count": _count,
    "digits": _digits,
    "percent": _percent,
    "metric": _metric,
    "size": _size,
    "duration": _duration,
    "moment": _moment,
    "drawing": _drawing,
}
