"""Make an INT8 TFLite file out of a version's torch.export program.

The one place outside training that opens ``model.pt2``, and only of a version that was verified.
Full-integer: weights per channel and activations in 8 bits, batch 1, because LiteRT's converter
holds no free batch size. It knows nothing of bundles or budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge.targets import Core
from kit.errors import InputError
from kit.files import write_atomic

_SIGNATURE = "serving_default"
_INPUT = "args_0"  # litert_torch's name for the first positional argument


def convert(core: Core, *, calibration: np.ndarray, folder: Path) -> None:
    """Write ``model.tflite``.

    Args:
        core: The network, of a verified version.
        calibration: Rows the activation ranges are taken from, float32, shape (n_rows, ...).
        folder: Where the file goes.

    Raises:
        InputError: The version has no torch.export program.
    """
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager

    model = _float_model(core, sample=calibration[:1], path=folder / "float.tflite")
    static = recipe.static_wi8_ai8()
    recipes = recipe_manager.RecipeManager()
    recipes.load_quantization_recipe(static)
    ranges = calibrator.Calibrator(model, num_threads=1, qsv_update_func=_widened)
    ranges.calibrate({_SIGNATURE: [{_INPUT: row[np.newaxis]} for row in calibration]}, recipes)
    quantised = quantizer.Quantizer(model, static).quantize(
        ranges.get_model_qsvs(), enable_progress_bar=False, enable_progress_report=False
    )
    write_atomic(folder / "model.tflite", bytes(quantised.quantized_model))


def _float_model(core: Core, *, sample: np.ndarray, path: Path) -> bytes:
    program = core.version.folder / "model.pt2"
    if not program.is_file():
        raise InputError(
            f"model {core.version.name!r} has no model.pt2, which the LiteRT converter reads",
            hint="train it with this kit, or leave this target out",
        )
    import litert_torch
    import torch

    module = torch.export.load(program).module()
    litert_torch.convert(module, (torch.from_numpy(np.ascontiguousarray(sample)),)).export(str(path))
    model = path.read_bytes()
    path.unlink()
    return model


def _widened(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the true minimum and maximum.

    The quantizer's own rule is a moving average of each row's extremes, which clips: an MLP's
    output error was 0.287 with it and 0.018 with this one.
    """
    return {"min": np.minimum(known["min"], new["min"]), "max": np.maximum(known["max"], new["max"])}
