"""Whether a compression pays, by rules that are stated here and nowhere else.

A network must keep the task's leading metric. To lose up to 0.01 (1 % of it, for metrics of which less
is better) counts as keeping it, and so does a difference that is within the noise of the held-out
rows: half the width of a paired 95 % bootstrap interval. The fewer the rows, the wider that noise, so on
fewer rows than the gates ask for, min_rows, it cannot be told and does not pay. Beyond that:

    prune, distill  make the model file or the operations at least 10 % smaller
    quantize        answers better in INT8 than the parent does, by more than the noise; or its INT8
                    answers lie at least 25 % nearer to the float ones, and are no worse

It sees figures only.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.compression.measure import Comparison, Shift
from kit.metrics import LOSSES

ALLOWED_LOSS = 0.01
MIN_SAVED = 0.10
MIN_NEARER = 0.25


@dataclass(frozen=True)
class Verdict:
    """Whether a compression pays, and why.

    Attributes:
        pays: By the rules of this module.
        reason: One sentence with the figures that decided.
    """

    pays: bool
    reason: str


def verdict(method: str, compared: Comparison, *, min_rows: int) -> Verdict:
    """Decide whether a compression pays; see the module.

    Args:
        method: ``prune``, ``distill`` or ``quantize``.
        compared: Parent and result on the same rows.
        min_rows: Fewest held-out rows on which anything is decided, as for the gates.
    """
    if compared.n_rows < min_rows:
        return Verdict(
            False,
            f"too few rows to tell: {_moved(compared.answers)} on {compared.n_rows:,} held-out rows, fewer "
            f"than min_rows = {min_rows:,} under [gates]; hold out more rows, or lower it",
        )
    if not _kept(compared.answers):
        return Verdict(False, _lost(compared.answers, compared.n_rows, where=""))
    return _nearer(compared) if method == "quantize" else _smaller(compared)


def _smaller(compared: Comparison) -> Verdict:
    before, after = compared.before, compared.after
    size = 1 - after.size_bytes / before.size_bytes
    operations = 1 - after.operations / before.operations if before.operations else 0.0
    saved = f"the file is {_share(size, 'smaller', 'larger')} and the network does {_fewer(operations)}"
    # rounded, so that 900 of 1000 is a tenth less in binary as well
    if round(max(size, operations), 9) < MIN_SAVED:
        return Verdict(False, f"{saved}; one of them has to shrink by {MIN_SAVED:.0%}")
    return Verdict(True, f"{saved}; {_moved(compared.answers)}")


def _nearer(compared: Comparison) -> Verdict:
    int8 = compared.int8
    if not _kept(int8):
        return Verdict(False, _lost(int8, compared.n_rows, where=" in INT8"))
    if int8.worse < 0 and -int8.worse > int8.noise:
        return Verdict(True, f"in INT8, {_moved(int8)}")
    before, after = compared.before.int8_error, compared.after.int8_error
    nearer = 1 - after / before if before else 0.0
    said = f"INT8 answers lie {_share(nearer, 'nearer to', 'farther from')} the float ones"
    if round(nearer, 9) >= MIN_NEARER:
        return Verdict(True, f"{said}; in INT8, {_moved(int8)}")
    return Verdict(
        False,
        f"a plain INT8 conversion was as good: in INT8, {_moved(int8)}, and {said}, where {MIN_NEARER:.0%} "
        "nearer is asked",
    )


def _kept(shift: Shift) -> bool:
    return shift.worse <= max(_allowed(shift), shift.noise)


def _allowed(shift: Shift) -> float:
    return ALLOWED_LOSS * abs(shift.before) if shift.metric in LOSSES else ALLOWED_LOSS


def _lost(shift: Shift, n_rows: int, *, where: str) -> str:
    return (
        f"{shift.metric}{where} goes from {shift.before:.4f} to {shift.after:.4f}, worse by more than the "
        f"{_allowed(shift):.4g} allowed and the {shift.noise:.4f} that is noise on {n_rows:,} held-out rows"
    )


def _moved(shift: Shift) -> str:
    return f"{shift.metric} was {shift.before:.4f} and is {shift.after:.4f}"


def _share(part: float, less: str, more: str) -> str:
    return f"{part:.0%} {less}" if part >= 0 else f"{-part:.0%} {more}"


def _fewer(part: float) -> str:
    return f"{_share(part, 'fewer', 'more')} operations"
