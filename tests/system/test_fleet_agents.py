"""Real agents in processes of their own, a real server and the commands: rolled out, taken back, seen."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.agent.device import Device
from edge.agent.pulling.enrol import enrol
from kit.cli import main
from kit.project import Project
from tests.awaiting import await_true
from tests.devtools import CHROMIUM, browser
from tests.system.test_fleet_server import Server, served

#: A device whose interpreter answers wrongly from one bundle, rightly from every other.
FAULTY = """
import onnxruntime

class Session(onnxruntime.InferenceSession):
    def __init__(self, path, *arguments, **more):
        super().__init__(path, *arguments, **more)
        self.faulty = {digest!r} in str(path)

    def run(self, *arguments):
        answers = super().run(*arguments)
        return [-answer for answer in answers] if self.faulty else answers

onnxruntime.InferenceSession = Session
"""


@pytest.fixture
def project(digits_project: Path, bundles, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project that commands find here; its key signs the bundles."""
    monkeypatch.chdir(digits_project)
    project = Project.open(digits_project)
    bundles.key = project.signing_key()
    return project


@contextlib.contextmanager
def running(folder: Path, *, wrong: str = "") -> Iterator[None]:
    """Run a device's agent; ``wrong`` is the digest of a bundle that this device computes wrongly."""
    searched = [str(folder / "faulty"), os.environ.get("PYTHONPATH", "")] if wrong else []
    if wrong:
        (folder / "faulty").mkdir()
        (folder / "faulty" / "sitecustomize.py").write_text(FAULTY.format(digest=wrong))
    with (folder / "agent.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edge.agent", "run", str(folder)],
            stderr=log,
            env={**os.environ, **({"PYTHONPATH": os.pathsep.join(searched)} if searched else {})},
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def kit(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def enrolled(folder: Path, project: Project, server: Server, capsys: pytest.CaptureFixture[str]) -> Path:
    """Make a device that believes the project, and let it into the fleet."""
    (folder / "keys").mkdir(parents=True)
    (folder / "keys" / "signing.pub").write_bytes(project.trusted()[0])
    words = ("devices", "add", folder.name, "--group", "line", "--json")
    enrol(folder, server=server.url, code=json.loads(kit(capsys, *words))["code"])
    return folder


def devices(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(kit(capsys, "devices", "list", "--json"))["devices"]}


def test_agents_take_a_bundle_and_give_it_back(project: Project, bundles, tmp_path: Path, capsys) -> None:
    first, second = bundles.make(release=1), bundles.make(release=2)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(project.folder, "--poll-s", "1"))
        for name in ("one", "two"):
            stack.enter_context(running(enrolled(tmp_path / name, project, server, capsys)))

        def run() -> list[str | None]:
            return [each["digest"] for each in devices(capsys).values()]

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


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install -y chromium")
def test_one_device_of_five_gives_a_bundle_back_by_itself_and_is_then_flashed_by_hand(
    project: Project, bundles, tmp_path: Path, capsys
) -> None:
    first, second, third = (bundles.make(release=release) for release in (1, 2, 3))
    names = [f"press-{number}" for number in range(1, 6)]
    odd = "press-4"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(project.folder, "--poll-s", "1"))
        for name in names:
            folder = enrolled(tmp_path / name, project, server, capsys)
            stack.enter_context(running(folder, wrong=second.digest if name == odd else ""))
        rolling = ("fleet", "rollout", "--group", "line", "--silence", "10m", "--waves", "100%")
        kit(capsys, *rolling, str(first.path), "--follow")
        assert {each["digest"] for each in devices(capsys).values()} == {first.digest}

        token = (project.state / "fleet" / "admin.token").read_text().strip()
        page = stack.enter_context(browser(tmp_path))
        page.go(f"{server.url}#token={token}")
        kit(capsys, *rolling, str(second.path), "--success", "80%")
        page.await_js("document.body.innerText.includes('4 of 5 devices confirmed, 1 failed')")
        await_true(lambda: "done" in kit(capsys, "fleet", "status"))
        found = devices(capsys)
        assert {name: each["digest"] for name, each in found.items()} == {
            name: first.digest if name == odd else second.digest for name in names
        }
        assert found[odd]["health"] == "failing"
        page.go(f"{server.url}#/device/{found[odd]['id']}")
        page.await_js("document.body.innerText.includes('golden rows: agreement 0')")
        assert page.console == []

        server.process.terminate()  # from here on there is no network
        server.process.wait(timeout=60)
        assert main(["flash", str(second.path), f"path:{tmp_path / odd}"]) == 4
        assert "rejected" in capsys.readouterr().err
        told = kit(capsys, "flash", str(third.path), f"path:{tmp_path / odd}")
        assert f"running sha256:{third.digest[:12]}" in told
        assert Device.open(tmp_path / odd).pointer() == third.digest
