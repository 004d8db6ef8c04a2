"""What a status means for whoever asked: an answer, a refusal for good, or a wait.

2xx, 304             an answer
401, 403             ``BarredError``: the enrolment is of no use until somebody acts
any other 4xx        ``RefusedError``: final for what was asked
429, 5xx             ``BusyError``: again, after what the source says or doubling waits
"""

from __future__ import annotations

import email.utils
import time

from edge.agent.pulling.client import Response, shown
from kit.errors import KitError, UnavailableError

MAX_WAIT_S = 86_400.0


class BarredError(KitError):
    """A source does not let this device in."""


class RefusedError(KitError):
    """A source refuses what was asked, and would refuse it again; ``status`` is its answer."""

    status: int = 0


class BusyError(UnavailableError):
    """A source wants to be asked later; ``retry_s`` is when, or None where it does not say."""

    retry_s: float | None = None


def require(response: Response, *, url: str, allowed: tuple[int, ...]) -> Response:
    """Give the answer back when its status is one of those allowed; it is closed otherwise.

    Raises:
        BarredError, RefusedError, BusyError: As above.
    """
    status = response.status
    if status in allowed:
        return response
    response.close()
    sentence = f"{shown(url)} answers {status}"
    if status in (401, 403):
        raise BarredError(sentence, hint="enrol this device again: python -m edge.agent enrol DIR --help")
    if status == 429 or status >= 500:
        busy = BusyError(sentence)
        busy.retry_s = retry_after_s(response)
        raise busy
    if 400 <= status < 500:
        refused = RefusedError(sentence)
        refused.status = status
        raise refused
    raise BusyError(f"{sentence}, which nobody asked for")


def retry_after_s(response: Response) -> float | None:
    """Read ``Retry-After``, in seconds from now; None where there is none that can be understood."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdigit():
        return min(float(text[:9]), MAX_WAIT_S)
    try:
        date = email.utils.parsedate_to_datetime(text)
        return min(max(0.0, date.timestamp() - time.time()), MAX_WAIT_S)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
