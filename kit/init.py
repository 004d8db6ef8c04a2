"""Write a runnable project from a template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kit.errors import ConflictError, InputError
from kit.files import atomic_folder
from kit.settings import InitSettings
from kit.settings.fields import NAME_PATTERN

if TYPE_CHECKING:
    import pyarrow as pa

_IGNORED = "# state, keys and results of the kit\n.kit/\nbundles/\nreport.html\n__pycache__/\n"
_DATA = {"digits": "digits.parquet", "tabular": "biopsies.parquet"}


@dataclass(frozen=True)
class InitResult:
    """What was written.

    Attributes:
        folder: The project.
        files: Its files, relative to the folder, sorted.
    """

    folder: Path
    files: tuple[str, ...]


def init(settings: InitSettings) -> InitResult:
    """Write a project: kit.toml, model.py, real data, .gitignore.

    Raises:
        InputError: The folder's name cannot be a project's name.
        ConflictError: The folder exists.
        UnavailableError: The disk is full or cannot be written.
    """
    folder = Path(settings.name).expanduser().absolute()
    if not re.fullmatch(NAME_PATTERN, folder.name):
        raise InputError(
            f"{folder.name!r} cannot name a project",
            hint="use lower-case letters, digits, '.', '_' and '-', a letter or digit first",
        )
    if folder.exists():
        raise ConflictError(f"{folder} exists", hint="choose another name, or remove the folder")
    table = _digits() if settings.template == "digits" else _tabular()
    template = resources.files("kit") / "templates" / settings.template
    columns = [name for name in table.column_names if name not in ("id", "diagnosis", "size_group")]
    listed = "\n".join(
        "    " + " ".join(f'"{name}",' for name in columns[start : start + 3])
        for start in range(0, len(columns), 3)
    )
    from pyarrow import parquet

    with atomic_folder(folder) as work:
        (work / "data").mkdir()
        text = (template / "kit.toml").read_text(encoding="utf-8")
        (work / "kit.toml").write_text(text.format(name=folder.name, columns=listed), encoding="utf-8")
        (work / "model.py").write_bytes((template / "model.py").read_bytes())
        (work / ".gitignore").write_text(_IGNORED, encoding="utf-8")
        parquet.write_table(table, work / "data" / _DATA[settings.template], compression="zstd")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return InitResult(folder, tuple(files))


def _digits() -> pa.Table:
    """Scikit-learn's digits: 1,797 images as lists of 64 values from 0 to 16, and the digit."""
    import pyarrow as pa
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.data.astype(np.float32)
    images = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), pixels.shape[1])
    return pa.table(
        {
            "id": pa.array(np.arange(len(pixels))),
            "image": images,
            "digit": pa.array(digits.target.astype(np.int64)),
        }
    )


def _tabular() -> pa.Table:
    """Scikit-learn's breast cancer data, with 5 % of the values taken out and a column of categories.

    ``size_group`` is made from the mean area: its quartile as a word, missing in 5 % of the rows.
    """
    import pyarrow as pa
    from sklearn.datasets import load_breast_cancer

    cancer = load_breast_cancer()
    random = np.random.default_rng(0)
    values = cancer.data.astype(np.float32)
    quartile = np.searchsorted(np.quantile(values[:, 3], [0.25, 0.5, 0.75]), values[:, 3])
    groups = np.array(["small", "medium", "large", "very large"], dtype=object)[quartile]
    groups[random.random(len(groups)) < 0.05] = None
    gone = random.random(values.shape) < 0.05
    names = [name.replace(" ", "_") for name in cancer.feature_names]
    columns = {name: pa.array(values[:, index], mask=gone[:, index]) for index, name in enumerate(names)}
    diagnosis = np.array(["malignant", "benign"], dtype=object)[cancer.target]
    return pa.table(
        {
            "id": pa.array(np.arange(len(values))),
            **columns,
            "size_group": pa.array(groups, pa.string()),
            "diagnosis": pa.array(diagnosis, pa.string()),
        }
    )
