"""How what runs and ships a version is shown: predict, serve, query, flash, submit, report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kit.cli.show.status import serving
from kit.cli.show.tables import near, table

if TYPE_CHECKING:
    from edge.flash import FlashResult
    from jobs.predict import PredictResult
    from jobs.render import ClusterResult
    from jobs.runs import RunsResult
    from jobs.submit import SubmitResult
    from kit.query import QueryResult
    from kit.report import ReportResult
    from serve.advise import Advice
    from serve.serve import ServeResult
    from serve.watching.status import EndpointStatus


def predict(result: PredictResult) -> None:
    """Show what a batch run did."""
    pace = f" in {result.seconds:.1f} s ({result.rows_per_second:,.0f} rows/s)" if result.seconds else ""
    print(
        f"{result.rows_out:,} rows by {result.model}{pace}, {result.n_parts} parts in {near(result.output)}"
    )
    if result.n_resumed:
        print(f"{result.n_resumed} shards had been done before")
    if result.rows_refused:
        print(f"{result.rows_refused:,} rows are in quarantine: {near(result.output)}/_quarantine")
    if result.labels:
        table(("label", "rows"), result.labels.items())
    if result.report:
        print(f"report: {near(result.report)}")


def runs(result: RunsResult) -> None:
    """Show batch runs."""
    if result.action == "clean":
        print(f"removed {result.files} files of {near(result.runs[0].output)}")
        return
    rows = [
        (
            each.changed or "-",
            each.name,
            each.status,
            each.model,
            f"{each.shards_done}/{each.shards}",
            f"{each.rows_in:,}",
            f"{each.rows_out:,}",
            f"{each.rows_refused:,}",
            near(each.output),
        )
        for each in result.runs
    ]
    table(("changed", "run", "status", "model", "shards", "rows in", "rows out", "refused", "output"), rows)
    if result.action == "show":
        first = result.runs[0]
        print(f"run {first.run_id} over {near(first.input)}")
        for name, value in first.settings.items():
            print(f"  {name}: {value}")
        for each in result.runs:
            if each.reasons:
                table(
                    ("rows", f"refused because ({each.name})"), [(n, why) for why, n in each.reasons.items()]
                )
    if result.action == "verify":
        for sentence in result.wrong:
            print(f"  {sentence}")
        print(f"{result.files} files, {result.n_bytes:,} bytes hashed: {len(result.wrong) or 'none'} wrong")


def serve(result: ServeResult | EndpointStatus | Advice | None) -> None:
    """Show that an endpoint has ended, what it does, or how to serve."""
    from serve.advise import Advice
    from serve.watching.status import EndpointStatus

    if result is None:
        print("stopped before it answered")
    elif isinstance(result, Advice):
        _advice(result)
    elif isinstance(result, EndpointStatus):
        serving(result)
    else:
        names = ", ".join(f"{each.model}@{each.version}" for each in result.status.models)
        print(f"{names} stopped after {result.uptime_s:.0f} s")


def _advice(advice: Advice) -> None:
    table(
        ("engine", "device", "threads", "rows", "p50 ms", "p99 ms", "rows/s"),
        [
            (
                each.engine,
                each.device,
                each.threads,
                each.rows,
                f"{each.p50_ms:.3f}",
                f"{each.p99_ms:.3f}",
                f"{each.rows_per_s:,.0f}",
            )
            for each in advice.measured
        ],
        title=f"{advice.model} on {advice.cores} cores",
    )
    chosen = advice.chosen
    print(
        f"\nserve it with: --engine {chosen.engine} --device {chosen.device} --threads {chosen.threads} "
        f"--replicas {advice.replicas} --max-batch-rows {chosen.rows}"
    )
    for sentence in (*advice.reasons, *advice.skipped):
        print(f"  {sentence}")


def query(result: QueryResult) -> None:
    """Show an endpoint's answers."""
    table(
        result.columns,
        result.rows,
        title=f"{result.model}, version {result.version}, {result.latency_ms:.1f} ms a request",
    )


def flash(result: FlashResult) -> None:
    """Show what a device runs now, or would."""
    if result.status == "planned":
        print(
            f"{near(result.device)}: {result.name} {result.target} release {result.release} would be flashed"
        )
        for number, step in enumerate(result.steps, start=1):
            print(f"  {number}. {step}")
        return
    print(f"{near(result.device)}: {result.status} {result.name} {result.target} release {result.release}")
    print(f"  running sha256:{result.digest[:12]}")
    if result.detail:
        print(f"  {result.detail}")


def submit(result: SubmitResult) -> None:
    """Show how a job ended."""
    after = f" after {result.tries} tries" if result.tries > 1 else ""
    print(f"{result.job_id} on {result.address}: {result.status}{after}")


def cluster(result: ClusterResult) -> None:
    """Show the description of a cluster, or where it lies."""
    print(result.text.rstrip("\n") if result.path is None else f"wrote {near(result.path)}")


def report(result: ReportResult) -> None:
    """Show where the page lies."""
    print(f"wrote {near(result.path)} about {result.n_runs} runs")
