"""The project files of the larger networks: kit.toml, model.py and a rule that makes rows.

Standard architectures of the transformers package, from random weights. The rows are made up, and a few
epochs learn them: only then do answers have a spread that an error can be measured in, and batch norms
statistics. Nothing here trains or exports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

N_CLASSES = 10
N_IDS, N_PLACES = 500, 32

_TOML = """
[project]
name = "{name}"

[data]
path = "rows.parquet"
label = "kind"

[[data.inputs]]
{given}

[model]
factory = "model:build"

[train]
epochs = {epochs}
batch_size = {batch_size}
learning_rate = {learning_rate}
schedule = "cosine"
golden_rows = 16
"""
_MOBILENET = """
import torch
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification


class Images(torch.nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.network = MobileNetV2ForImageClassification(
            MobileNetV2Config(image_size=96, num_labels=n_classes, classifier_dropout_prob=0.2)
        )
        for module in self.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.1  # that of transformers forgets all but the last batch

    def forward(self, image):
        return self.network(pixel_values=image / 127.5 - 1).logits


def build(n_classes):
    return Images(n_classes)
"""
_VIT = """
import torch
from transformers import ViTConfig, ViTForImageClassification


class Images(torch.nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.network = ViTForImageClassification(
            ViTConfig(
                image_size=32,
                patch_size=4,
                hidden_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=384,
                num_labels=n_classes,
            )
        )

    def forward(self, image):
        return self.network(pixel_values=image / 127.5 - 1).logits


def build(n_classes):
    return Images(n_classes)
"""
_BERT = """
import torch
from transformers import BertConfig, BertForSequenceClassification


class Phrases(torch.nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.network = BertForSequenceClassification(
            BertConfig(
                vocab_size=500,
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=256,
                max_position_embeddings=32,
                num_labels=n_classes,
            )
        )

    def forward(self, ids):
        mask = torch.cat([torch.ones_like(ids[:, :1]), (ids[:, 1:] != 0).long()], dim=1)
        return self.network(input_ids=ids, attention_mask=mask).logits


def build(n_classes):
    return Phrases(n_classes)
"""
_SERIES = """
from torch import nn


def build(n_classes):
    return nn.Sequential(
        nn.Conv1d(3, 32, 7, stride=2, padding=3),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Conv1d(32, 64, 5, stride=2, padding=2),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Conv1d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(64, n_classes),
    )
"""


def _images(size: int) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    def make(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw a grating of the class's direction, distance and colour, at any place, under noise."""
        random = np.random.default_rng(0)
        kinds = random.integers(0, N_CLASSES, n_rows)
        down, right = np.mgrid[0:size, 0:size] / size
        angle = np.pi * kinds / N_CLASSES
        waves = 3.0 + kinds % 3
        phase = random.uniform(0, 2 * np.pi, n_rows)
        along = np.multiply.outer(np.cos(angle), right) + np.multiply.outer(np.sin(angle), down)
        grating = np.sin(2 * np.pi * waves[:, None, None] * along + phase[:, None, None])
        colour = np.random.default_rng(1).uniform(-1, 1, (N_CLASSES, 3))[kinds]
        pixels = 128 + (30 + 60 * grating[:, None]) * colour[:, :, None, None]
        pixels += random.normal(0, 30, (n_rows, 3, size, size))
        return np.clip(np.rint(pixels), 0, 255).astype(np.float32), kinds

    return make


def _phrases(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Make phrases of 8 to 32 ids, padded with 0; a few of them are words of the class."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, N_CLASSES, n_rows)
    ids = random.integers(100, N_IDS, (n_rows, N_PLACES))
    for _ in range(3):
        ids[np.arange(n_rows), random.integers(0, 8, n_rows)] = 10 + 9 * kinds + random.integers(0, 9, n_rows)
    ids[np.arange(N_PLACES) >= random.integers(8, N_PLACES + 1, n_rows)[:, None]] = 0
    return ids.astype(np.int64), kinds


def _series(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Make three channels of noise with a wave of the class's length in one of them."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, N_CLASSES, n_rows)
    signal = random.normal(size=(n_rows, 3, 128))
    phase = random.uniform(0, 2 * np.pi, n_rows)
    wave = np.sin(np.multiply.outer(0.15 + 0.12 * kinds, np.arange(128)) + phase[:, None])
    signal[np.arange(n_rows), kinds % 3] += 2 * wave
    return signal.astype(np.float32), kinds


@dataclass(frozen=True)
class Architecture:
    """A project that can be written.

    Attributes:
        code: Its model.py.
        given: Its input, as kit.toml describes it.
        rows: Makes rows and their classes.
        n_rows: How many.
        epochs: Of the training.
        learning_rate: Of its first step.
        batch_size: Rows of a step.
    """

    code: str
    given: str
    rows: Callable[[int], tuple[np.ndarray, np.ndarray]]
    n_rows: int
    epochs: int
    learning_rate: float
    batch_size: int = 32

    def toml(self, name: str) -> str:
        """Write kit.toml."""
        return _TOML.format(
            name=name,
            given=self.given,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )


_IMAGE = 'name = "image"\nshape = [3, {0}, {0}]\nminimum = 0\nmaximum = 255'
_IDS = 'name = "ids"\ndtype = "int64"\nshape = [32]\nminimum = 0\nmaximum = 499'
_SIGNAL = 'name = "signal"\nshape = [3, 128]\nminimum = -100\nmaximum = 100'

ARCHITECTURES = {
    "mobilenet": Architecture(_MOBILENET, _IMAGE.format(96), _images(96), 600, 8, 0.003, 16),
    "vit": Architecture(_VIT, _IMAGE.format(32), _images(32), 1500, 12, 0.001),
    "bert": Architecture(_BERT, _IDS, _phrases, 3000, 12, 0.002),
    "series": Architecture(_SERIES, _SIGNAL, _series, 1500, 12, 0.003),
}
