"""What the agent costs a device: start, memory, and time on top of the bare interpreter.

    .venv-device/bin/python benchmarks/agent [--bundle FILE --key FILE] [--json]

Run it with the Python of a device's environment: LiteRT, numpy, cryptography, neither Ray nor torch. Without
``--bundle`` it takes the bundles that ``benchmarks/export`` has left in ``.bench/export``: the digits CNN and
MobileNetV2. What is compared takes turns, call by call, so that what the machine does meanwhile hits both
alike. The interpreter sets the input, invokes and gets the output: it checks nothing, names no class and
turns no logits into probabilities; *by hand* does the last two in three lines of numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from kit.child import CODE_FOLDER
from kit.machine import this_machine

_EXPORTED = CODE_FOLDER / ".bench" / "export"
_SUBJECTS = ("digits", "mobilenet")
_ROUNDS = 14
_PACKAGES = ("batch-edge-kit", "ai-edge-litert")


def main() -> None:
    """Measure and print."""
    given = _parser().parse_args()
    found: dict[str, Any] = {"machine": this_machine().to_json()}
    found["import"] = imports()
    found["environment_mb"] = environment_mb()
    with tempfile.TemporaryDirectory(prefix="kit-bench-") as home:
        folders = {name: installed(*files, Path(home) / name) for name, files in _bundles(given).items()}
        figures: dict[str, dict[str, Any]] = {
            name: {"memory": memory(each)} for name, each in folders.items()
        }
        # Not before: a library that this process has loaded, too, would count less than it is.
        from calls import running, starts

        for name, folder in folders.items():
            figures[name].update(start=starts(folder), **running(folder))
    found["models"] = figures
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for name, each in figures.items():
        print(_text(name, each))
    for name, taken in found["import"].items():
        print(f"{name:36} {taken * 1e3:7.1f} ms")
    print(f"{'environment with LiteRT':36} {found['environment_mb']:7.1f} MB")


def imports() -> dict[str, float]:
    """Time what starts Python and imports the agent, in turns with a Python that does nothing; seconds."""
    commands = {
        "python -c pass": "pass",
        "import the agent": "import edge.agent.service, edge.agent.__main__",
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(_ROUNDS):
        for name, code in commands.items():
            began_s = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], cwd=CODE_FOLDER, check=True)
            taken[name].append(time.perf_counter() - began_s)
    return {name: statistics.median(each) for name, each in taken.items()}


def installed(bundle: Path, key: Path, folder: Path) -> Path:
    """Make a device folder that has confirmed a bundle."""
    (folder / "keys").mkdir(parents=True)
    (folder / "incoming").mkdir()
    shutil.copyfile(key, folder / "keys" / key.name)
    shutil.copyfile(bundle, folder / "incoming" / bundle.name)
    command = [sys.executable, "-m", "edge.agent", "run", str(folder), "--once"]
    subprocess.run(command, cwd=CODE_FOLDER, check=True, stderr=subprocess.DEVNULL)
    return folder


def memory(folder: Path) -> dict[str, float]:
    """Measure memory in megabytes, in a process that has loaded nothing."""
    command = [sys.executable, str(Path(__file__).with_name("memory.py")), str(folder)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(ended.stdout)
    return found


def environment_mb() -> float:
    """Add up what the packages take that ``pip install batch-edge-kit[litert]`` brings."""
    waiting, seen, n_bytes = list(_PACKAGES), set(), 0
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for said in found.requires or ():
            if "extra ==" not in said:
                waiting.append(re.split(r"[ <>=!~\[;(]", said, maxsplit=1)[0].lower().replace("_", "-"))
        for path in found.files or ():
            with contextlib.suppress(OSError):
                n_bytes += Path(str(found.locate_file(path))).stat().st_size
    packages = ("kit", "edge", "jobs", "serve")
    n_bytes += sum(path.stat().st_size for each in packages for path in (CODE_FOLDER / each).rglob("*.py"))
    return n_bytes / 1e6


def _bundles(given: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """Give each model's bundle and the key that signs it."""
    if given.bundle is not None:
        return {given.bundle.stem: (given.bundle, given.key)}
    found = {}
    for name in _SUBJECTS:
        bundle = _EXPORTED / "files" / name / "bundles" / f"{name}-litert-int8.bundle"
        if not bundle.exists():
            sys.exit(f"there is no {bundle}: run benchmarks/export first, or give --bundle and --key")
        found[name] = (bundle, _EXPORTED / "projects" / name / ".kit" / "keys" / "signing.pub")
    return found


def _text(name: str, figures: dict[str, Any]) -> str:
    def line(what: str, value: str) -> str:
        return f"  {what:34} {value}"

    return "\n".join(
        [
            name,
            *(line(f"{each}, p50", f"{us:9.1f} us") for each, us in figures["in_process_us"].items()),
            *(line(each, f"{figures[each]:9.1%}") for each in figures if each.startswith("runner over")),
            *(line(each, f"{figures[each]:9.3f}") for each in figures if each.startswith("added by")),
            *(line(each, f"{megabytes:9.1f} MB") for each, megabytes in figures["memory"].items()),
            line("first answer after the start", f"{figures['start']['first_answer_s']:9.3f} s"),
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure what the agent costs a device.")
    parser.add_argument("--bundle", type=Path, help="a LiteRT bundle")
    parser.add_argument("--key", type=Path, help="the public key that it is signed with")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


if __name__ == "__main__":
    main()
