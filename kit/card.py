"""The model card: what a version is for, what it was made of, and what was measured, on one page.

Written twice, as Markdown and as HTML, from the same facts: those ``kit evaluate`` measured and those the
signed manifest holds. It states nothing else; what was not measured is called so. Knows no model and no
data.

Source: Mitchell et al., "Model Cards for Model Reporting" (2019); its headings stand where there are facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import MissingDependencyError, install_line
from kit.files import write_atomic
from kit.gates import GateResult
from kit.metrics import LOSSES
from kit.report.formats import FILTERS
from kit.signature import Signature
from kit.tensors import TensorSpec

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIXES = (".md", ".html")
#: A class with fewer measured rows than this is named among the limits.
_FEW_ROWS = 30
_MAX_SHOWN = 20
#: What a bootstrap draws, by ``kit.bootstrap.Draw``'s kind, in words.
_DRAWN = {
    "rows": "the rows",
    "groups": "whole groups of rows",
    "blocks": "blocks of rows that follow each other in time",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~&$!])")


def write_card(
    facts: Mapping[str, Any], *, manifest: Mapping[str, Any], signature: Signature, path: Path
) -> list[Path]:
    """Write the card as Markdown and as HTML.

    Args:
        facts: What was measured, as the record of ``kit evaluate`` holds it.
        manifest: The version's, which its signature covers.
        signature: The version's inputs and outputs.
        path: The name both files share; ``.md`` or ``.html`` at its end is left aside.

    Returns:
        The two files.

    Raises:
        MissingDependencyError: Jinja is not installed.
        UnavailableError: The disk is full or a file cannot be written.
    """
    stem = path.with_suffix("") if path.suffix in _SUFFIXES else path
    context = {
        "facts": facts,
        "lineage": manifest.get("lineage", {}),
        "parity": manifest.get("parity", {}),
        "inputs": [_described(spec) for spec in signature.inputs],
        "gates": [_gate(gate) for gate in facts["gates"]],
        "limits": limits(facts),
        "drawn": _DRAWN[facts["intervals"].get("drawn", "rows")],
        "losses": LOSSES,
        "most": _MAX_SHOWN,
    }
    written = []
    for suffix in _SUFFIXES:
        page = _environment(html=suffix == ".html").get_template(f"card{suffix}.j2").render(context)
        written.append(stem.with_name(stem.name + suffix))
        write_atomic(written[-1], page.encode("utf-8", errors="replace"))
    return written


def limits(facts: Mapping[str, Any]) -> list[str]:
    """Say what the measurements themselves warn of.

    Args:
        facts: As for ``write_card``.

    Returns:
        Sentences, each with the figure it rests on.
    """
    metric, bounds = facts["metric"], facts["intervals"]["bounds"]
    measured_on = f"{facts['n_rows']:,} {facts['data']['source']}"
    if facts["cross_validation"]:
        said = [
            f"All figures but those of the folds are of {measured_on}; each fold's are of its own share of "
            "all rows, held-out ones included. Nothing else was measured."
        ]
    else:
        said = [f"All figures are of {measured_on}; nothing else was measured."]
    said += [f"{note[0].upper()}{note[1:]}." for note in facts["notes"]]
    if metric in bounds:
        low, high = bounds[metric]
        said.append(
            f"On other rows of the same kind {metric} may lie anywhere from {low:.4f} to {high:.4f} "
            f"({facts['intervals']['confidence']:.0%} bootstrap interval)."
        )
    said += [f"{name} is {reason}." for name, reason in facts["undefined"].items()]
    few = {name: each["support"] for name, each in facts["by_class"].items() if each["support"] < _FEW_ROWS}
    if few:
        listed = ", ".join(f"{name} ({support})" for name, support in list(few.items())[:_MAX_SHOWN])
        said.append(f"Classes with fewer than {_FEW_ROWS} measured rows, whose figures are rough: {listed}.")
    if "calibration_error" in facts["metrics"]:
        error = facts["metrics"]["calibration_error"]
        said.append(f"Its confidence differs from the share of right answers by {error:.4f} on average.")
    said += _worse_slices(facts)
    failed = [gate["metric"] for gate in facts["gates"] if not gate["passed"]]
    if failed:
        said.append(f"It does not pass these gates: {', '.join(failed)}.")
    return said


def _worse_slices(facts: Mapping[str, Any]) -> list[str]:
    if not facts["slices"]:
        return [
            "Whether it is worse for some kinds of rows was not measured: no column was named to slice by."
        ]
    worse = [each for each in facts["slices"] if each["worse_by"] is not None and not each["small"]]
    worse = [each for each in worse if each["worse_by"] > 0][:3]
    return [
        f"Where {each['column']} is {each['value']} ({each['n_rows']:,} rows), {each['metric']} is "
        f"{each['score']:.4f}, {each['worse_by']:.4f} worse than on all rows."
        for each in worse
    ]


def _described(spec: TensorSpec) -> dict[str, Any]:
    bounds = [f"from {spec.minimum:g}" if spec.minimum is not None else ""]
    bounds.append(f"to {spec.maximum:g}" if spec.maximum is not None else "")
    return {
        "name": spec.name,
        "dtype": spec.dtype,
        "shape": "x".join(str(size) for size in spec.row_shape) or "1",
        "columns": ", ".join(spec.columns[:_MAX_SHOWN])
        + (f" and {len(spec.columns) - _MAX_SHOWN} more" if len(spec.columns) > _MAX_SHOWN else ""),
        "allowed": " ".join(each for each in (*bounds, "or missing" if spec.nullable else "") if each)
        or "any",
    }


def _gate(facts: Mapping[str, Any]) -> dict[str, Any]:
    gate = GateResult(**facts)
    return {**asdict(gate), "said": gate.describe()}


def _environment(*, html: bool) -> jinja2.Environment:
    """Make the template engine, which escapes every value for the language of the page."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "the model card needs jinja2, which is not installed", hint=install_line("cluster")
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_TEMPLATES / "card", _TEMPLATES / "report"]),
        autoescape=html,
        finalize=None if html else _markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.filters["flat"] = _flat
    return environment


def _markdown(value: Any) -> Any:
    """Escape what Markdown would read as markup; a value never begins a line or leaves its table cell."""
    if not isinstance(value, str):
        return value
    return _MARKDOWN.sub(r"\\\1", " ".join(value.split()))


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Lay nested settings out as lines of a dotted name and a value, without those that say nothing."""
    if isinstance(value, Mapping):
        return [
            line
            for key, inner in value.items()
            for line in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, (list, tuple)) and any(isinstance(each, (Mapping, list)) for each in value):
        return [line for index, inner in enumerate(value, 1) for line in _flat(inner, f"{prefix}.{index}")]
    if value in (None, "", [], ()):
        return []
    shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return [(prefix, shown)]
