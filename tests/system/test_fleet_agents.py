"""Real agents in processes of their own, a real server and the commands: rolled out, taken back, seen."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.agent.pulling.enrol import enrol
from kit.cli import main
from kit.project import Project
from tests.awaiting import await_true
from tests.system.test_fleet_server import served


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """Run a device's agent."""
    with (folder / "agent.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "edge.agent", "run", str(folder)], stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def kit(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_agents_take_a_bundle_and_give_it_back(
    digits_project: Path, bundles, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits_project)
    project = Project.open(digits_project)
    bundles.key = project.signing_key()
    first, second = bundles.make(release=1), bundles.make(release=2)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(digits_project, "--poll-s", "1"))
        for name in ("one", "two"):
            folder = tmp_path / name
            (folder / "keys").mkdir(parents=True)
            (folder / "keys" / "signing.pub").write_bytes(project.trusted()[0])
            code = json.loads(kit(capsys, "devices", "add", name, "--group", "line", "--json"))["code"]
            enrol(folder, server=server.url, code=code)
            stack.enter_context(running(folder))

        def run() -> list[str | None]:
            return [
                each["digest"] for each in json.loads(kit(capsys, "devices", "list", "--json"))["devices"]
            ]

        rolling = ("fleet", "rollout", "--group", "line", "--silence", "10m")
        kit(capsys, *rolling, str(first.path), "--waves", "100%", "--follow")
        assert run() == [first.digest] * 2
        kit(capsys, *rolling, str(second.path), "--waves", "1,100%", "--soak", "1h")
        await_true(lambda: sorted(map(str, run())) == sorted([first.digest, second.digest]))
        kit(capsys, "fleet", "abort")
        await_true(lambda: run() == [first.digest] * 2)
        await_true(lambda: "every device runs what it ran before" in kit(capsys, "fleet", "status"))
        returned = [
            moment["what"]
            for name in ("one", "two")
            for moment in json.loads(kit(capsys, "devices", "show", name, "--json"))["device"]["moments"]
        ]
        assert returned.count("returned") == 1
