"""The errors this kit raises, each saying who must act.

    KitError                    the root: one sentence, and what to do next in ``hint``
    |-- InputError              a value, a file or a row a user gave breaks a rule
    |   |-- SettingsError       kit.toml or a flag
    |   `-- ProjectError        the project's own Python
    |-- NotFoundError           a model, version, alias, bundle or device nobody knows
    |-- VerificationError       a digest, a signature or a file list does not hold
    |-- GateError               a candidate does not pass a gate
    |-- ModelError              a version fails on rows its signature allows
    |-- ConflictError           somebody else was faster, or the place is taken
    |-- UnavailableError        the outside world: a cluster, S3, a disk, a port
    |   `-- DiskFullError       a disk has no room
    `-- MissingDependencyError  a package this command needs is not installed

Subclasses add no ``__init__``: an exception with another signature does not survive the
pickling that carries it across Ray. HTTP statuses are mapped in ``kit.inference.errors``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KitError(Exception):
    """Report a failure a user can act on.

    Args:
        message: One sentence, lower-case start, with the offending value in it.
        hint: The next step, as an imperative; None when the message already says it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(KitError):
    """A value, a file or a row a user gave breaks a rule."""


class SettingsError(InputError):
    """A key or value in kit.toml, or a flag, breaks a rule."""


class ProjectError(InputError):
    """The project's own Python cannot be used as it is."""


class NotFoundError(KitError):
    """A model, version, alias, bundle or device is not known."""


class VerificationError(KitError):
    """A digest, a signature or a file list does not hold."""


class GateError(KitError):
    """A candidate does not pass a gate."""


class ModelError(KitError):
    """A version fails on rows its signature allows: it raised, or answered NaN."""


class ConflictError(KitError):
    """Somebody else was faster, or the place is taken."""


class UnavailableError(KitError):
    """Something outside the kit does not answer or has no room."""


class DiskFullError(UnavailableError):
    """A disk has no room for what is written."""


class MissingDependencyError(KitError):
    """A package this command needs is not installed."""


#: Exit code of each kind of error, the first that fits; both command lines use it.
EXIT_CODES: tuple[tuple[type[KitError], int], ...] = (
    (InputError, 2),
    (VerificationError, 3),
    (GateError, 4),
    (NotFoundError, 5),
    (ConflictError, 6),
    (UnavailableError, 7),
    (MissingDependencyError, 8),
    (ModelError, 9),
)


def install_line(extra: str) -> str:
    """Give the command that installs one of the kit's extras where the kit is installed already.

    pip finds the distribution present and adds what the extra needs. The distribution is not
    called ``kit`` because that name belongs to somebody else's package.
    """
    return f"pip install 'batch-edge-kit[{extra}]'"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid names there are, and which one was probably meant.

    Args:
        name: What the user wrote.
        valid: Every name that would have been accepted.

    Returns:
        An imperative for ``hint``, for example ``did you mean 'epochs'? (valid: batch_size, epochs)``.
    """
    names = sorted(valid)
    listed = f"valid: {', '.join(names)}" if names else "there are none"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? ({listed})" if close else f"choose another name ({listed})"
