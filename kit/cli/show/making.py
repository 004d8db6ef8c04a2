"""How what makes a version is shown: init, doctor, keys, train, models and their like."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kit.cli.show.tables import near, table, when

if TYPE_CHECKING:
    from jobs.candidate import Candidate
    from jobs.train import TrainResult
    from kit.doctor import DoctorResult
    from kit.init import InitResult
    from kit.keys import KeysResult
    from kit.models import ModelsResult


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
    """Show the key that signs."""
    print(f"{'made' if result.created else 'key'} {result.key_id}")
    print(f"  private: {near(result.private)} (mode 0600; keep it out of version control)")
    print(f"  public:  {near(result.public)}")


def train(result: TrainResult) -> None:
    """Show a candidate, its metrics and its gates."""
    parity = result.candidate.parity
    candidate(result.candidate)
    print(
        f"epochs: {len(result.epochs)} (best: {result.best_epoch}); ONNX differs from Python by at most "
        f"{parity.max_relative_difference:.1e} over {parity.n_rows:,} rows"
    )
    standing(result.candidate)


def candidate(made: Candidate) -> None:
    """Show a candidate's metrics beside its gates."""
    version = made.version
    bounds = {gate.metric: gate for gate in made.gates}
    table(
        ("metric", "held out", "gate", "passed"),
        (
            (name, value, bounds[name].bound if name in bounds else None, _passed(bounds.get(name)))
            for name, value in made.metrics.items()
        ),
        title=f"{version.model}@{version.number}  sha256:{version.digest[:12]}",
    )


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
                    event.model,
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
                ", ".join(f"{name} {value:.4f}" for name, value in record.summary.get("metrics", {}).items()),
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
