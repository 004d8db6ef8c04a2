from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit import keypair
from kit.cli.show.releasing import release as show
from kit.cli.show.tables import to_json
from kit.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    SettingsError,
    UnavailableError,
    VerificationError,
)
from kit.model_version import Parts, write_model_version
from kit.project import Project
from kit.settings.serving import ReleaseSettings
from serve.releases import follow
from serve.releases.command import ReleaseResult, release
from serve.releases.follow import Follower, Hooks
from serve.releases.store import ReleaseStore
from serve.releases.table import Release

ROOT = Path(__file__).resolve().parents[2]


def other_inputs(parts: Parts, **changes: Any) -> Parts:
    spec = replace(parts.signature.inputs[0], **changes)
    return replace(parts, signature=replace(parts.signature, inputs=(spec,)))


@pytest.fixture(scope="module")
def made_project(
    project_templates: Mapping[str, Path], tiny_parts: Parts, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project with tiny@1 to 3 of the same inputs, 4 with another input, 5 with narrower ones."""
    home = tmp_path_factory.mktemp("releases")
    shutil.copytree(project_templates["digits"], home / "project")
    project = Project.open(home / "project")
    keypair.generate_key(project.signing_key_path())
    renamed, narrower = other_inputs(tiny_parts, name="y"), other_inputs(tiny_parts, minimum=-1.0)
    for number, parts in enumerate((tiny_parts, tiny_parts, tiny_parts, renamed, narrower), start=1):
        inputs = {parts.signature.inputs[0].name: parts.golden_inputs["x"]}
        made = replace(parts, manifest={"number": number}, golden_inputs=inputs)
        folder = home / f"version-{number}"
        digest = write_model_version(made, folder=folder, key=project.signing_key())
        uri = project.store().put(folder, digest=digest)
        project.registry().register("tiny", digest=digest, uri=uri, summary={})
    project.registry().promote("tiny@1")
    return project.folder


@pytest.fixture
def project(made_project: Path, tmp_path: Path) -> Project:
    """A copy of ``made_project`` of one's own."""
    return Project.open(Path(shutil.copytree(made_project, tmp_path / "project")))


def kit_release(project: Project, action: str, *weights: str, **more: Any) -> ReleaseResult:
    flags = {"endpoint": "tiny", "action": action, **({"weights": weights} if weights else {}), **more}
    return release(project, project.command("release", ReleaseSettings, flags))


def shares(release: Release) -> list[tuple[int, float]]:
    return [(each.number, each.percent) for each in release.versions]


class Served:
    """A replica on a thread of its own, where chosen versions cannot be loaded."""

    def __init__(self, project: Project, *, name: str, broken: frozenset[int] = frozenset()) -> None:
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._broken = broken
        serve = project.state / "serve"
        self.follower = Follower(
            ReleaseStore(serve / "releases"),
            hooks=Hooks(self._prepare, lambda release: None, shadow=self._shadow),
            folder=serve / "replicas",
            replica=name,
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _prepare(self, release: Release) -> None:
        for each in release.versions:
            if each.number in self._broken:
                raise VerificationError(f"version {each.number} answers NaN")

    def _shadow(self, endpoint: str) -> dict[str, Any]:
        release = self.follower.in_force(endpoint)
        digest = release.shadow.digest if release and release.shadow else ""
        return {"digest": digest, "compared": 3, "labels": 3, "labels_equal": 2}

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.follower.start(["tiny"])
        self._ready.set()
        await self._stop.wait()
        await self.follower.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)


@pytest.fixture
def replicas(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Served]]:
    """Two replicas that serve tiny@1; the second one cannot load version 3."""
    monkeypatch.setattr(follow, "_POLL_S", 0.01)
    kit_release(project, "set", "1")
    served = [Served(project, name="one"), Served(project, name="two", broken=frozenset({3}))]
    yield served
    for each in served:
        each.stop()


def test_weights_name_versions_in_every_way_a_reference_can(project: Project) -> None:
    digest = project.registry().resolve("tiny@3").digest
    result = kit_release(project, "set", "champion=89.9", "tiny@2=10", f"sha256:{digest[:8]}=0.1")
    assert shares(result.release) == [(1, 89.9), (2, 10.0), (3, 0.1)]
    assert result.release.follow is None
    assert result.warnings == ("no replica serves it now; the release counts from the next kit serve on",)
    result.require_passed()


