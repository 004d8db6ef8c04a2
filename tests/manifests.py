"""A bundle's manifest as `kit export` writes it, for tests of what is made from one."""

from __future__ import annotations

from typing import Any

DATA = "d" * 64
CALIBRATION = "c" * 64
VERSION = "a" * 64


def bundle_manifest(**changes: Any) -> dict[str, Any]:
    """Give the manifest of a full-integer LiteRT bundle; changes replace its entries."""
    core = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 2]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, 2]}],
    }
    tensors = {
        "inputs": [{"name": "x", "dtype": "int8", "shape": [1, 2], "scale": 0.5, "zero_point": -3}],
        "outputs": [{"name": "logits", "dtype": "int8", "shape": [1, 2], "scale": 0.25, "zero_point": 7}],
    }
    metrics = {"metric": "accuracy", "reference": 0.99, "value": 0.985, "drop": 0.005, "agreement": 0.995}
    return {
        "format": 1,
        "name": "shapes",
        "model_digest": VERSION,
        "release": 3,
        "target": "litert-int8",
        "engine": "litert",
        "precision": "int8",
        "model": "model.tflite",
        "core": core,
        "postprocessing": "classification",
        "classes": ["low", "high"],
        "toolchain": {"ai-edge-quantizer": "0.9.0", "python": "3.11.9", "torch": "2.13.0+cpu"},
        "lineage": {"data": {"path": "secret/place.parquet", "fingerprint": DATA, "n_rows": 1000}},
        "golden": {"min_agreement": 1.0, "max_output_error": 0.05, "output_scale": 1.0},
        "budgets": {"max_metric_drop": 0.01, "max_latency_ms": 1000.0},
        "calibration": {"n_rows": 200, "fingerprint": CALIBRATION},
        "metrics": {**metrics, "output_error": 0.0123, "n_rows": 360, "fingerprint": DATA},
        "recipe": {"name": "int8", "weights": "int8", "activations": "int8", "smooth": False, "n_kept": 0},
        "requirements": {
            "engine": "litert",
            "packages": {"ai-edge-litert": ">=2.1,<3", "tflite-runtime": ">=2.14,<2.15"},
            "arch": None,
            "memory_mb": 12.5,
        },
        "tensors": tensors,
        "batch_sizes": [1],
        **changes,
    }
