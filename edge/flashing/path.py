"""The way ``path:FOLDER``: a folder of this machine, a mounted card or a USB stick, say.

The agent that decides is this machine's, by default the one in this environment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kit.child import CODE_FOLDER
from kit.errors import NotFoundError

SCHEME = "path:"


class PathWay:
    """Starts programs here; see ``edge.flashing.hand.Way``.

    Args:
        uri: ``path:FOLDER``.
        python: The interpreter whose agent decides; empty for this one.
    """

    def __init__(self, uri: str, *, python: str = "") -> None:
        self.shown = self.folder = str(Path(uri[len(SCHEME) :]).expanduser().absolute())
        self.code = str(CODE_FOLDER)
        self._python = python or sys.executable

    def words(self, program: Sequence[str]) -> list[str]:
        """Give the command that starts a Python here."""
        if not Path(self._python).is_file():
            raise NotFoundError(f"there is no interpreter {self._python}", hint="correct --device-python")
        return [self._python, *program]

    def refuse(self, code: int, said: str) -> None:
        """Nothing stands between this machine and itself."""
