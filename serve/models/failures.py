"""What a failed load is to whom: operators get all of it, clients that the version cannot be had."""

from __future__ import annotations

import logging

from kit.errors import KitError, ModelError, UnavailableError, VerificationError
from kit.inference.errors import DeadlineError
from serve.version_key import VersionKey

_logger = logging.getLogger("kit")


class BudgetError(UnavailableError):
    """A version does not fit into the memory that models may take; clients may know why."""


class ClosingError(UnavailableError):
    """A replica takes nobody in any more; clients may know."""


def closing() -> ClosingError:
    """Give the error for whoever comes while the replica ends."""
    return ClosingError("this replica is shutting down", hint="ask again")


def late(key: VersionKey) -> DeadlineError:
    """Give the error for whoever waited for a load as long as it made sense."""
    return DeadlineError(f"{key} was not loaded in time", hint="allow more time, or ask again in a moment")


def copy(error: KitError) -> KitError:
    """Give an equal error without the frames that keep a failed load's engine and arrays alive."""
    return type(error)(error.message, hint=error.hint)


def known(key: VersionKey, raised: BaseException) -> KitError:
    """Make what a load raised an error of the kit; a bug's traceback goes to the log."""
    if isinstance(raised, KitError):
        return copy(raised)
    _logger.error("loading %s failed unexpectedly", key, exc_info=raised)
    return UnavailableError(f"an unexpected {type(raised).__name__}; the endpoint's log says where")


def for_clients(key: VersionKey, error: KitError) -> KitError:
    """Say that a version cannot be had, but neither where its files lie nor what is wrong with them."""
    if isinstance(error, (BudgetError, ClosingError)):
        return copy(error)
    kinds = (ModelError, VerificationError)
    kind = next((each for each in kinds if isinstance(error, each)), UnavailableError)
    return kind(f"{key} could not be loaded", hint="ask for another version; the endpoint's log says why")
