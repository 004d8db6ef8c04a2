"""Text files as blocks of whole lines: where such a file may be cut, and its bytes a block at a time.

A line ends with a line feed, a carriage return or both; lines without a character do not count, as in
pyarrow. What a line holds is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.errors import InputError

_SCAN_BYTES = 8 << 20
_MAX_LINE_BYTES = 256 << 20
_GAPS = (b"\n ", b"\n\t", b"\r ", b"\r\t")
_BLANK = re.compile(rb"(?:\A|(?<=[\r\n]))[ \t]+(?=[\r\n]|\Z)")


@dataclass(frozen=True)
class Cut:
    """A place where a line begins.

    Attributes:
        first: Its byte in the file.
        row: How many lines that hold something come before it.
    """

    first: int
    row: int


@dataclass(frozen=True)
class Block:
    """Whole lines.

    Attributes:
        data: Their bytes; the last line may lack its end.
        first: Where they begin in the file.
    """

    data: bytes
    first: int


def blocks(source: Any, *, first: int, stop: int, block_bytes: int) -> Iterator[Block]:
    """Read part of a file as blocks of whole lines.

    Args:
        source: An open file that can be sought in.
        first: Byte a line begins at.
        stop: Byte behind the last line.
        block_bytes: About how large a block is; a longer line makes a larger one.

    Raises:
        InputError: A line is longer than can be one row.
    """
    source.seek(first)
    at, rest = first, b""
    while at < stop or rest:
        read = source.read(min(block_bytes, stop - at)) if at < stop else b""
        begin, at = at - len(rest), at + len(read)
        data = rest + read
        if not read or at >= stop:
            if data:
                yield Block(data, begin)
            return
        end = _end_of_lines(data)
        if end:
            yield Block(data[:end], begin)
        rest = data[end:]
        if len(rest) > _MAX_LINE_BYTES:
            raise InputError(
                f"a line from byte {at - len(rest)} on has more than {_MAX_LINE_BYTES >> 20} MiB",
                hint="check that the file is text with one row a line",
            )


def _end_of_lines(data: bytes) -> int:
    end = data.rfind(b"\n") + 1
    # An old Mac's file has no line feed; a carriage return in last place may be half of an end.
    return end or data.rfind(b"\r", 0, len(data) - 1) + 1


def n_lines(data: bytes, *, spaces_count: bool) -> int:
    """Count the lines that hold something.

    Args:
        data: Whole lines.
        spaces_count: Whether a line of blanks alone is one; in CSV it is a cell, in JSON it is nothing.
    """
    if not data:
        return 0
    array = np.frombuffer(data, dtype=np.uint8)
    filled = (array != 10) & (array != 13)
    count = int(np.count_nonzero(filled[1:] & ~filled[:-1])) + int(filled[0])
    if not spaces_count and (data[:1] in b" \t" or any(gap in data for gap in _GAPS)):
        count -= sum(1 for _ in _BLANK.finditer(data))
    return count


def n_lines_from(data: bytes, *, mark: bytes) -> int | None:
    """Count the lines that hold something; None where one does not begin with a mark.

    Args:
        data: Whole lines.
        mark: One byte.
    """
    if not data:
        return 0
    array = np.frombuffer(data, dtype=np.uint8)
    filled = (array != 10) & (array != 13)
    filled[1:] &= (array[:-1] == 10) | (array[:-1] == 13)  # from here on: where lines begin
    count = int(np.count_nonzero(filled))
    return count if np.count_nonzero(array[filled] == mark[0]) == count else None


def split_lines(data: bytes, *, spaces_count: bool) -> list[bytes]:
    """Give the lines that hold something, without their ends."""
    lines = re.split(rb"[\r\n]+", data)
    return [line for line in lines if (line if spaces_count else line.strip(b" \t"))]


def cuts(
    source: Any, *, first: int, stop: int, every_bytes: int, spaces_count: bool, never: bytes = b""
) -> tuple[list[Cut], int] | None:
    """Find where a file may be cut, in one pass over it.

    Args:
        source: An open file that can be sought in.
        first: Byte of the first line that is a row.
        stop: Its size.
        every_bytes: About how far the cuts lie apart.
        spaces_count: Whether a line of blanks alone is a row.
        never: A byte that forbids to cut the file.

    Returns:
        The cuts, the first at ``first``, and the number of rows; None where ``never`` was found.
    """
    found = [Cut(first, 0)]
    row = 0
    for block in blocks(source, first=first, stop=stop, block_bytes=min(_SCAN_BYTES, every_bytes)):
        if never and never in block.data:
            return None
        behind = block.first + len(block.data)
        if block.first > found[-1].first and behind - found[-1].first > every_bytes:
            found.append(Cut(block.first, row))
        row += n_lines(block.data, spaces_count=spaces_count)
    return found, row
