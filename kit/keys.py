"""The key that signs: make it, show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kit.errors import UnavailableError
from kit.project import Project
from kit.settings import KeysSettings
from kit.signing import generate_key, key_id, public_of


@dataclass(frozen=True)
class KeysResult:
    """Which key signs.

    Attributes:
        key_id: Names the key: sha256 of its public half.
        private: Where the private key lies, readable by its owner alone.
        public: Where the public key lies; devices and clusters pin it.
        created: Whether it was made just now.
    """

    key_id: str
    private: Path
    public: Path
    created: bool


def keys(project: Project, settings: KeysSettings) -> KeysResult:
    """Make the project's key pair, or say which one it has.

    Raises:
        ConflictError: ``init`` finds a key; it is never overwritten.
        NotFoundError: ``show`` finds none.
        UnavailableError: The folder for the keys cannot be made or written.
    """
    if settings.action == "init":
        private = project.signing_key_path()
        try:
            private.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"the folder {private.parent} cannot be made: {error.strerror}",
                hint="move what is in the way, or name another place with [signing] key",
            ) from error
        public = generate_key(private)
    else:
        private = project.signing_key()
        public = public_of(private)
    return KeysResult(key_id(public), private, private.with_suffix(".pub"), settings.action == "init")
