"""How a bundle's figures on a machine, or on two, are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kit.cli.show.tables import near, table

if TYPE_CHECKING:
    from edge.bench import BenchResult
    from kit.gauge import Gauge


def bench(result: BenchResult) -> None:
    """Show what a bundle took here, and beside another machine."""
    here, other = result.gauge, result.other
    print(
        f"{near(result.bundle)}  {here.name} {here.target} release {here.release}  sha256:{here.digest[:12]}"
    )
    _machine("here", here)
    if other is not None:
        _machine("there", other)
    rows: list[tuple[Any, ...]] = [
        (each.name, _shown(each.here), *(() if other is None else (_shown(each.there), _times(each.ratio))))
        for each in result.figures
    ]
    table(("", "here") if other is None else ("", "here", "there", "here / there"), rows)
    print(f"{here.n_calls} calls of one row; rows/s in batches of {here.batch_rows}; power: {here.power}")
    print("golden rows: passed" if here.golden_passed else f"golden rows: NOT PASSED, {here.golden_reason}")
    if result.file is not None:
        print(f"wrote {near(result.file)}")


def _machine(name: str, gauge: Gauge) -> None:
    machine = gauge.machine
    cores = f"{machine.cores} core{'s' * (machine.cores != 1)}"
    threads = f"{gauge.threads} thread{'s' * (gauge.threads != 1)}"
    print(f"  {name}: {machine.cpu}, {machine.arch}, {cores}, {machine.os}, Python {machine.python}")
    print(f"  {' ' * len(name)}  {gauge.runtime} {gauge.runtime_version} on {gauge.device}, {threads}")


def _shown(figure: float | None) -> str:
    if figure is None:
        return "not measured"
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.4g}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
