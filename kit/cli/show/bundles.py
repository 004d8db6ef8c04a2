"""How bundle files are shown: one, verified, or two beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kit.cli.show.tables import kilobytes, near, table

if TYPE_CHECKING:
    from edge.bundle import BundleFacts, BundleResult, Difference

_PASSED = {True: "holds", False: "DOES NOT HOLD", None: "not run"}
_MAX_CHARACTERS = 72
_MAX_CLASSES = 20


def bundle(result: BundleResult) -> None:
    """Show what a bundle is, what was checked, or what differs."""
    if result.action == "show":
        _show(result.bundles[0])
    elif result.action == "verify":
        print(_title(result.bundles[0]))
        rows = [(each.name, _PASSED[each.passed], each.detail) for each in result.checks]
        table(("checked", "", "found"), rows)
    else:
        _diff(result)


def _title(facts: BundleFacts) -> str:
    manifest = facts.manifest
    words = f"{near(facts.path)}: {manifest['name']} for {manifest['target']}, release {manifest['release']}"
    return f"{words}, {kilobytes(facts.n_bytes)} kB, sha256:{facts.digest[:12]}"


def _show(facts: BundleFacts) -> None:
    manifest = facts.manifest
    lines: list[tuple[str, Any]] = [
        ("model", f"sha256:{manifest['model_digest']}"),
        ("signed by key", facts.key_id),
        ("engine", f"{manifest['engine']}, {manifest.get('precision')}"),
        ("recipe", _recipe(manifest.get("recipe") or {})),
        ("kept in float", _words(manifest.get("kept_in_float", ()))),
        ("batch sizes", _words(manifest.get("batch_sizes", ()))),
        *((name, said) for name, said in _measured(manifest.get("metrics") or {})),
        ("budgets", _pairs(manifest.get("budgets"))),
        ("golden rows", _pairs(manifest["golden"])),
        ("calibrated on", _pairs(manifest.get("calibration"))),
        ("answers", _answers(manifest["postprocessing"], manifest.get("classes", ()))),
        *_needs(manifest.get("requirements", {})),
        ("made with", _words(f"{name} {said}" for name, said in manifest.get("toolchain", {}).items())),
    ]
    print(_title(facts))
    for name, said in lines:
        if said:
            print(f"  {name:14} {said}")
    tensors = manifest.get("tensors", {"inputs": (), "outputs": ()})
    rows = [
        (
            way,
            each["name"],
            each["dtype"],
            str(each["shape"]),
            _figure(each["scale"]),
            _figure(each["zero_point"]),
        )
        for way, listed in (("in", tensors["inputs"]), ("out", tensors["outputs"]))
        for each in listed
    ]
    print()
    table(("", "tensor", "type", "shape", "scale", "zero point"), rows)
    print()
    table(("file", "bytes", "sha256"), [(each.name, each.n_bytes, each.sha256) for each in facts.files])


def _recipe(recipe: Mapping[str, Any]) -> str:
    others = _pairs({name: value for name, value in recipe.items() if name != "name"})
    return f"{recipe['name']}: {others}" if recipe else ""


def _answers(task: str, classes: Sequence[Any]) -> str:
    if len(classes) > _MAX_CLASSES:
        return f"{task} of {len(classes)} classes"
    return f"{task} of {_words(classes)}" if classes else task


def _measured(metrics: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if not metrics:
        yield "measured", "not measured"
        return
    reference = _figure(metrics.get("reference"))
    yield str(metrics["metric"]), f"{_figure(metrics['value'])} (float: {reference})"
    for name in ("drop", "agreement", "output_error"):
        if metrics.get(name) is not None:
            yield name.replace("_", " "), _figure(metrics[name])
    yield "measured on", f"{metrics['n_rows']} held-out rows, fingerprint {metrics['fingerprint']}"


def _needs(requirements: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    packages = requirements.get("packages", {})
    yield "runs with", " or ".join(f"{name} {said}".rstrip() for name, said in packages.items())
    others = {name: said for name, said in requirements.items() if name not in ("packages", "engine")}
    yield (
        "needs",
        _pairs({name: _words(said) if isinstance(said, list) else said for name, said in others.items()}),
    )


def _diff(result: BundleResult) -> None:
    for facts in result.bundles:
        print(_title(facts))
    for of, what in (("bundle", "bundle"), ("metrics", "metric"), ("manifest", "manifest"), ("file", "file")):
        rows = [(each.name, *_change(each)) for each in result.differences if each.of == of]
        if rows:
            print()
            table((what, "first", "second"), rows)
    if not result.differences:
        print("they do not differ")


def _change(difference: Difference) -> tuple[str, str]:
    old = "-" if difference.change == "added" else _said(difference.old)
    return old, "-" if difference.change == "removed" else _said(difference.new)


def _said(value: Any) -> str:
    if hasattr(value, "sha256"):
        return f"{value.sha256[:12]}, {value.n_bytes:,} bytes"
    text = "null" if value is None else _figure(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 3]}..."


def _pairs(facts: Mapping[str, Any] | None) -> str:
    """Say facts in a line; those that say nothing are left out."""
    said = {name: value for name, value in (facts or {}).items() if value is not None and value is not False}
    return _words(f"{name} {_figure(value)}" for name, value in said.items())


def _words(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
