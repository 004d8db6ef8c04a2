"""The end of a batch run: every row accounted for, not too many refused, and a manifest that says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from jobs.batch.ledger import Commit
from jobs.batch.places import Place
from jobs.batch.plan import Plan
from kit.errors import GateError, VerificationError


@dataclass(frozen=True)
class Counts:
    """Rows of a run.

    Attributes:
        rows_in: Read.
        rows_out: Answered.
        rows_refused: Set aside.
    """

    rows_in: int
    rows_out: int
    rows_refused: int


def count(plan: Plan, commits: Sequence[Commit], place: Place) -> Counts:
    """Add the rows up, in every way they are known.

    Raises:
        GateError: A shard is missing, or the rows do not add up.
        VerificationError: A file is not there, or not as large as it was committed.
    """
    done = {each.shard: each for each in commits}
    for shard in plan.shards:
        if shard.name not in done:
            raise GateError(f"{shard.name} was never done", hint="run the same command again")
        each = done[shard.name]
        if each.rows_out + each.rows_refused != each.rows_in or shard.n_rows not in (None, each.rows_in):
            raise _do_not_fit(f"{shard.name} ({shard.place})", each, shard.n_rows)
        if sum(file.rows for file in each.files) != each.rows_out:
            raise _do_not_fit(f"{shard.name} ({shard.place})", each, shard.n_rows)
        if (each.quarantine.rows if each.quarantine else 0) != each.rows_refused:
            raise _do_not_fit(f"{shard.name} ({shard.place})", each, shard.n_rows)
    for name, why in damaged_shards(commits, place).items():
        raise VerificationError(
            f"{why} ({name}); no manifest was written",
            hint="run the same command again: it makes the shard anew",
        )
    return Counts(
        sum(each.rows_in for each in commits),
        sum(each.rows_out for each in commits),
        sum(each.rows_refused for each in commits),
    )


def damaged_shards(commits: Sequence[Commit], place: Place) -> dict[str, str]:
    """Find shards whose files are gone or not as large as they were committed, and say what is wrong."""
    sizes = {entry.name: entry.size_bytes for entry in place.entries()}
    damaged: dict[str, str] = {}
    for each in commits:
        for file in (*each.files, *filter(None, [each.quarantine])):
            if sizes.get(file.name) != file.size_bytes:
                now = f"has {sizes[file.name]:,}" if file.name in sizes else "is gone"
                damaged[each.shard] = f"{file.name} was committed with {file.size_bytes:,} bytes, and {now}"
    return damaged


def _do_not_fit(what: str, commit: Commit, planned: int | None) -> GateError:
    said = f", and {planned} were planned" if planned not in (None, commit.rows_in) else ""
    return GateError(
        f"the rows of {what} do not add up: {commit.rows_in} in, {commit.rows_out} out, "
        f"{commit.rows_refused} refused{said}; no manifest was written",
        hint="report it, with the run's plan and commit records",
    )


class Allowance:
    """How many rows may be refused.

    Args:
        allowed: A count (``100``) or a share (``0.5%``).
        n_rows: Rows of the input; None where they are not known yet.
    """

    def __init__(self, allowed: int | str, *, n_rows: int | None) -> None:
        self.said = allowed
        text = str(allowed)
        self._n_rows = n_rows
        self._most: int | None = None
        if not text.endswith("%"):
            self._most = int(text)
        elif n_rows is not None:
            self._most = int(Fraction(text[:-1]) * n_rows / 100)  # of floats, 29% of 100 is 28.99

    def require(self, commits: Iterable[Commit], *, finished: bool) -> None:
        """Refuse to go on, or to close the run, when too many rows were refused.

        Raises:
            GateError: Too many were; the message names the commonest reason.
        """
        refused = [each for each in commits if each.rows_refused]
        n_refused = sum(each.rows_refused for each in refused)
        if self._most is None or n_refused <= self._most:
            return
        reasons: dict[str, int] = {}
        for each in refused:
            for reason, number in each.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + number
        commonest = max(reasons, key=lambda reason: reasons[reason])
        of = f" of {self._n_rows:,}" if self._n_rows is not None else ""
        where = refused[0].quarantine.name if refused[0].quarantine else "the quarantine"
        raise GateError(
            f"{n_refused:,} rows{of} were refused{'' if finished else ' so far'}, and max_bad_rows = "
            f"{self.said} allows {self._most:,}; the commonest reason: {commonest}",
            hint=f"look at them in {where}; correct the table, or run the same command with a larger "
            "--max-bad-rows: it resumes",
        )


def manifest_of(plan: Plan, commits: Sequence[Commit], counts: Counts) -> dict[str, Any]:
    """Give the content of a run's manifest: what it was, its rows, every file with its digest."""
    return {
        "run_id": plan.run_id,
        "model": plan.model,
        "digest": plan.digest,
        "input": plan.reading.uri,
        "fingerprint": plan.fingerprint,
        "settings": dict(plan.settings),
        **asdict(counts),
        "n_shards": len(plan.shards),
        "parts": [asdict(file) for each in commits for file in each.files],
        "quarantine": [asdict(each.quarantine) for each in commits if each.quarantine],
    }
