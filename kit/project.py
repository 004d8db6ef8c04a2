"""A project: a user's folder with a kit.toml and the Python it names.

Answers where things are and hands out what the commands need: settings, keys, registry, store,
records, the user's own functions. It starts nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kit.errors import (
    NotFoundError,
    ProjectError,
    SettingsError,
    UnavailableError,
    VerificationError,
    nearest,
)
from kit.files import canonical_json, write_atomic
from kit.keypair import key_id, load_trusted
from kit.keyring import KEYRING_NAME, Keyring, open_keyring
from kit.model_version import ModelVersion
from kit.project_file import build, read_project_file
from kit.registry import Registry, VersionRecord
from kit.settings import CommandSettings, PrepareSettings, ProjectFile, is_marked
from kit.store import Store, open_store

C = TypeVar("C", bound=CommandSettings)

FILE_NAME = "kit.toml"
#: Where the state lies, for a job that runs on a copy of the project (see ``jobs.submit``).
STATE_VARIABLE = "KIT_STATE"


@dataclass(frozen=True)
class Project:
    """An opened project.

    Attributes:
        folder: The folder that holds kit.toml, absolute.
        settings: The checked kit.toml.
        state: Folder of the registry, the keys, the runs and the caches, absolute.
    """

    folder: Path
    settings: ProjectFile
    state: Path

    @classmethod
    def open(cls, folder: Path | None = None) -> Project:
        """Open the project in a folder, or the one the current folder belongs to.

        Raises:
            SettingsError: There is no kit.toml, or it breaks a rule.
        """
        start = (folder or Path.cwd()).resolve()
        home = next((place for place in (start, *start.parents) if (place / FILE_NAME).is_file()), start)
        if folder is not None:
            home = start
        settings = read_project_file(home / FILE_NAME)
        state = os.environ.get(STATE_VARIABLE) or settings.project.state
        return cls(home, settings, (home / Path(state).expanduser()).resolve())

    @property
    def name(self) -> str:
        """The project's name, under which its models are registered."""
        return self.settings.project.name

    def command(self, name: str, cls: type[C], flags: Mapping[str, Any] | None = None) -> C:
        """Put a command's settings together: defaults, then kit.toml, then flags.

        Places that are still relative become relative to the project.

        Raises:
            SettingsError: A value breaks a rule.
        """
        section, typed = self.settings.commands.get(name, {}), flags or {}
        settings = build(cls, {**section, **typed}, where=f"kit {name}")
        for idle in settings.idle:
            # In the file it may wait for the day the other one is typed.
            if idle.name in typed or (idle.name in section and idle.because in {*section} - {*typed}):
                value, other = getattr(settings, idle.name), getattr(settings, idle.because)
                raise SettingsError(
                    f"kit {name}: {idle.name} = {value!r} does nothing with {idle.because} = {other!r}",
                    hint=f"leave {idle.name} out, or set {idle.because} = {idle.needed}",
                )
        places = {
            field: tuple(map(self.locate, place)) if isinstance(place, tuple) else self.locate(place)
            for field, info in cls.model_fields.items()
            if is_marked(info, "path") and (place := getattr(settings, field)) is not None
        }
        return settings.model_copy(update=places)

    def prepare(self) -> PrepareSettings:
        """Give what [prepare] says, which training and every other reader of the data follow."""
        return self.command("prepare", PrepareSettings)

    def locate(self, uri: str) -> str:
        """Make a path of kit.toml absolute: relative ones are relative to the project."""
        return uri if "://" in uri else str(self.folder / Path(uri).expanduser())

    def signing_key(self) -> Path:
        """Give the private key that signs.

        Raises:
            NotFoundError: There is none yet.
        """
        path = self.signing_key_path()
        if not path.is_file():
            raise NotFoundError(f"there is no signing key at {path}", hint="make one: kit keys init")
        return path

    def signing_key_path(self) -> Path:
        """Say where the private key lies, or would."""
        key = self.settings.signing.key
        return Path(self.locate(key)) if key else self.state / "keys" / "signing.pem"

    def pinned(self) -> tuple[bytes, ...]:
        """Read the public keys kit.toml names, else the signing key's own; without what a keyring says.

        Raises:
            NotFoundError: There is none.
        """
        trusted = self.settings.signing.trusted
        own = self.signing_key_path().with_suffix(".pub")
        return load_trusted(Path(self.locate(trusted)) if trusted else own)

    def keyring(self) -> Keyring | None:
        """Read the keyring beside the signing key; None before the first ``kit keys rotate``.

        Raises:
            NotFoundError: There is one, and no key to check it with.
            UnavailableError: It cannot be read.
            VerificationError: It is damaged, or no pinned key has signed it.
        """
        path = self.signing_key_path().with_name(KEYRING_NAME)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UnavailableError(f"the keyring {path} cannot be read: {error.strerror}") from error
        try:
            return open_keyring(data, trusted=self.pinned())
        except VerificationError as error:
            raise VerificationError(f"{path} is not believed: {error.message}", hint=error.hint) from error

    def trusted(self) -> tuple[bytes, ...]:
        """Read the public keys that are trusted to sign: the pinned ones and the keyring's, less the revoked.

        Expired keys are among them: what they signed in their time goes on being believed here.

        Raises:
            NotFoundError: There is none.
            VerificationError: The keyring does not hold.
        """
        pinned, keyring = self.pinned(), self.keyring()
        if keyring is None:
            return pinned
        every = dict.fromkeys((*pinned, *keyring.known()))
        return tuple(pem for pem in every if key_id(pem) not in keyring.revoked)

    def registry(self) -> Registry:
        """Open the registry of model versions."""
        return Registry(self.state / "registry.db")

    def store(self, *, cache: Path | None = None) -> Store:
        """Open the store of model files.

        Args:
            cache: Folder for downloaded versions; ``<state>/cache`` when None.
        """
        uri = self.settings.store.uri
        place = self.locate(uri) if uri else str(self.state / "store")
        return open_store(place, cache=cache or self.state / "cache")

    def open_version(self, reference: str) -> tuple[VersionRecord, ModelVersion]:
        """Resolve a model reference, fetch its files and verify them.

        Args:
            reference: ``digits``, ``digits@champion``, ``digits@3`` or ``digits@sha256:ab12``.

        Raises:
            NotFoundError: Nobody knows the model, version or alias.
            VerificationError: A file or the signature does not hold.
        """
        record = self.registry().resolve(reference)
        folder = self.store().fetch(record.digest)
        return record, ModelVersion.open(folder, trusted=self.trusted(), digest=record.digest)

    def write_record(self, kind: str, identity: str, record: Mapping[str, Any]) -> Path:
        """Keep what a command did, for ``kit report``.

        Args:
            kind: The command.
            identity: Names the run among its kind; a second record with it replaces the first.
            record: JSON-ready facts; ``kind``, ``id`` and ``written_at_s`` are added.
        """
        path = self.state / "runs" / kind / f"{identity}.json"
        stamped = {"kind": kind, "id": identity, "written_at_s": round(time.time(), 3), **record}
        write_atomic(path, canonical_json(stamped))
        return path

    def load_object(self, reference: str) -> Any:
        """Import something from the project's own Python.

        Args:
            reference: ``module:name``.

        Raises:
            ProjectError: The module or the name cannot be imported from the project's folder.
        """
        module_name, _, name = reference.partition(":")
        sys.path.insert(0, str(self.folder))
        try:
            module = self._import(module_name)
        except ProjectError:
            raise
        except (
            Exception,
            SystemExit,
        ) as error:  # the user's code may raise anything at all while it is imported
            raise ProjectError(
                f"{reference!r} cannot be imported from {self.folder}: {type(error).__name__}: {error}",
                hint=f"check {module_name}.py and the name in kit.toml",
            ) from error
        finally:
            sys.path.remove(str(self.folder))
        if not hasattr(module, name):
            names = [each for each in vars(module) if not each.startswith("_")]
            raise ProjectError(
                f"{module_name}.py has no {name!r}", hint=f"it defines {', '.join(sorted(names))}"
            )
        return getattr(module, name)

    def _import(self, module_name: str) -> Any:
        """Import afresh where another project's modules of the same names are loaded."""
        mine = {path.stem for path in self.folder.glob("*.py")}
        mine |= {path.parent.name for path in self.folder.glob("*/__init__.py")}
        top = module_name.partition(".")[0]
        if top not in mine:
            raise ProjectError(f"there is no module {top!r} in {self.folder}", hint=nearest(top, mine))
        for name, loaded in list(sys.modules.items()):
            other = name.partition(".")[0] in mine and not self._owns(loaded)
            if other and name.partition(".")[0] not in sys.stdlib_module_names:
                del sys.modules[name]
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
        if not self._owns(module):
            raise ProjectError(
                f"the module {module_name!r} that Python finds lies outside {self.folder}",
                hint="rename it; a module of Python has its name",
            )
        return module

    def _owns(self, module: Any) -> bool:
        file = getattr(module, "__file__", None)
        return file is not None and Path(file).resolve().is_relative_to(self.folder)
