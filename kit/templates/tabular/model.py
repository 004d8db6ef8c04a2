"""The preprocessing and the network of this project, named in kit.toml."""

from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn


def preprocessing() -> ColumnTransformer:
    """Build the preprocessing, unfitted; it becomes part of the model's graph."""
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    categories = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return ColumnTransformer(
        [
            ("numbers", numbers, make_column_selector(dtype_include="number")),
            ("categories", categories, make_column_selector(dtype_include=object)),
        ]
    )


def build(*, width: int, n_features: int, n_classes: int) -> nn.Module:
    """Build the network over the columns that the preprocessing gives."""
    return nn.Sequential(
        nn.Linear(n_features, width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_classes),
    )
