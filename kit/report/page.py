"""Pages made of sections: what the report holds, and how it is written.

Reads the records the commands left and the registry's champion. Knows no model and no data; a
figure that no record holds is not in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kit.errors import InputError, MissingDependencyError, NotFoundError, SettingsError, install_line
from kit.files import read_json, write_atomic
from kit.metrics import LOSSES
from kit.project import Project
from kit.registry import VersionRecord
from kit.report.formats import FILTERS
from kit.report.records.data import PrepareRecord
from kit.report.records.facts import Record
from kit.report.records.reading import Runs, read_runs
from kit.report.records.running import PredictRecord
from kit.report.records.shipping import ExportRecord
from kit.report.sections.batch import batch_run, batches
from kit.report.sections.compression import compression
from kit.report.sections.data import data
from kit.report.sections.evaluation import evaluation, interval_of, loss_of
from kit.report.sections.shipping import MAX_KEPT, export
from kit.report.sections.study import study
from kit.report.sections.training import trainings
from kit.settings import ReportSettings

if TYPE_CHECKING:
    import jinja2

R = TypeVar("R", bound=Record)

_log = logging.getLogger("kit")
_TEMPLATES = Path(__file__).parents[1] / "templates" / "report"


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


def report(project: Project, settings: ReportSettings) -> ReportResult:
    """Write the page about all runs; see the module.

    Args:
        project: Whose records and registry are shown.
        settings: Where to write; a relative path is relative to the current folder.

    Raises:
        MissingDependencyError: Jinja or matplotlib is not installed.
        NotFoundError: The project has run nothing yet.
        SettingsError: The output is an address.
        UnavailableError: The disk is full or the file cannot be written.
    """
    path = local_file(settings.output, key="output")
    runs = read_runs(project.state / "runs")
    if not runs.n_runs and not runs.unreadable:
        raise NotFoundError(
            f"{project.name} has no runs to report: {project.state / 'runs'} holds no records",
            hint="train first: kit train",
        )
    champion = _champion(project)
    sections = _sections(runs)
    _write(
        path,
        "report.html.j2",
        project=project,
        task=project.settings.project.task,
        champion=champion,
        runs=runs,
        sections=sections,
        demo=runs.demo[0] if runs.demo else None,
        data=data(runs.prepare),
        study=study(runs.tune),
        trainings=trainings(runs.train, champion),
        evaluation=evaluation(runs.evaluate),
        compression=compression(runs.compress),
        export=export(runs.export),
        batches=batches(runs.predict),
    )
    for each in runs.unreadable:
        _log.warning("%s cannot be read: %s", each.name, each.reason)
    return ReportResult(path, runs.n_runs, tuple(sections))


def data_report(project: Project, record: Path, *, output: str) -> Path:
    """Write the page about a project's data alone.

    Args:
        project: Whose data it is.
        record: What ``kit prepare`` left, as ``Project.write_record`` wrote it.
        output: Where to write; a relative path is relative to the current folder.

    Returns:
        The page, absolute.

    Raises:
        InputError: The record cannot be read.
        MissingDependencyError: Jinja or matplotlib is not installed.
        SettingsError: The output is an address.
        UnavailableError: The disk is full or the file cannot be written.
    """
    path = local_file(output, key="report")
    from pydantic import ValidationError

    try:
        run = PrepareRecord.model_validate(read_json(record))
    except ValidationError as error:
        raise InputError(f"{record} is not a record of a preparation: {error.errors()[0]['msg']}") from error
    _write(
        path,
        "data-report.html.j2",
        project=project,
        task=project.settings.project.task,
        sections={"data": "Data"},
        data=data((run,)),
    )
    return path


def batch_report(project: Project, facts: Mapping[str, Any]) -> bytes:
    """Make the page about one batch run.

    Args:
        project: Whose model ran.
        facts: Those of its record; when it was written may be missing.

    Returns:
        One self-contained HTML document.

    Raises:
        InputError: The facts are not those of a batch run.
        MissingDependencyError: Jinja or matplotlib is not installed.
    """
    run = _record(PredictRecord, facts, what="a batch run")
    return _rendered(
        "batch-report.html.j2",
        project=project,
        sections={"batch": run.model},
        batch=batch_run(run),
    )


def export_report(project: Project, facts: Mapping[str, Any]) -> bytes:
    """Make the page about one export.

    Args:
        project: Whose model was exported.
        facts: Those of its record; when it was written may be missing.

    Returns:
        One self-contained HTML document.

    Raises:
        InputError: The facts are not those of an export.
        MissingDependencyError: Jinja or matplotlib is not installed.
    """
    run = _record(ExportRecord, facts, what="an export")
    return _rendered(
        "export-report.html.j2",
        project=project,
        sections={"export": run.model},
        export=export((run,)),
    )


def local_file(output: str, *, key: str) -> Path:
    """Make the place of a page absolute.

    Args:
        output: As it was set.
        key: The setting, for the message.

    Raises:
        SettingsError: It is an address.
    """
    if "://" in output:
        raise SettingsError(f"{key} = {output!r} is an address; the report is one file", hint="name a file")
    return Path(output).expanduser().absolute()


def _record(cls: type[R], facts: Mapping[str, Any], *, what: str) -> R:
    """Read facts as the record they become.

    Raises:
        InputError: They are not such; names the first that is wrong.
    """
    from pydantic import ValidationError

    try:
        return cls.model_validate({"id": "this", "written_at_s": time.time(), **facts})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{where!r} is not what {what} holds there: {problem['msg']}") from error


def _write(path: Path, template: str, **values: Any) -> None:
    write_atomic(path, _rendered(template, **values))


def _rendered(template: str, **values: Any) -> bytes:
    made_at = datetime.fromtimestamp(time.time(), tz=UTC)
    page = _environment().get_template(template).render(made_at=made_at, **values)
    return page.encode("utf-8", errors="replace")


def _champion(project: Project) -> VersionRecord | None:
    try:
        return project.registry().resolve(project.name)
    except NotFoundError:
        return None


def _sections(runs: Runs) -> dict[str, str]:
    """Name the sections that have something to show: id to heading, from top to bottom."""
    titles: tuple[tuple[str, str, Sequence[object]], ...] = (
        ("agreement", "The same rows everywhere", runs.demo),
        ("data", "Data", runs.prepare),
        ("study", "Study", runs.tune),
        ("training", "Training", runs.train),
        ("evaluation", "Evaluation", runs.evaluate),
        ("compression", "Compression", runs.compress),
        ("export", "Export", runs.export),
        ("batch", "Batch runs", runs.predict),
        ("endpoints", "Endpoints", (*runs.serve, *runs.query)),
        ("devices", "Devices", runs.flash),
        ("unreadable", "Records that cannot be read", runs.unreadable),
    )
    return {name: title for name, title, records in titles if records}


def _environment() -> jinja2.Environment:
    """Make the template engine: everything is escaped but our own drawings, nothing may be missing."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "the report needs jinja2, which is not installed", hint=install_line("cluster")
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.globals["losses"] = LOSSES
    environment.globals["max_kept"] = MAX_KEPT
    environment.globals["loss_of"] = loss_of
    environment.globals["interval_of"] = interval_of
    return environment
