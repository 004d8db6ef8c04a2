"""How what makes a version is shown: init, doctor, keys, train, models and their like."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kit.cli.show.tables import near, table, when

if TYPE_CHECKING:
    from jobs.candidate import Candidate
    from jobs.compress import CompressResult
    from jobs.evaluate import EvaluateResult
    from jobs.prepare import PrepareResult
    from jobs.train import TrainResult
    from jobs.tune import TuneResult
    from kit.cleaning import Change
    from kit.doctor import DoctorResult
    from kit.gates import GateResult
    from kit.init import InitResult
    from kit.keys import KeysResult, KeyStanding
    from kit.models import ModelsResult


_TRIALS = 20  # shown; the report has them all


def init(result: InitResult) -> None:
    """Show a new project."""
    print(f"wrote {near(result.folder)}")
    for name in result.files:
        print(f"  {name}")
    print(f"next: cd {result.folder.name} && kit keys init && kit train --promote")


def doctor(result: DoctorResult) -> None:
    """Show what this machine has."""
    table(
        ("", "found", "detail", "needed for", "to install"),
        (
            (check.name, "yes" if check.found else "no", check.detail, check.needed_for, check.install or "")
            for check in result.checks
        ),
    )


def keys(result: KeysResult) -> None:
    """Show the key that signs, what has changed, and every key of the keyring."""
    print(f"{'made' if result.action == 'init' else 'key'} {result.key_id}")
    print(f"  private: {near(result.private)} (mode 0600; keep it out of version control)")
    print(f"  public:  {near(result.public)}")
    if result.kept is not None:
        print(f"  before:  {near(result.kept)}, key {str(result.subject)[:16]}; it goes on signing keyrings")
    if result.keyring is None:
        return
    if result.action == "revoke":
        print(f"revoked {result.subject}")
    print(f"keyring {result.counter}: {near(result.keyring)}")
    table(("key", "standing"), ((each.key_id[:16], _standing_of(each)) for each in result.keys))
    if result.action in ("rotate", "revoke"):
        print("devices hear of it with the next kit flash, or from the fleet's server")


def _standing_of(key: KeyStanding) -> str:
    until = "counts" if key.not_after_s is None else f"counts until {when(key.not_after_s * 10**9)} UTC"
    return f"{'signs, ' if key.signs else ''}{key.why_not or until}"


def train(result: TrainResult) -> None:
    """Show a candidate, its metrics and its gates."""
    parity = result.candidate.parity
    candidate(result.candidate)
    epochs = f"epochs: {len(result.epochs)} (best: {result.best_epoch}); " if result.epochs else ""
    print(
        f"{epochs}ONNX differs from Python by at most "
        f"{parity.max_relative_difference:.1e} over {parity.n_rows:,} rows"
    )
    standing(result.candidate)


def tune(result: TuneResult) -> None:
    """Show the trials, the best first, what failed, and the candidate the best one became."""
    sign = 1 if result.mode == "min" else -1
    ranked = sorted(
        result.trials, key=lambda each: (each.value is None, sign * (each.value or 0.0), each.number)
    )
    names = list(result.best.parameters)
    table(
        ("trial", "status", result.metric, "epochs", "best", "seconds", *names),
        (
            (
                each.number,
                each.status,
                each.value,
                len(each.epochs),
                each.best_epoch,
                round(each.seconds, 1),
                *(_figure(each.parameters[name]) for name in names),
            )
            for each in ranked[:_TRIALS]
        ),
        title=f"study {result.study}: {len(result.trials)} trials in {result.seconds:.1f} s",
    )
    if len(ranked) > _TRIALS:
        print(f"  and {len(ranked) - _TRIALS} more in the report")
    for each in result.trials:
        if each.status == "failed":
            print(f"trial {each.number} failed: {each.reason}")
    if result.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importance.items())
        print(f"what moved {result.metric}: {shares}")
    candidate(result.candidate)
    standing(result.candidate)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def candidate(made: Candidate) -> None:
    """Show a candidate's metrics beside its gates."""
    version = made.version
    bounds = {gate.metric: gate for gate in made.gates if gate.kind == "floor"}
    table(
        ("metric", "held out", "gate", "passed"),
        (
            (name, value, bounds[name].bound if name in bounds else None, _passed(bounds.get(name)))
            for name, value in made.metrics.items()
        ),
        title=f"{version.model}@{version.number}  sha256:{version.digest[:12]}",
    )
    _losses(made.gates)


