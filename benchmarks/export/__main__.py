"""What `kit export` chose beside the defaults of ai-edge-quantizer, NNCF and onnxruntime's quantiser.

    python benchmarks/export [--models digits tabular mobilenet vit bert series] [--engines litert openvino]
    python benchmarks/export --time      seconds of `kit export` of the digits CNN for every CPU target

All quantise the same trained network and take ranges from the same rows; all files are run by the kit's own
engines on one thread, and those of an engine take turns, its float32 among them. The digits CNN and the
tabular MLP are the templates; MobileNetV2, ViT and BERT are of the transformers package, with random weights
that a few epochs on made-up rows have moved. The output error is the mean difference to the float network in
onnxruntime, on held-out rows, in standard deviations of its outputs. Projects are made once, in --folder,
which takes ten minutes; a run takes twenty.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from comparing import ENGINES, Compared, Shown, compare, facts_of
from ours import time_command
from peers import PEERS
from rounds import Ratio
from subjects import TITLES, make_subject

from kit.machine import this_machine

_FOLDER = Path(__file__).resolve().parents[2] / ".bench" / "export"
_WANTED_ERROR = 1.0
_WANTED_LATENCY = 1.05
_WANTED_S = 90
_PACKAGES = (
    *("ai-edge-quantizer", "ai-edge-litert", "litert-torch", "nncf", "openvino", "onnxruntime", "torch"),
    "transformers",
)


def main() -> None:
    """Measure what was asked for and print it."""
    given = _parser().parse_args()
    given.folder = given.folder.resolve()
    facts: dict[str, Any] = {"machine": this_machine().to_json(), "threads": 1}
    facts["versions"] = {name: metadata.version(name) for name in _PACKAGES}
    if given.time:
        output = given.folder / "timed"
        shutil.rmtree(output, ignore_errors=True)
        facts["time"] = time_command(make_subject("digits", given.folder / "projects"), folder=output)
        text = time_text(facts["time"])
    else:
        text = measure(given, facts)
    print(json.dumps(facts, indent=2) if given.json else text)


def measure(given: argparse.Namespace, facts: dict[str, Any]) -> str:
    """Compare every model asked for; what comes out is added to the facts, and given as tables."""
    facts["models"] = {}
    pairs: list[tuple[str, Compared]] = []
    parts = []
    for name in given.models:
        subject = make_subject(name, given.folder / "projects")
        shown, compared = compare(
            subject, given.engines, folder=given.folder / "files" / name, seconds=given.seconds
        )
        n_rows = len(subject.held_out)
        facts["models"][name] = {
            "n_rows": n_rows,
            "accuracy": subject.accuracy,
            **facts_of(shown, compared),
        }
        head = f"{TITLES[name]}: {n_rows} held-out rows, accuracy in float {subject.accuracy:.3f}"
        parts.append(f"{head}\n\n{files_table(shown)}")
        print(f"\n{parts[-1]}\n", file=sys.stderr, flush=True)
        pairs += [(TITLES[name], each) for each in compared]
    return "\n\n".join([*parts, ratios_table(pairs)])


def files_table(shown: list[Shown]) -> str:
    """Write what every file of one model showed."""
    lines = ["| engine | file | output error | same label | p50 ms | kB |", "|---|---|---|---|---|---|"]
    for each in sorted(shown, key=lambda one: ENGINES.index(one.engine)):
        cells = [each.engine, each.title]
        if each.reason:
            cells += [each.reason, "", "", ""]
        else:
            size = "" if each.n_bytes is None else f"{each.n_bytes / 1e3:.1f}"
            cells += [
                _number(each.output_error, 4),
                _number(each.agreement, 3),
                _number(each.p50_ms, 4),
                size,
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios_table(pairs: list[tuple[str, Compared]]) -> str:
    """Write ours by theirs, and what was wanted and missed; a latency with how sure it is."""
    lines = [
        f"| | ours | by the defaults of | error (wanted: at most {_WANTED_ERROR:g}) "
        f"| latency (wanted: at most {_WANTED_LATENCY:g}) | latency by float32 | times smaller | missed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, each in pairs:
        cells = [
            *(title, each.ours, PEERS[each.peer].title, _number(each.error, 2)),
            *(_sure(each.latency), _sure(each.latency_to_float)),
            _number(each.size_factor, 2),
            ", ".join(_missed(each)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _missed(each: Compared) -> list[str]:
    if each.error is None:
        return [each.reason]
    missed = ["error"] if each.error > _WANTED_ERROR else []
    return missed + (["latency"] if each.latency and each.latency.value > _WANTED_LATENCY else [])


def _sure(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.value:.2f} ± {ratio.margin:.2f}"


def time_text(facts: dict[str, Any]) -> str:
    """Say how long the command took."""
    said = "" if not facts["exit_code"] else f"; it ended with {facts['exit_code']}: {facts['said']}"
    return (
        f"exporting the digits CNN to all {facts['targets']} CPU targets takes {facts['wall_s']:.1f} s "
        f"(wanted: under {_WANTED_S}), {facts['bundles']} bundles were written{said}"
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each engine's are timed")
    parser.add_argument("--time", action="store_true", help="time the command instead")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where everything is kept")
    parser.add_argument("--json", action="store_true", help="print JSON, what was tried included")
    return parser


if __name__ == "__main__":
    main()
