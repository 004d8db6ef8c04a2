"""Make an INT8 OpenVINO model out of a version's ONNX graph.

Cuts the network out of the graph, quantises it with NNCF and writes ``model.xml`` and
``model.bin`` with a free batch size, without a trace of where or when. It knows nothing of
bundles or budgets.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from edge.targets import Core
from kit.files import write_atomic

if TYPE_CHECKING:
    import openvino


def convert(core: Core, *, calibration: np.ndarray, folder: Path) -> None:
    """Write ``model.xml`` and ``model.bin``.

    Args:
        core: The network, of a verified version.
        calibration: Rows the activation ranges are taken from, float32, shape (n_rows, ...).
        folder: Where the files go.
    """
    import onnx
    import openvino

    nncf = import_nncf()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    graph = onnx.utils.Extractor(onnx.load(core.version.model_path)).extract_model(
        [core.input.name], [core.output.name]
    )
    quantised = nncf.quantize(
        openvino.Core().read_model(graph.SerializeToString()),
        nncf.Dataset([row[np.newaxis] for row in calibration]),
        subset_size=len(calibration),
        preset=nncf.QuantizationPreset.MIXED,
        advanced_parameters=AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            weights_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            # NNCF's fast bias correction raised a small CNN's output error from 0.004 to 0.032.
            disable_bias_correction=True,
            # Without VNNI a processor adds pairs of products in 16 bits, which saturate with weights of the
            # full range: error 0.046 on AVX2, 0.010 with this. A device's processor is not this machine's.
            overflow_fix=OverflowFix.ENABLE,
        ),
    )
    _write(quantised, folder)


def import_nncf() -> ModuleType:
    """Import NNCF so that it tells nobody.

    By itself it reports every call to Google Analytics and leaves an identifier in the home folder; it
    does neither where the package it reports through is absent.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how Python writes "absent"
    import nncf

    module: ModuleType = nncf
    return module


def _write(model: openvino.Model, folder: Path) -> None:
    """Save a model so that its bytes depend on the network and the ranges alone."""
    import openvino

    # Default names count up over the life of the process.
    for index, operation in enumerate(model.get_ordered_ops()):
        operation.set_friendly_name(f"op{index}")
    openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)
    tree = ElementTree.parse(folder / "model.xml")
    root = tree.getroot()
    root.set("name", "core")
    # Notes of the tools: versions, paths, parameters, names of fused operations. The runtime reads none.
    for parent in list(root.iter()):
        for note in parent.findall("rt_info"):
            parent.remove(note)
    write_atomic(folder / "model.xml", ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