def evaluate(result: EvaluateResult) -> None:
    """Show a version's metrics, slices, columns and gates, and where they were written."""
    facts = result.facts
    beside = facts["champion"]
    compared = [f"{beside['model']}@{beside['number']}"] if beside else []
    floors = {gate.metric: gate for gate in result.gates if gate.kind == "floor"}
    bounds = facts["intervals"]["bounds"]
    table(
        ("metric", "value", "low", "high", *compared, "gate", "passed"),
        (
            (
                name,
                value,
                *bounds.get(name, (None, None)),
                *([beside["metrics"].get(name)] if beside else []),
                floors[name].bound if name in floors else None,
                _passed(floors.get(name)),
            )
            for name, value in facts["metrics"].items()
        ),
        title=f"{result.model}  sha256:{facts['digest'][:12]}  {facts['n_rows']:,} {facts['data']['source']}",
    )
    for name, reason in facts["undefined"].items():
        print(f"{name}: {reason}")
    for note in facts["notes"]:
        print(f"note: {note}")
    _losses(result.gates)
    if facts["slices"]:
        table(
            ("slice", "value", "rows", facts["metric"], "worse by", ""),
            (
                (
                    each["column"],
                    each["value"],
                    each["n_rows"],
                    each["score"],
                    each["worse_by"],
                    "few rows" if each["small"] else "",
                )
                for each in facts["slices"][:_MOST]
            ),
        )
    _explanations(facts)
    _curves(facts)
    for path in result.written:
        print(f"wrote {near(path)}")


_MOST = 10


def _explanations(facts: dict[str, Any]) -> None:
    shap = {each["column"]: each["mean_abs"] for each in facts["shap"]}
    headings = ("column", f"loss of {facts['explained']['metric']} when shuffled", "std")
    table(
        (*headings, "SHAP") if shap else headings,
        (
            (each["column"], each["mean"], each["std"], *([shap.get(each["column"])] if shap else []))
            for each in facts["importance"][:_MOST]
        ),
    )
    if len(facts["importance"]) > _MOST:
        print(f"and {len(facts['importance']) - _MOST:,} more columns in the report")


def _curves(facts: dict[str, Any]) -> None:
    folds, varied = facts["cross_validation"], facts["validation_curve"]
    if folds is not None:
        table(
            ("metric", "mean", "std"),
            ((name, value, folds["std"].get(name)) for name, value in folds["mean"].items()),
            title=f"{folds['kind']}, {len(folds['folds'])} folds",
        )
    if facts["learning_curve"]:
        rows = [(each["n_rows"], each["train"], each["validation"]) for each in facts["learning_curve"]]
        table(("rows", "train", "validation"), rows)
    if varied is not None:
        rows = [(each["value"], each["train"], each["validation"]) for each in varied["values"]]
        table((varied["name"], "train", "validation"), rows)


def _losses(gates: Sequence[GateResult]) -> None:
    """Show what was held against the champion, and every gate that could not be decided."""
    rows = [gate for gate in gates if gate.kind == "max_loss" or gate.reason]
    if rows:
        table(
            ("gate", "passed", "found"),
            ((f"{gate.kind} {gate.metric}", _passed(gate), _found(gate)) for gate in rows),
        )


def _found(gate: GateResult) -> str:
    said = gate.describe()
    return said if not gate.reason or gate.reason in said else f"{said} ({gate.reason})"


def standing(made: Candidate) -> None:
    """Say which alias a candidate has, and how it gets the next."""
    version = made.version
    if made.promoted:
        print(f"{version.model}@{version.number} is champion")
    else:
        anyway = "" if all(gate.passed for gate in made.gates) else " --no-gates"
        print(
            f"{version.model}@{version.number} is candidate; "
            f"kit models promote {version.model}@candidate{anyway}"
        )


def _passed(gate: Any) -> str:
    return "" if gate is None else "yes" if gate.passed else "NO"


