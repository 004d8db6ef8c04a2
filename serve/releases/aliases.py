"""Following an alias: when the registry moves it, its new version takes all of an endpoint that follows it.

Every replica looks; of those that see the same move one writes the release and the others find it written.
Runs in a thread. It loads nothing and changes no traffic itself: a version that cannot be loaded leaves the
old release in force as with any release. Other inputs do not stop it: whoever moved the alias decided that.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from kit.errors import ConflictError, KitError
from kit.registry import Registry
from serve.releases.store import ReleaseStore
from serve.releases.table import Change, Release, Weighted, next_release

_logger = logging.getLogger("kit")
# SQLite counts transactions here, so two within one tick of the clock and of equal size are told apart.
_COUNTER = slice(24, 28)
# Looked again although nothing changed, in case a disk or the registry did not answer the last time.
_AGAIN_S = 30.0

Fingerprint = tuple[int, int, int, bytes]


def fingerprint(path: Path) -> Fingerprint | None:
    """Say in what state the registry's file is, not opening it as a database; None while there is none."""
    try:
        with path.open("rb") as file:
            header = file.read(_COUNTER.stop)
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size, header[_COUNTER]


class AliasFollower:
    """Writes releases for endpoints that follow an alias.

    Args:
        store: Where releases are kept.
        registry: What says where an alias stands.
    """

    def __init__(self, store: ReleaseStore, *, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._looked: dict[str, tuple[Fingerprint, int, int]] = {}

    def look(self, newest: dict[str, Release]) -> None:
        """Write a release for every endpoint whose alias stands elsewhere than its newest release says.

        Costs one open of the registry's file, and a query only when it or the release has changed.

        Args:
            newest: Endpoint to its newest release that holds.
        """
        followed = {name: release for name, release in newest.items() if release.follow}
        if not followed or (now := fingerprint(self._registry.path)) is None:
            return
        for name, release in followed.items():
            state = (now, release.sequence, int(time.monotonic() / _AGAIN_S))
            if self._looked.get(name) == state:
                continue
            try:
                self._follow(release)
            except ConflictError:
                continue  # another replica wrote it, or an operator was faster; the next look sees what
            except KitError as error:
                _logger.warning("%s cannot follow %s: %s", name, release.follow, error.message)
            self._looked[name] = state

    def _follow(self, release: Release) -> None:
        found = self._registry.resolve(f"{release.endpoint}@{release.follow}")
        if [each.digest for each in release.versions] == [found.digest]:
            return
        change = Change(
            versions=(Weighted(found.number, found.digest, 100.0),),
            origin=f"alias {release.follow}",
            follow=release.follow,
        )
        made = next_release(
            release.endpoint,
            previous=release,
            sequence=self._store.last(release.endpoint) + 1,
            change=change,
            salt=release.salt,
            made_ns=time.time_ns(),
        )
        head = self._store.head(release.endpoint)
        if head is not None and head.sequence == release.sequence:
            self._store.append(made)
            _logger.info("%s follows %s to version %d", release.endpoint, release.follow, found.number)
