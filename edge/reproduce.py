"""Reproduce: build the bundles of an export a second time, in another process, and compare their bytes.

The other process has another seed for its hashes and nothing loaded; the recipes are those that won, because
which one wins depends on latencies. It neither measures nor decides.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit.child import CODE_FOLDER
from kit.errors import ModelError, VerificationError
from kit.project import Project
from kit.settings import ExportSettings

_HASH_SEED = "20"
_TIMEOUT_S = 3600.0


@dataclasses.dataclass(frozen=True)
class Winner:
    """A bundle that was written.

    Attributes:
        target: Its target.
        recipe: How it was made, as JSON.
        kept: Layers that stayed in float.
        digest: Names its content.
    """

    target: str
    recipe: dict[str, Any]
    kept: tuple[str, ...]
    digest: str


def require_same_bytes(project: Project, settings: ExportSettings, winners: Sequence[Winner]) -> None:
    """Build bundles again, and refuse what comes out otherwise.

    Args:
        project: Whose model it is.
        settings: Those of the export.
        winners: What it wrote.

    Raises:
        ModelError: The second build failed.
        VerificationError: A bundle has other content the second time; names the target and the digests.
    """
    if not winners:
        return
    asked = {
        "project": str(project.folder),
        "settings": settings.model_dump(mode="json"),
        "winners": [dataclasses.asdict(each) for each in winners],
    }
    done = subprocess.run(
        [sys.executable, "-m", "edge.reproduce"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=CODE_FOLDER,
        env={**os.environ, "PYTHONHASHSEED": _HASH_SEED},
        timeout=_TIMEOUT_S,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ModelError(f"the second build failed: {last[:300]}")
    again = json.loads(lines[-1])
    for each in winners:
        if again[each.target] != each.digest:
            raise VerificationError(
                f"{each.target} is not reproducible: {each.digest[:12]} at first, "
                f"{again[each.target][:12]} the second time",
                hint="compare them with `kit bundle diff`; a layer may draw random numbers",
            )


def main() -> int:
    """Be the child of ``require_same_bytes``: read what to build, print the digests."""
    from edge.attempt import Bench
    from edge.job import prepare_job
    from edge.recipes import Recipe
    from edge.targets import find_target

    asked = json.load(sys.stdin)
    project = Project.open(Path(asked["project"]))
    settings = ExportSettings.model_validate(asked["settings"], strict=False)
    _, version = project.open_version(settings.model or "")
    digests = {}
    with tempfile.TemporaryDirectory(prefix="kit-export-") as name:
        targets = {each["target"]: find_target(each["target"]) for each in asked["winners"]}
        work = Path(name)
        job = prepare_job(project, settings, version=version, targets=list(targets.values()), work=work)
        for each in asked["winners"]:
            bench = Bench(job, targets[each["target"]], baseline=None)
            digests[each["target"]] = bench.pack(Recipe(**each["recipe"]), tuple(each["kept"])).digest
    sys.stdout.write(json.dumps(digests) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