def models(result: ModelsResult) -> None:
    """Show versions, a manifest or the log."""
    if result.action == "log":
        table(
            ("#", "when (UTC)", "what", "model", "details"),
            (
                (
                    event.seq,
                    when(event.at_ns),
                    event.kind,
                    event.subject,
                    ", ".join(
                        f"{key} {_short(event.body[key])}"
                        for key in ("number", "alias", "digest", "previous")
                        if event.body.get(key) is not None
                    ),
                )
                for event in result.events
            ),
        )
        return
    if result.action == "list" and not result.versions:
        print("no models yet; kit train makes one")
        return
    table(
        ("model", "version", "aliases", "digest", "registered (UTC)", "metrics"),
        (
            (
                record.model,
                record.number,
                ", ".join(record.aliases),
                record.digest[:12],
                when(record.registered_ns),
                ", ".join(
                    f"{name} {value:.4f}"
                    for name, value in list(record.summary.get("metrics", {}).items())[:3]
                ),
            )
            for record in result.versions
        ),
    )
    if result.manifest:
        print(json.dumps(result.manifest, indent=2, ensure_ascii=False))
    if result.checked:
        print(f"verified: {', '.join(result.checked)}")


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def compress(result: CompressResult) -> None:
    """Show what a version cost and was worth before and after, and whether that pays."""
    version = result.candidate.version
    before, after = result.before, result.after
    leading = next(iter(before.metrics))
    rows: list[tuple[str, float, float]] = [
        ("size, kB", before.size_bytes / 1e3, after.size_bytes / 1e3),
        ("operations a row", before.operations, after.operations),
        ("parameters", before.parameters, after.parameters),
        *(
            (name, value, after.metrics[name])
            for name, value in before.metrics.items()
            if name in after.metrics
        ),
        ("one row, ms", before.latency_ms, after.latency_ms),
        (f"{before.batch_rows:,} rows, ms", before.batch_latency_ms, after.batch_latency_ms),
        (f"{leading} in INT8", before.int8_metric, after.int8_metric),
        ("INT8 error, sd", before.int8_error, after.int8_error),
    ]
    table(
        (f"{result.parent}, {result.method}", "before", "after", "change"),
        ((name, was, is_now, f"{is_now / was - 1:+.1%}" if was else "") for name, was, is_now in rows),
        title=f"{version.model}@{version.number}  sha256:{version.digest[:12]}",
    )
    for gate in result.candidate.gates:
        print(f"gate {gate.metric}: {'passed' if gate.passed else 'NOT PASSED'}")
    print(f"{'it pays' if result.pays else 'it does not pay'}: {result.reason}")
    standing(result.candidate)


def prepare(result: PrepareResult) -> None:
    """Show the parts, what each step changed, what crosses between parts, and the classes."""
    if result.report is None:
        print(f"laid out {result.n_rows:,} rows of {near(result.path)} as the model reads them")
    else:
        print(
            f"{result.n_rows:,} rows of {near(result.path)}, {result.how} split; "
            f"the network reads {result.n_features:,} values of a row"
        )
        total = sum(result.rows.values())
        table(
            ("part", "rows", "share"),
            ((_PARTS[part], rows, f"{rows / total:.1%}") for part, rows in result.rows.items()),
        )
    if result.changes:
        _listed(
            ("step", "column", "rows before", "rows after", "values", "what it did"), _steps(result.changes)
        )
    for leak in result.leakage:
        print(f"leakage, {leak['check']}: {'FOUND: ' if leak['found'] else ''}{leak['detail']}")
    if result.classes:
        _listed(
            ("class", *_PARTS.values()),
            [(name, *(counts[part] for part in _PARTS)) for name, counts in result.classes.items()],
        )
    if result.output is not None:
        print(f"prepared rows: {near(result.output)}")
    if result.report is not None:
        print(f"data report: {near(result.report)}")


def _steps(changes: Sequence[Change]) -> list[tuple[Any, ...]]:
    """Lay out what each step did; one that was done to many columns takes one line."""
    rows: list[tuple[Any, ...]] = []
    for step, group in itertools.groupby(changes, key=lambda change: change.step):
        done = list(group)
        if len(done) <= _MAX_ALIKE:
            rows += [(step, did.column or "all", *_counts(did), did.detail) for did in done]
        else:
            first, last = done[0], done[-1]
            n_values = sum(did.n_values for did in done)
            what = "see the data report"
            rows.append((step, f"{len(done)} columns", first.rows_before, last.rows_after, n_values, what))
    return rows


def _counts(did: Change) -> tuple[int, int, int]:
    return did.rows_before, did.rows_after, did.n_values


_PARTS = {"train": "train", "validation": "validation", "test": "held out"}
_MAX_LISTED = 40
_MAX_ALIKE = 4


def _listed(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print the first rows of what may be a long table, and say how many more there are."""
    table(headings, rows[:_MAX_LISTED])
    if len(rows) > _MAX_LISTED:
        print(f"and {len(rows) - _MAX_LISTED:,} more")
