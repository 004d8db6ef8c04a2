"""One trained model, the same answers in a batch, over HTTP and on a device.

The names below are the library's public face; each is imported when it is first used, so that
``import kit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.engines import Engine as Engine
    from kit.engines import open_engine as open_engine
    from kit.errors import ConflictError as ConflictError
    from kit.errors import DiskFullError as DiskFullError
    from kit.errors import GateError as GateError
    from kit.errors import InputError as InputError
    from kit.errors import KitError as KitError
    from kit.errors import MissingDependencyError as MissingDependencyError
    from kit.errors import NotFoundError as NotFoundError
    from kit.errors import ProjectError as ProjectError
    from kit.errors import SettingsError as SettingsError
    from kit.errors import UnavailableError as UnavailableError
    from kit.errors import VerificationError as VerificationError
    from kit.model_version import ModelVersion as ModelVersion
    from kit.project import Project as Project
    from kit.registry import Registry as Registry
    from kit.runner import Runner as Runner
    from kit.signature import Signature as Signature
    from kit.store import open_store as open_store
    from kit.tensors import TensorSpec as TensorSpec

__version__ = "0.1.0"

_HOMES = {
    "ConflictError": "kit.errors",
    "DiskFullError": "kit.errors",
    "Engine": "kit.engines",
    "GateError": "kit.errors",
    "InputError": "kit.errors",
    "KitError": "kit.errors",
    "MissingDependencyError": "kit.errors",
    "ModelVersion": "kit.model_version",
    "NotFoundError": "kit.errors",
    "Project": "kit.project",
    "ProjectError": "kit.errors",
    "Registry": "kit.registry",
    "Runner": "kit.runner",
    "SettingsError": "kit.errors",
    "Signature": "kit.signature",
    "TensorSpec": "kit.signature",
    "UnavailableError": "kit.errors",
    "VerificationError": "kit.errors",
    "open_engine": "kit.engines",
    "open_store": "kit.store",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
