"""What a study has written down: one small file per trial, and the checkpoints of those that go on.

On disk or on S3, each file whole or absent. A place that refuses writes for a while is asked again for some
minutes. Nothing in it is ever unpickled, and it knows neither Ray nor torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kit.errors import InputError, KitError, UnavailableError
from kit.files import canonical_json, write_atomic
from kit.tables import open_file_system, storage_error

T = TypeVar("T")

_log = logging.getLogger("kit")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_STUDY = "study.json"


class Ledger:
    """The files of one study.

    Args:
        uri: Folder or ``s3://bucket/prefix`` of all studies.
        study: Identity of this one.
        patience_s: How long a place that refuses is asked again.
    """

    def __init__(self, uri: str, *, study: str, patience_s: float = 300.0) -> None:
        self.uri, self.study, self.patience_s = uri, study, patience_s
        self._system, root = open_file_system(uri)
        self._root = f"{root}/{study}"
        self.on_disk = not uri.startswith("s3://")

    def read(self) -> tuple[dict[str, Any] | None, dict[int, dict[str, Any]]]:
        """Read what is there.

        Returns:
            The study's facts, None where there is no study; and the trials by number.

        Raises:
            InputError: A file is not what this class writes.
            UnavailableError: The place does not answer.
        """
        study = self._read(_STUDY)
        if study is None:
            return None, {}
        facts = {}
        for name in self._names("trials"):
            record = self._read(f"trials/{name}")
            if record is not None:
                facts[int(record["number"])] = record
        return study, dict(sorted(facts.items()))

    def write_study(self, facts: Mapping[str, Any]) -> None:
        """Replace the facts of the study."""
        self._write(_STUDY, canonical_json(dict(facts)))

    def write_trial(self, record: Mapping[str, Any]) -> None:
        """Replace the record of one trial, ``number`` in it."""
        self._write(f"trials/{record['number']:04d}.json", canonical_json(dict(record)))

    def checkpoint_folder(self, number: int, *, scratch: Path) -> Path:
        """Give the folder a trial works in, filled with its last checkpoint.

        Args:
            number: Of the trial.
            scratch: An empty folder for a study that is not on disk.
        """
        if self.on_disk:
            folder = Path(self._root) / "checkpoints" / f"{number:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        packed = self._bytes(f"checkpoints/{number:04d}.tar")
        if packed is not None:
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(scratch, filter="data")
        return scratch

    def keep_checkpoint(self, number: int, folder: Path) -> None:
        """Bring a trial's folder to where the study lies; on disk it is there already."""
        if self.on_disk:
            return
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.add(path, arcname=path.relative_to(folder).as_posix(), recursive=False)
        self._write(f"checkpoints/{number:04d}.tar", packed.getvalue())

    def read_kept(self, number: int, name: str) -> bytes | None:
        """Read one file of a trial's checkpoint; None where it is not there."""
        if self.on_disk:
            return self._bytes(f"checkpoints/{number:04d}/{name}")
        packed = self._bytes(f"checkpoints/{number:04d}.tar")
        if packed is None:
            return None
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            file = archive.extractfile(name) if name in archive.getnames() else None
            return None if file is None else file.read()

    def drop_checkpoint(self, number: int) -> None:
        """Remove a trial's checkpoint; one that is not there is no mistake."""
        place = f"checkpoints/{number:04d}"
        if self.on_disk:
            shutil.rmtree(Path(self._root) / place, ignore_errors=True)
            return
        try:
            self._system.delete_file(f"{self._root}/{place}.tar")
        except OSError as error:  # what stays behind costs room, not the study
            _log.debug("the checkpoint of trial %d was not removed: %s", number, error)

    def clear(self) -> None:
        """Remove the whole study, its facts first: what a kill leaves of it is no study.

        Raises:
            UnavailableError: Records of trials stay, which the next study would take for its own.
        """
        if self.on_disk:
            folder = Path(self._root)
            with contextlib.suppress(OSError):
                (folder / _STUDY).unlink()
            shutil.rmtree(folder, ignore_errors=True)
            if (folder / _STUDY).exists() or (folder / "trials").exists():
                raise UnavailableError(f"{folder} cannot be removed", hint="make the folder writable")
            return
        from pyarrow import fs

        def remove() -> None:
            facts = f"{self._root}/{_STUDY}"
            if self._system.get_file_info(facts).type == fs.FileType.File:
                self._system.delete_file(facts)
            chosen = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
            for info in self._system.get_file_info(chosen):
                if info.type == fs.FileType.File:
                    self._system.delete_file(info.path)

        self._patiently(remove)

    def _names(self, folder: str) -> list[str]:
        from pyarrow import fs

        selector = fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        found = self._patiently(lambda: self._system.get_file_info(selector))
        return sorted(info.base_name for info in found if info.base_name.endswith(".json"))

    def _read(self, name: str) -> dict[str, Any] | None:
        content = self._bytes(name)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except ValueError as error:
            raise InputError(
                f"{self.uri}/{self.study}/{name} is not JSON: {error}",
                hint="start the study anew: --no-resume",
            ) from error
        if not isinstance(value, dict):
            raise InputError(f"{self.uri}/{self.study}/{name} holds no object", hint="use --no-resume")
        return value

    def _bytes(self, name: str) -> bytes | None:
        from pyarrow import fs

        path = f"{self._root}/{name}"

        def read() -> bytes | None:
            if self._system.get_file_info(path).type != fs.FileType.File:
                return None
            with self._system.open_input_stream(path) as stream:
                return bytes(stream.read())

        return self._patiently(read)

    def _write(self, name: str, content: bytes) -> None:
        if self.on_disk:
            write_atomic(Path(self._root) / name, content)
            return

        def write() -> None:
            with self._system.open_output_stream(f"{self._root}/{name}") as stream:
                stream.write(content)

        self._patiently(write)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do something to the place, again and again while it refuses, with growing pauses."""
        deadline_s, pause_s, told = time.monotonic() + self.patience_s, _FIRST_PAUSE_S, False
        while True:
            try:
                return action()
            except OSError as error:
                refusal: KitError = storage_error(f"{self.uri}/{self.study}", error)
                if not isinstance(refusal, UnavailableError):
                    refusal = UnavailableError(refusal.message, hint="make the folder writable")
                gone = "does not exist" in refusal.message
                if self.on_disk or gone or time.monotonic() + pause_s > deadline_s:
                    raise refusal from error
                if not told:
                    _log.warning("%s; trying again for %.0f s", refusal.message, self.patience_s)
                    told = True
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