def test_a_single_alias_takes_all_and_is_followed(project: Project) -> None:
    assert kit_release(project, "set", "champion").release.follow == "champion"
    assert kit_release(project, "set", "champion=100").release.follow is None
    result = kit_release(project, "set", "2", note="by hand")
    assert (shares(result.release), result.release.follow) == ([(2, 100.0)], None)
    assert (result.release.sequence, result.release.note) == (3, "by hand")


@pytest.mark.parametrize(
    "weights, error, said",
    [
        (("1=50", "2=49"), InputError, "the shares add up to 99 %, not 100"),
        (("1=50", "champion=50"), InputError, "'champion=50' is version 1, which has 50 % already"),
        (("1=50", "2"), InputError, "'2' has no share"),
        (("1=ten",), InputError, "'1=ten' has no number of percent"),
        (("9=100",), NotFoundError, "tiny has no version 9, it has versions 1 to 5"),
        (("chmpion=100",), NotFoundError, "tiny has no alias 'chmpion'"),
        (("other@1=100",), InputError, "'other@1=100'|'other@1' is a version of other"),
        ((), InputError, "needs a version"),
    ],
)
def test_weights_that_cannot_be_are_refused_and_nothing_is_written(
    project: Project, weights: tuple[str, ...], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        kit_release(project, "set", *weights)
    assert not (project.state / "serve").exists()


def test_versions_with_other_inputs_cannot_share_requests(project: Project) -> None:
    with pytest.raises(InputError, match=r"versions 1 and 4 .* input 'x' is gone; input 'y' is new"):
        kit_release(project, "set", "1=90", "4=10")
    with pytest.raises(InputError, match="versions 1 and 4 cannot"):
        kit_release(project, "set", "1", shadow="4=5")


def test_going_over_to_other_inputs_is_done_and_said(project: Project) -> None:
    kit_release(project, "set", "1")
    result = kit_release(project, "set", "4")
    assert shares(result.release) == [(4, 100.0)]
    assert (
        "version 4 reads other inputs than 1, which answered until now: input 'x' is gone" in result.warnings
    )


def test_a_version_that_refuses_more_is_named(project: Project) -> None:
    result = kit_release(project, "set", "1=90", "5=10")
    assert "version 5 refuses more than 1: input 'x' must be at least -1" in result.warnings


def test_a_version_without_files_is_refused(project: Project) -> None:
    record = project.registry().register("tiny", digest="f" * 64, uri="u", summary={})
    with pytest.raises(NotFoundError, match="f" * 12):
        kit_release(project, "set", str(record.number))


def test_shadow_and_stickiness_change_without_the_weights(project: Project) -> None:
    kit_release(project, "set", "champion", sticky="header:X-User")
    shadowed = kit_release(project, "set", shadow="2=5").release
    assert (shadowed.follow, shadowed.sticky) == ("champion", "header:X-User")
    assert shadowed.shadow is not None
    assert (shadowed.shadow.number, shadowed.shadow.percent) == (2, 5.0)
    assert kit_release(project, "set", "1=50", "3=50").release.shadow == shadowed.shadow
    assert kit_release(project, "set", shadow="none", sticky="none").release.shadow is None
    with pytest.raises(InputError, match="its own shadow"):
        kit_release(project, "set", "2", shadow="2=5")
    with pytest.raises(InputError, match="cannot have 101 %"):
        kit_release(project, "set", shadow="2=101")


def test_a_setting_that_does_nothing_with_the_action_is_a_mistake(project: Project) -> None:
    with pytest.raises(SettingsError, match="weights"):
        kit_release(project, "show", "1")
    with pytest.raises(SettingsError, match="to = 3"):
        kit_release(project, "set", "1", to=3)


def test_a_change_waits_until_every_replica_has_it(project: Project, replicas: list[Served]) -> None:
    result = kit_release(project, "set", "1=90", "2=10")
    result.require_passed()
    assert [(each.replica, each.in_force) for each in result.replicas] == [("one", 2), ("two", 2)]
    assert result.waited_s is not None
    assert result.waited_s < 5


def test_a_replica_that_fails_is_named_and_keeps_the_old_release(
    project: Project, replicas: list[Served]
) -> None:
    result = kit_release(project, "set", "3")
    assert [(each.replica, each.in_force) for each in result.failed] == [("two", 1)]
    with pytest.raises(UnavailableError) as caught:
        result.require_passed()
    assert caught.value.message == (
        "release 2 of tiny failed on 1 of 2 replicas, which go on with release 1: version 3 answers NaN"
    )
    assert caught.value.hint == "go back everywhere: kit release tiny rollback"
    back = kit_release(project, "rollback")
    back.require_passed()
    assert shares(back.release) == [(1, 100.0)]
    assert {each.in_force for each in back.replicas} == {3}


def test_a_replica_that_takes_longer_is_pending(project: Project, replicas: list[Served]) -> None:
    replicas[0].stop()
    replicas[1].follower._store = ReleaseStore(project.state / "elsewhere")  # it sees nothing new
    result = kit_release(project, "set", "2", wait_s=0.05)
    assert [each.replica for each in result.pending] == ["two"]
    with pytest.raises(UnavailableError, match=r"not in force on 1 of 1 replicas after 0\.\d+ s"):
        result.require_passed()
    kit_release(project, "set", "1", wait_s=0.0).require_passed()


def test_a_rollback_goes_back_and_then_further(project: Project) -> None:
    for weights in (("1",), ("2",), ("1=50", "3=50")):
        kit_release(project, "set", *weights)
    assert shares(kit_release(project, "rollback", note="errors").release) == [(2, 100.0)]
    assert shares(kit_release(project, "rollback").release) == [(1, 100.0)]
    with pytest.raises(ConflictError, match="cannot go back"):
        kit_release(project, "rollback")
    chosen = kit_release(project, "rollback", to=3).release
    assert (shares(chosen), chosen.origin) == ([(1, 50.0), (3, 50.0)], "rollback 3")
    with pytest.raises(NotFoundError, match="no release 99"):
        kit_release(project, "rollback", to=99)


def test_a_rollback_stops_following_the_alias_and_says_so(project: Project) -> None:
    kit_release(project, "set", "2")
    kit_release(project, "set", "champion")
    result = kit_release(project, "rollback")
    assert result.release.follow is None
    assert "champion is no longer followed; follow it again: kit release tiny set champion" in result.warnings


def test_a_rollback_reads_neither_registry_nor_store(project: Project) -> None:
    kit_release(project, "set", "1")
    kit_release(project, "set", "2")
    project.registry().path.write_bytes(b"damaged")
    assert shares(kit_release(project, "rollback").release) == [(1, 100.0)]


def test_an_endpoint_nobody_released_is_not_found(project: Project) -> None:
    with pytest.raises(NotFoundError, match="tiny has no release yet"):
        kit_release(project, "show")
    kit_release(project, "set", "1")
    with pytest.raises(NotFoundError) as caught:
        kit_release(project, "show", endpoint="tyni")
    assert caught.value.hint == "did you mean 'tiny'? (valid: tiny)"


def test_show_tells_versions_replicas_failures_and_the_shadow(
    project: Project, replicas: list[Served], capsys: pytest.CaptureFixture[str]
) -> None:
    kit_release(project, "set", shadow="2=20", note="try it")
    result = kit_release(project, "set", "3", sticky="subject")
    show(result)
    assert "tiny: release 3 (set): 3 100 %, shadow 2" in capsys.readouterr().out
    show(kit_release(project, "show"))
    said = capsys.readouterr().out
    for text in ("release 3 (set)", "3  ", "100 %", "1 of 2", "sticky: subject", "version 3 answers NaN"):
        assert text in said
    assert "shadow: version 2" in said
    assert result.shadow is not None
    assert (result.shadow.compared, result.shadow.agreement) == (6, 4 / 6)
    assert '"in_force": 3' in to_json(result)
    told = [(each.replica, each.failed, each.reason) for each in kit_release(project, "show").replicas]
    assert told == [(each.replica, each.failed, each.reason) for each in result.replicas]


def test_history_tells_what_when_and_why_and_names_damage(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    kit_release(project, "set", "1", note="first")
    kit_release(project, "set", "1=99.9", "2=0.1")
    kit_release(project, "rollback")
    (project.state / "serve" / "releases" / "tiny" / "00000002.json").write_text("{")
    show(kit_release(project, "history"))
    said = capsys.readouterr().out
    assert "first" in said
    assert "rollback 1" in said
    assert "damaged" in said


def test_a_rollback_imports_no_engine_no_cluster_and_no_event_loop() -> None:
    command = "import sys, serve.releases.command, kit.cli.show.releasing; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {"ray", "pyarrow", "onnx", "onnxruntime", "asyncio", "boto3", "rich", "uvloop", "orjson"}
    assert not {name.partition(".")[0] for name in done.stdout.split()} & heavy
