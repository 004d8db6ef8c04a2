"""One export: the network, the rows it is judged on, the rows ranges are taken from, and what was asked for.

It knows no target and measures nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.calibrate import Calibration, calibrate
from edge.core import Core, Material, core_of
from edge.measure import Budgets, answer_all, output_scale
from edge.recipes import Target
from kit.data import load
from kit.engines import open_engine
from kit.lineage import require_same_rows
from kit.model_version import ModelVersion
from kit.project import Project
from kit.rows import Part
from kit.settings import ExportSettings
from kit.tensors import Tensors

_log = logging.getLogger("kit")


@dataclass(frozen=True)
class Job:
    """What every target of one export shares.

    Attributes:
        core: The network, and its preprocessing.
        calibration: Rows that ranges are taken from.
        held_out: Rows the figures are of.
        expected: The reference's answers to them.
        scale: Standard deviation of the reference's outputs.
        fingerprint: Of the data.
        settings: What was asked for.
        key: The private key that signs.
        trusted: Public keys that are believed.
        work: A folder that lives as long as the export.
    """

    core: Core
    calibration: Calibration
    held_out: Part
    expected: Tensors
    scale: float
    fingerprint: str
    settings: ExportSettings
    key: Path
    trusted: tuple[bytes, ...]
    work: Path

    @property
    def budgets(self) -> Budgets:
        """What a target may cost."""
        settings = self.settings
        return Budgets(
            max_metric_drop=settings.max_metric_drop,
            max_output_error=settings.max_output_error,
            max_size_mb=settings.max_size_mb,
            max_latency_ms=settings.max_latency_ms,
            max_memory_mb=settings.max_memory_mb,
        )

    @property
    def material(self) -> Material:
        """What converters are given."""
        settings = self.settings
        return Material(
            self.core, self.calibration.rows, tuple(sorted(set(settings.batch_sizes))), settings.io, self.work
        )


def prepare_job(
    project: Project,
    settings: ExportSettings,
    *,
    version: ModelVersion,
    targets: Sequence[Target],
    work: Path,
) -> Job:
    """Read the data, take calibration rows and ask the reference.

    Args:
        project: Whose model it is.
        settings: What was asked for.
        version: The version, verified.
        targets: What is to be built.
        work: A folder that lives as long as the export.

    Raises:
        InputError: The data is not what the model was trained on, or the calibration rows or
            the model cannot be used.
        NotFoundError: The signing key is not known.
    """
    key, trusted = project.signing_key(), project.trusted()
    core = core_of(version)
    split = load(project)
    require_same_rows(project, version, split)
    calibration = calibrate(
        core,
        split,
        n_rows=settings.calibration_rows,
        seed=project.settings.data.seed,
        for_ranges=any(target.takes_ranges for target in targets),
    )
    if calibration.n_left_out:
        _log.warning("%d training rows are test rows too and were left out", calibration.n_left_out)
    # One thread wherever answers are compared: sums in another order would change the manifest.
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    expected = answer_all(engine.run, split.test.tensors)
    return Job(
        core=core,
        calibration=calibration,
        held_out=split.test,
        expected=expected,
        scale=output_scale(expected),
        fingerprint=split.fingerprint,
        settings=settings,
        key=key,
        trusted=trusted,
        work=work,
    )
