"""How exports are shown: targets beside the float model, recipes that were tried, and what can be built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kit.cli.show.tables import kilobytes, near, table

if TYPE_CHECKING:
    from edge.export import ExportReport, TargetResult
    from edge.ladder import Rung
    from edge.layers import Layer
    from edge.listing import TargetList

_MAX_LAYERS = 5
_MAX_KEPT = 4
_MAX_RECIPES = 3


def export(result: ExportReport | TargetList) -> None:
    """Show the targets against the reference, or which this machine can build and run."""
    from edge.listing import TargetList

    if isinstance(result, TargetList):
        _targets(result)
    else:
        _measured(result)


def _targets(listed: TargetList) -> None:
    table(
        ("target", "builds", "runs", "recipes, the first within budget wins"),
        [(each.name, each.builds, each.runs, _few(each.recipes)) for each in listed.targets],
    )
    missing = [f"{each.name}: {each.why}" for each in listed.targets if each.why]
    if missing:
        print("\n" + "\n".join(missing))


def _few(recipes: Sequence[str]) -> str:
    more = f" and {len(recipes) - _MAX_RECIPES} more" if len(recipes) > _MAX_RECIPES else ""
    return f"{', '.join(recipes[:_MAX_RECIPES])}{more}"


def _measured(report: ExportReport) -> None:
    reference = report.reference
    float_row = (
        "float (ONNX)",
        None,
        reference.value,
        None,
        None,
        kilobytes(reference.size_bytes),
        None,
        reference.latency.p50_ms,
        None,
        "reference",
    )
    headings = ("target", "recipe", reference.metric, "agreement", "output error")
    costs = ("model kB", "smaller", "p50 ms", "faster", "bundle")
    table(
        (*headings, *costs),
        [float_row, *map(_row, report.targets)],
        title=f"{report.model}  sha256:{report.digest[:12]}",
    )
    remarks = [line for each in report.targets for line in _remarks(each)]
    if remarks:
        print()
    for line in remarks:
        print(line)
    if report.page:
        print(f"report: {near(report.page)}")


def _row(each: TargetResult) -> tuple[Any, ...]:
    """Give a target's line; what is smaller and faster than float32 in the same engine is above 1x."""
    figures = each.figures
    compared = figures.comparison if figures else None
    return (
        each.target,
        each.recipe,
        compared.value if compared else None,
        compared.agreement if compared else None,
        compared.output_error if compared else None,
        kilobytes(figures.model_bytes) if figures else None,
        _factor(figures.float_bytes, figures.model_bytes) if figures else None,
        figures.latency.p50_ms if figures and figures.latency else None,
        _factor(figures.slowdown and 1.0, figures.slowdown) if figures else None,
        _written(each),
    )


def _written(each: TargetResult) -> str:
    if each.bundle is None or each.figures is None:
        return "NOT WRITTEN"
    return f"{near(each.bundle)}, {kilobytes(each.figures.size_bytes)} kB"


def _factor(before: float | None, after: float | None) -> str | None:
    return f"{before / after:.2f}x" if before and after else None


def _remarks(each: TargetResult) -> Iterator[str]:
    """Say what a target's line leaves out: why it failed, its note, every recipe tried and the worst layers.

    Nothing where the first recipe passed and there is no note.
    """
    if each.passed and not each.note and len(each.ladder) < 2 and not each.layers:
        return
    known = [rung.reason for rung in each.ladder]
    said = "; ".join(text for text in (each.reason, each.note) if text and text not in known)
    title = f"{each.target}{'' if each.passed else ' was not written'}"
    yield f"{title}: {said}" if said else f"{title}; recipes tried:"
    for rung in each.ladder:
        yield f"  {rung.recipe.name}: {_rung(rung)}"
    if each.layers:
        yield "  layers that add most error, in standard deviations of the float layer:"
        yield from (f"    {line}" for line in _layers(each.layers))


def _rung(rung: Rung) -> str:
    """Give a recipe's figures, those that were measured, and what became of it."""
    parts = []
    if rung.figures is not None:
        figures, compared = rung.figures, rung.figures.comparison
        parts.append(f"{compared.metric} {compared.value:.4f}")
        if compared.agreement is not None:
            parts.append(f"agreement {compared.agreement:.4f}")
        parts += [f"output error {compared.output_error:.4f}", f"{kilobytes(figures.model_bytes):,} kB"]
        if figures.latency is not None:
            parts.append(f"p50 {figures.latency.p50_ms:.4f} ms, p95 {figures.latency.p95_ms:.4f} ms")
        if figures.memory_mb is not None:
            parts.append(f"{figures.memory_mb:,.1f} MB of memory")
        if figures.load_s is not None:
            parts.append(f"loaded in {figures.load_s:.3f} s")
    ends = [rung.reason or "passed"] if not rung.is_only_slower else [f"{rung.reason}, otherwise passed"]
    if rung.kept:
        ends.append(f"in float: {', '.join(rung.kept[:_MAX_KEPT])}")
        if len(rung.kept) > _MAX_KEPT:
            ends[-1] += f" and {len(rung.kept) - _MAX_KEPT} more"
    return ": ".join(part for part in (", ".join(parts), "; ".join(ends)) if part)


def _layers(layers: Sequence[Layer]) -> Iterator[str]:
    worst = sorted(layers, key=lambda layer: -layer.added)[:_MAX_LAYERS]
    for layer in worst:
        kind = "" if layer.name.startswith(layer.kind) else f" ({layer.kind})"
        yield f"{layer.name}{kind}: adds {layer.added:.4f} to {layer.error:.4f} in all"
