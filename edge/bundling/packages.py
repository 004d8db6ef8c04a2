"""Python packages as a bundle's papers name them: version, licence, package URL, what they bring along.

Read from the metadata of what is installed on the machine that exports; nothing is asked of an index. It
knows nothing of bundles.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

import kit

KIT = "batch-edge-kit"
"""The distribution this is part of."""

#: SPDX identifier of what packages without a License-Expression write, in lower case. "BSD License" alone
#: is not here: two licences are called so.
_SPDX = {
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license v2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "mit": "MIT",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "mpl-2.0": "MPL-2.0",
    "psf-2.0": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
}
#: Licences of what need not be installed here, as its authors state them.
_STATED = {
    KIT: "Apache-2.0",
    "python": "PSF-2.0",
    "tensorrt": "LicenseRef-NvidiaProprietary",
    "tflite-runtime": "Apache-2.0",
}
_MAX_NAME_CHARACTERS = 60


@dataclass(frozen=True)
class Package:
    """A package in one version.

    Attributes:
        name: Of the distribution, as an index spells it.
        version: Its version; empty where it is not installed here.
        spdx: Its licence as an SPDX expression; empty where none can be told.
        licence: Its licence in its own words, where it has no SPDX expression; empty otherwise.
    """

    name: str
    version: str
    spdx: str = ""
    licence: str = ""


def find_package(name: str, *, version: str | None = None) -> Package:
    """Look a package up among those installed here.

    Args:
        name: Of the distribution or, spelt alike, of what it is imported as; ``kit`` is this kit.
        version: The version that is meant, whose licence another one need not have; None for what is here.
    """
    name = _normalised(name)
    try:
        metadata = importlib.metadata.metadata(name)
        here = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        here = kit.__version__ if name == KIT else ""
        return Package(name, here if version is None else version, _STATED.get(name, ""))
    if version is not None and version != here:
        return Package(name, version, _STATED.get(name, ""))
    # An older setuptools puts a whole licence text into "License".
    said = [each for each in metadata.get_all("Classifier") or () if each.startswith("License ::")]
    written = [each.strip() for each in metadata.get_all("License") or ()]
    written += [each.rpartition(" :: ")[2] for each in said]
    expressions = [*(metadata.get_all("License-Expression") or ()), *map(_spdx, written)]
    expressions.append(_STATED.get(name, ""))
    spdx = next(filter(None, expressions), "")
    words = next((each for each in written if each and len(each) <= _MAX_NAME_CHARACTERS), "")
    return Package(name, here, spdx, "" if spdx else words)


def with_requirements(names: Iterable[str]) -> tuple[Package, ...]:
    """Look packages up together with everything that they bring along here, in order of their names.

    Args:
        names: Of distributions; of one that is not installed here, its own are not known.
    """
    from packaging.requirements import Requirement

    found: dict[str, Package] = {}
    waiting = [_normalised(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = find_package(name)
        try:
            lines = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        requirements = map(Requirement, lines)
        waiting += [
            _normalised(each.name)
            for each in requirements
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    return tuple(found[name] for name in sorted(found))


def package_url(name: str, version: str = "") -> str:
    """Give a package's URL (purl), without a version where none is given.

    Source: the package-url specification, types ``pypi`` and ``generic``.
    """
    name = _normalised(name)
    kind = "generic" if name == "python" else "pypi"
    return f"pkg:{kind}/{quote(name, safe='')}" + (f"@{quote(version, safe='')}" if version else "")


def _spdx(written: str) -> str:
    """Read what somebody wrote as a licence as an SPDX expression; empty where it is none for sure."""
    known = _SPDX.get(written.lower(), "")
    parts = re.split(r" (?:AND|OR) ", written)
    return known or (written if set(parts) <= set(_SPDX.values()) else "")


def _normalised(name: str) -> str:
    return KIT if name == "kit" else re.sub(r"[-_]+", "-", name).lower()
