"""Fetch one file whose size and sha256 are known, and go on where the last try ended.

What has come lies beside its end's place under a hidden name, ``.<sha256>.part``, and gets its name from the
caller once size and digest hold. A source with ranges is asked for the rest, under the ETag the first part
came with; one without is fetched whole again. It never waits: when a connection breaks, the caller asks
again.
"""

from __future__ import annotations

import http.client
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge.agent.pulling.answers import require
from edge.agent.pulling.client import Client, Response, shown
from edge.agent.pulling.ledger import Ledger
from kit import files
from kit.errors import UnavailableError, VerificationError

_CHUNK_BYTES = 64 << 10
_LEFT = re.compile(r"\.[0-9a-f]{64}\.(part|tag|old|new)")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
# A source that keeps a connection with a byte now and then would hold the device forever.
_SLOWEST_BYTES, _SLOWEST_S = 6_000, 60.0


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: where it lies, how large it is, and the sha256 of its bytes."""

    url: str
    size_bytes: int
    sha256: str


def part_of(folder: Path, sha256: str) -> Path:
    """Say where what has come of a file lies."""
    return folder / f".{sha256}.part"


def n_fetched(folder: Path, sha256: str) -> int:
    """Say how many bytes of a file have come."""
    try:
        return part_of(folder, sha256).stat().st_size
    except OSError:
        return 0


def sweep(folder: Path, *, kept: tuple[str, ...] = ()) -> None:
    """Delete what was fetched of other files than those kept, named by their sha256."""
    for path in folder.glob(".*"):
        if _LEFT.fullmatch(path.name) and path.name[1:65] not in kept:
            path.unlink(missing_ok=True)


def download(
    client: Client, wanted: Wanted, *, folder: Path, headers: dict[str, str], ledger: Ledger
) -> Path:
    """Fetch a file, or the rest of it.

    Args:
        client: Carries the request.
        wanted: What to fetch.
        folder: Where to keep it.
        headers: What each request carries, a token say.
        ledger: How many bytes may be fetched, and who counts them.

    Returns:
        Its path, still hidden; size and digest hold.

    Raises:
        UnavailableError: The connection broke, the disk is full, or the budget is spent; the next try goes
        on. RefusedError, BarredError: The source refuses. VerificationError: What the source has is not what
        was asked for.
    """
    part = part_of(folder, wanted.sha256)
    with files.disk_errors(part):
        have = n_fetched(folder, wanted.sha256)
        if have > wanted.size_bytes:
            _discard(part)
            have = 0
        started_at = have
        if have < wanted.size_bytes:
            ledger.left()
            response = _ask(client, wanted, part=part, have=have, headers=headers)
            with response:
                started_at = _offset(response, wanted, part=part, have=have)
                with part.open("r+b" if started_at else "wb") as file:
                    file.seek(started_at)
                    _receive(response, file, wanted, have=started_at, ledger=ledger)
        if files.sha256_file(part) == wanted.sha256:
            part.with_suffix(".tag").unlink(missing_ok=True)
            return part
    _discard(part)
    sentence = f"{shown(wanted.url)} is not the file that was offered: its sha256 is another"
    if started_at:
        raise UnavailableError(f"{sentence}; it may have changed between two tries, so it is fetched anew")
    raise VerificationError(sentence, hint="publish the offer again, made from the file that lies there")


def _ask(client: Client, wanted: Wanted, *, part: Path, have: int, headers: dict[str, str]) -> Response:
    asked = {**headers, "Accept-Encoding": "identity"}
    if have:
        asked["Range"] = f"bytes={have}-"
        tag = _tag(part)
        if tag:
            asked["If-Range"] = tag
    response = client.request("GET", wanted.url, headers=asked)
    if response.status == 416 and have:
        response.close()
        _discard(part)
        raise UnavailableError(f"{shown(wanted.url)} has no byte {have}; it is fetched anew")
    return require(response, url=wanted.url, allowed=(200, 206) if have else (200,))


def _offset(response: Response, wanted: Wanted, *, part: Path, have: int) -> int:
    """Say where the answer's first byte belongs; refuse what cannot be the file."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise VerificationError(
            f"{shown(wanted.url)} is encoded as {response.headers['content-encoding'][:40]!r}"
        )
    told = response.headers.get("content-length", "")
    if response.status == 206:
        match = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match[1]) != have or match[3] not in ("*", str(wanted.size_bytes)):
            _discard(part)
            raise UnavailableError(
                f"{shown(wanted.url)} answers another range than was asked; it is fetched anew"
            )
        expected = wanted.size_bytes - have
    else:
        have, expected = 0, wanted.size_bytes
    if told.isdigit() and int(told) != expected:
        _discard(part)
        raise VerificationError(
            f"{shown(wanted.url)} has {int(told) + have} bytes where {wanted.size_bytes} were offered"
        )
    if not have:
        tag = response.headers.get("etag", "")
        _discard(part)
        if tag.startswith('"') and tag.isprintable():  # a weak one does not promise equal bytes
            files.write_atomic(part.with_suffix(".tag"), tag.encode("utf-8"), settled=False)
    return have


def _receive(response: Response, file: BinaryIO, wanted: Wanted, *, have: int, ledger: Ledger) -> None:
    """Write the body behind what is there; what has come stays there however this ends."""
    window_s, window_bytes = time.monotonic(), have
    try:
        while have < wanted.size_bytes:
            left = ledger.left()
            data, broke = _read(response, min(_CHUNK_BYTES, wanted.size_bytes - have, left or _CHUNK_BYTES))
            file.write(data)
            have += len(data)
            ledger.spend(len(data))
            if time.monotonic() - window_s > _SLOWEST_S:
                if have - window_bytes < _SLOWEST_BYTES:
                    broke = "was too slow and was left"
                window_s, window_bytes = time.monotonic(), have
            if broke:
                raise UnavailableError(
                    f"{shown(wanted.url)} {broke} after {have} of {wanted.size_bytes} bytes"
                )
    finally:
        file.flush()
        os.fsync(file.fileno())
        ledger.settle()


def _read(response: Response, n_bytes: int) -> tuple[bytes, str]:
    """Give what has come next, and how the connection ended, empty when it has not."""
    try:
        data = response.read_some(n_bytes)
    except (OSError, http.client.HTTPException) as error:
        return b"", f"broke off ({str(error) or type(error).__name__})"
    return data, "" if data else "broke off"


def _tag(part: Path) -> str | None:
    try:
        return part.with_suffix(".tag").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _discard(part: Path) -> None:
    for path in (part, part.with_suffix(".tag")):
        path.unlink(missing_ok=True)
