"""The network of this project, named in kit.toml."""

from torch import nn


def build(*, width: int, n_features: int, n_classes: int) -> nn.Module:
    """Build the network over the features that [[prepare.features]] gives.

    n_classes is 0 for a regression, which answers one value a row.
    """
    return nn.Sequential(
        nn.Linear(n_features, width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_classes or 1),
    )
