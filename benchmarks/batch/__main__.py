"""Rows per second of `kit predict` beside a bare loop and beside others, taking turns over the same files.

    python benchmarks/batch [--rows 5000000] [--rounds 5] [--contestants bare kit daft dask spark ray]
    python benchmarks/batch --memory     peak memory of an actor over a file with a row group of 500 MB
    python benchmarks/batch --small      seconds of the whole command for a CSV of a thousand rows

50 Parquet files of 32 float32 columns, answered by an MLP that `kit train` has made (light: 64 and 64 wide),
two processes for everybody. What counts runs from the moment all workers have their model to the last part
written; the start is beside it. The kit hashes what it writes, checks every row and keeps a ledger; the
others do not. A heavy model (2048, 1536 and 512 wide) is run by the bare loop and the kit alone. The files
are read once before, so that nobody waits for a disk. Tables, versions and the peers' environment, which
benchmarks/batch/peers.txt describes, are made once, in --folder.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from environment import CONTESTANTS, obstacle
from kit_command import measure_memory, measure_small
from rounds import Course, summary
from subjects import make_csv, make_files, make_long_file, make_subject

_FOLDER = Path(__file__).resolve().parents[2] / ".bench"
_LONG_ROW_GROUP_BYTES = 500_000_000
_WANTED_HEAVY = 0.97


def main() -> None:
    """Measure what was asked for and print it."""
    given = _parser().parse_args()
    given.folder = given.folder.resolve()
    flags = shlex.split(given.kit_flags)
    output = given.folder / "out" / "kit"
    if given.memory:
        long_file = given.folder / "tables" / f"long-{given.file_gb:g}.parquet"
        size = int(given.file_gb * 1e9)
        make_long_file(long_file, size_bytes=size, longest_bytes=_LONG_ROW_GROUP_BYTES)
        facts = measure_memory(_subject("light", given), long_file, output, flags=flags)
    elif given.small:
        table = given.folder / "tables" / "thousand.csv"
        make_csv(table, n_rows=1000)
        facts = measure_small(_subject("light", given), table, output, flags=flags, rounds=given.rounds or 3)
    else:
        facts = measure(given, tuple(flags))
    if given.json:
        print(json.dumps(facts, indent=2))
    elif given.memory or given.small:
        print("\n".join(f"{name:10} {value}" for name, value in facts.items()))
    else:
        for name, each in facts.items():
            print(f"\n{name}: {each['rows']} rows\n{table_of(each, heavy=name == 'heavy')}")


def measure(given: argparse.Namespace, flags: tuple[str, ...]) -> dict[str, Any]:
    """Run the contestants that can run here over each model's files."""
    names = [name for name in CONTESTANTS if name in given.contestants]
    for name in list(names):
        if reason := obstacle(name):
            print(f"{CONTESTANTS[name].title} is left out: {reason}", file=sys.stderr)
            names.remove(name)
    facts = {}
    for model in given.models:
        n_rows, n_files = (given.rows, 50) if model == "light" else (given.heavy_rows, 4)
        n_rows -= n_rows % n_files
        table = given.folder / "tables" / f"{n_rows}-in-{n_files}"
        make_files(table, n_rows=n_rows, n_files=n_files)
        course = Course(_subject(model, given), table, n_rows, given.folder, flags)
        runs = names if model == "light" else [name for name in names if name in ("bare", "kit")]
        facts[model] = {
            "rows": n_rows,
            "contestants": summary(course.run(runs, rounds=given.rounds or 5), n_rows=n_rows),
        }
    return facts


def table_of(facts: dict[str, Any], *, heavy: bool) -> str:
    """Write the results of one model as a table."""
    lines = [
        "| | rows/s | share of bare | s | start s | whole command s | kit is times as fast | wanted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in facts["contestants"].items():
        wanted = _WANTED_HEAVY if heavy else CONTESTANTS[name].wanted
        cells = [
            each["title"],
            f"{each['rows_per_second']:,}",
            _number(each["share_of_bare"]),
            *(f"{each[key]:.2f}" for key in ("seconds", "start_s", "wall_s")),
            "" if name == "kit" else _number(each["kit_is_times_as_fast"]),
            "" if name == "kit" or wanted is None else f"{wanted:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _subject(name: str, given: argparse.Namespace) -> Any:
    return make_subject(name, given.folder / "projects")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--heavy-rows", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, help="5 unless given; 3 of --small")
    parser.add_argument("--models", nargs="+", choices=("light", "heavy"), default=["light", "heavy"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--file-gb", type=float, default=4.0, help="size of the file of --memory")
    parser.add_argument("--small", action="store_true", help="measure a thousand rows of CSV instead")
    parser.add_argument("--kit-flags", default="", help="further flags of kit predict, in one word")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where everything is kept")
    parser.add_argument("--json", action="store_true", help="print JSON, every turn included")
    return parser


if __name__ == "__main__":
    main()
