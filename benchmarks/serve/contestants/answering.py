"""What every contestant but the kit does with rows.

Sees numpy and onnxruntime alone, as the peers' environments hold no kit.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnxruntime


class Answering:
    """A loaded model on one thread.

    Args:
        model: The ONNX file.
    """

    def __init__(self, model: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Answer rows, float32, shape (n, 32); gives indices of classes (n,) and probabilities (n, 3)."""
        label, probabilities = self._session.run(["label", "probabilities"], {"x": rows})
        return label, probabilities

    def run_lists(self, rows: list[list[float]]) -> dict[str, Any]:
        """Answer rows as JSON has them."""
        label, probabilities = self.run(np.array(rows, np.float32))
        return {"label": label.tolist(), "probabilities": probabilities.tolist()}


def asked() -> tuple[str, int]:
    """Read the words of the command line: the ONNX file and the port."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    return given.model, given.port
