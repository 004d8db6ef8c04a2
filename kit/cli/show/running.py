"""How what runs and ships a version is shown: predict, serve, query, export, flash, submit, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kit.cli.show.tables import kilobytes, near, table

if TYPE_CHECKING:
    from edge.export import ExportReport
    from edge.flash import FlashResult
    from jobs.predict import PredictResult
    from jobs.submit import SubmitResult
    from kit.query import QueryResult
    from kit.report import ReportResult
    from serve.serve import ServeResult


def predict(result: PredictResult) -> None:
    """Show what a batch run did."""
    print(
        f"{result.rows_out:,} rows by {result.model} in {result.seconds:.1f} s "
        f"({result.rows_per_second:,.0f} rows/s), {result.n_parts} parts in {near(result.output)}"
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
            kilobytes(reference.size_bytes),
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
                kilobytes(each.size_bytes),
                each.latency.p50_ms if each.latency else None,
                near(each.bundle) if each.bundle else f"NOT WRITTEN: {each.reason}",
            )
        )
    table(
        ("target", reference.metric, "agreement", "output error", "size kB", "p50 ms", "bundle"),
        rows,
        title=f"{result.model}  sha256:{result.digest[:12]}",
    )


def flash(result: FlashResult) -> None:
    """Show what a device runs now."""
    print(f"{near(result.device)}: {result.status} {result.name} {result.target} release {result.release}")
    print(f"  running sha256:{result.digest[:12]}")
    if result.detail:
        print(f"  {result.detail}")


def submit(result: SubmitResult) -> None:
    """Show how a job ended."""
    print(f"{result.job_id} on {result.address}: {result.status}")


def report(result: ReportResult) -> None:
    """Show where the page lies."""
    print(f"wrote {near(result.path)} about {result.n_runs} runs")
