"""The files of an interrupted run: the checkpoint to go on from, and the batch that fitted into memory.

Knows nothing of Ray or of how a checkpoint is made; ``Trainer.save`` writes them.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from jobs.fitting.loop import BEST, PROGRESS, WEIGHTS, FitConfig, Progress
from kit.files import write_atomic

BATCH = "batch.json"


def newest(folder: Path) -> Path | None:
    """Find the checkpoint that has come furthest; one that a kill or a full disk cut short does not count.

    Args:
        folder: Of the run; each checkpoint is a folder in it.
    """
    places = {each: place for each in folder.glob("*/") if (place := _place(each)) is not None}
    return max(places, key=lambda each: (places[each], each.name), default=None)


def take_up(folder: Path) -> Path | None:
    """Find the checkpoint that a run on Ray Train goes on from, and make room for what it will write.

    Ray rewrites its list of the checkpoints in place, and refuses a run whose list a kill or a full disk cut
    short, or another version wrote. So the list goes, and the files say themselves how far they are.

    Args:
        folder: Of the run; older checkpoints in it are removed.
    """
    (folder / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    found = newest(folder)
    for other in folder.glob("checkpoint_*/") if found is not None else ():
        if other != found:
            shutil.rmtree(other, ignore_errors=True)
    return found


def _place(folder: Path) -> tuple[int, int] | None:
    """Say how many epochs, and rows of the next one, a checkpoint has done; None where it is not whole."""
    try:
        progress = Progress.of(json.loads((folder / PROGRESS).read_text()))
    except (OSError, ValueError, KeyError, TypeError):  # missing, or cut short
        return None
    # What torch writes is a ZIP archive, whose directory comes last.
    whole = all(zipfile.is_zipfile(folder / name) for name in (WEIGHTS, BEST))
    return (len(progress.epochs), progress.rows_done) if whole else None


def note_batch(folder: Path, fit: FitConfig) -> None:
    """Note the batch that is tried next because a larger one did not fit into memory."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / BATCH, json.dumps({"batch_size": fit.batch_size}).encode())


def with_noted_batch(folder: Path, fit: FitConfig) -> FitConfig:
    """Give the same training with the batch that was noted; without ``auto_batch`` it is the user's."""
    path = folder / BATCH
    if not (fit.auto_batch and path.is_file()):
        return fit
    batch_size = int(json.loads(path.read_text())["batch_size"])
    return fit.with_batch(batch_size) if batch_size < fit.batch_size else fit
