"""The network of this project. kit.toml names ``build``; nothing else here is special."""

import torch
from torch import nn


class Digits(nn.Module):
    """A small convolutional network over 8 x 8 images with values from 0 to 16."""

    def __init__(self, *, width: int, n_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 16, 64),
            nn.ReLU(),
            nn.Linear(64, n_classes),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Answer with logits, shape (n_rows, n_classes).

        The scaling is part of the network, so it travels wherever the model goes.
        """
        return self.layers(image / 16.0)


def build(*, width: int, n_classes: int) -> nn.Module:
    """Build the network; ``width`` comes from kit.toml, ``n_classes`` from the data."""
    return Digits(width=width, n_classes=n_classes)
