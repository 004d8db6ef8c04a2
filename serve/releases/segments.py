"""Who holds which part of the line from 0 to ``UNITS``, and how little of it moves when shares change.

Pure arithmetic on whole numbers: no versions, no hashes, no files. An owner is any number that tells holders
apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

#: Length of the line: one unit is 0.001 %.
UNITS = 100_000


class Segment(NamedTuple):
    """One piece of the line: from ``start`` up to, not including, ``end``, in units."""

    start: int
    end: int
    owner: int


def lay_out(shares: Mapping[int, int]) -> tuple[Segment, ...]:
    """Give every owner one piece, in the order of the mapping.

    Args:
        shares: Owner to its units; they add up to ``UNITS``, none is negative.
    """
    segments, start = [], 0
    for owner, units in shares.items():
        if units:
            segments.append(Segment(start, start + units, owner))
            start += units
    return tuple(segments)


def share_out(segments: Sequence[Segment], shares: Mapping[int, int]) -> tuple[Segment, ...]:
    """Change the shares and move as little as that takes.

    Who grows or stays keeps every point it had; who shrinks gives up exactly what it loses. Pieces change
    hands where the two meet if they meet anywhere, so most changes move a boundary and cut nothing.

    Args:
        segments: Who holds what now: sorted, without gaps, the whole line.
        shares: Owner to its units afterwards; they add up to ``UNITS``. Who is not in it gives up everything.

    Returns:
        Who holds what afterwards; neighbours of one owner are one piece.
    """
    pieces = [list(each) for each in segments]
    change = dict(shares)
    for start, end, owner in segments:
        change[owner] = change.get(owner, 0) - (end - start)
    while any(change.values()):
        if not _move_a_boundary(pieces, change):
            _hand_over(pieces, change)
    return merge(Segment(*each) for each in pieces)


def merge(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Join neighbours of one owner and leave empty pieces out."""
    merged: list[Segment] = []
    for each in segments:
        if each.start == each.end:
            continue
        if merged and merged[-1].owner == each.owner:
            merged[-1] = merged[-1]._replace(end=each.end)
        else:
            merged.append(each)
    return tuple(merged)


def covers(segments: Sequence[Segment]) -> bool:
    """Say whether the pieces are sorted, not empty, without gaps, and the whole line."""
    ends = [0, *(each.end for each in segments)]
    starts = [*(each.start for each in segments), UNITS]
    return ends == starts and all(each.start < each.end for each in segments)


def shares_of(segments: Iterable[Segment]) -> dict[int, int]:
    """Add up what every owner holds, in units."""
    shares: dict[int, int] = {}
    for start, end, owner in segments:
        shares[owner] = shares.get(owner, 0) + end - start
    return shares


def _move_a_boundary(pieces: list[list[int]], change: dict[int, int]) -> bool:
    """Let a grower take from a shrinker beside it, the most it can; False when no two of them meet.

    A piece that is taken whole comes first, since that leaves fewer pieces.
    """
    best: tuple[bool, int, int, int] | None = None  # taken whole, units, index of the giver, of the taker
    for left in range(len(pieces) - 1):
        for giver, taker in ((left, left + 1), (left + 1, left)):
            length = pieces[giver][1] - pieces[giver][0]
            units = min(-change[pieces[giver][2]], change[pieces[taker][2]], length)
            if units > 0 and (best is None or (units == length, units) > best[:2]):
                best = (units == length, units, giver, taker)
    if best is None:
        return False
    _, units, giver, taker = best
    change[pieces[giver][2]] += units
    change[pieces[taker][2]] -= units
    if giver < taker:
        pieces[giver][1] -= units
        pieces[taker][0] -= units
    else:
        pieces[giver][0] += units
        pieces[taker][1] += units
    pieces[:] = [list(each) for each in merge(Segment(*each) for each in pieces)]
    return True


def _hand_over(pieces: list[list[int]], change: dict[int, int]) -> None:
    """Give the neediest grower, who meets no shrinker, a piece of one: whole if one fits, else an end."""
    taker = max(change, key=lambda owner: change[owner])
    need = change[taker]
    givers = [each for each in pieces if change[each[2]] < 0]
    whole = [each for each in givers if each[1] - each[0] <= min(need, -change[each[2]])]
    if whole:
        piece = max(whole, key=lambda each: each[1] - each[0])
        units = piece[1] - piece[0]
        change[piece[2]] += units
        piece[2] = taker
    else:
        piece = max(givers, key=lambda each: each[1] - each[0])
        units = min(need, -change[piece[2]])
        change[piece[2]] += units
        piece[1] -= units
        pieces.insert(pieces.index(piece) + 1, [piece[1], piece[1] + units, taker])
    change[taker] -= units
