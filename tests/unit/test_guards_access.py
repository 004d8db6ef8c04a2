"""Keys of endpoints: made once, stored hashed, followed while serving."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.cli.show import access as show
from kit.cli.show.tables import to_json
from kit.errors import ConflictError, InputError, NotFoundError, SettingsError
from kit.inference.errors import UnauthorizedError
from kit.project import Project
from kit.settings.serving import AccessSettings
from serve.guards.access import AccessResult, Keyring, access, endpoint_key, keys_path, parse_keyring
from serve.guards.following import POLL_S, Followed, Watch


@pytest.fixture
def project(tabular_project: Path) -> Project:
    return Project.open(tabular_project)


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)  # as Ray Serve does where it is loaded
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def _create(project: Project, name: str, *scopes: str, days: float | None = None) -> AccessResult:
    return access(
        project,
        AccessSettings(action="create", name=name, scope=scopes or ("infer:*",), days=days),
    )


def _list(project: Project) -> list[str]:
    return [key.name for key in access(project, AccessSettings(action="list")).keys]


def _follow(project: Project) -> Followed[Keyring]:
    path = keys_path(project.state)
    return Followed(path, parse=parse_keyring(path), absent=Keyring([]), private=True)


def _find(followed: Followed[Keyring], secret: str | None) -> object:
    given = (secret or "").encode()
    return followed.value.find(given, sha256=hashlib.sha256(given).digest())


def _becomes_true(condition: Callable[[], bool], *, within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def test_a_key_is_shown_once_and_only_its_hash_is_stored(project: Project) -> None:
    made = _create(project, "app", "infer:digits", "metrics")
    assert made.secret is not None
    assert re.fullmatch(rf"kit_{made.keys[0].id}_[\w-]{{43}}", made.secret)
    stored = keys_path(project.state).read_text()
    assert made.secret not in stored
    assert made.secret.rpartition("_")[2] not in stored
    assert hashlib.sha256(made.secret.encode()).hexdigest() in stored
    assert keys_path(project.state).stat().st_mode & 0o777 == 0o600


def test_a_list_shows_neither_keys_nor_hashes(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    made = _create(project, "app", "infer:digits", days=90)
    listed = access(project, AccessSettings(action="list"))
    show.access(listed)
    said = capsys.readouterr().out + to_json(listed) + repr(listed)
    assert "app" in said
    assert made.keys[0].id in said
    assert made.secret is not None
    assert made.secret not in said
    assert hashlib.sha256(made.secret.encode()).hexdigest() not in said


def test_a_new_key_is_printed_but_not_in_its_result_s_repr(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _create(project, "app")
    show.access(made)
    assert made.secret is not None
    assert made.secret in capsys.readouterr().out
    assert made.secret in to_json(made)
    assert made.secret not in repr(made)


def test_what_happened_to_the_keys_is_shown(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    show.access(access(project, AccessSettings(action="list")))
    assert "no keys" in capsys.readouterr().out
    _create(project, "app")
    show.access(access(project, AccessSettings(action="revoke", name="app")))
    assert "revoked app" in capsys.readouterr().out


def test_a_name_belongs_to_one_key(project: Project) -> None:
    _create(project, "app")
    with pytest.raises(ConflictError, match="'app'"):
        _create(project, "app")


def test_a_key_nobody_has_cannot_be_revoked(project: Project) -> None:
    _create(project, "app")
    with pytest.raises(NotFoundError) as caught:
        access(project, AccessSettings(action="revoke", name="apq"))
    assert "did you mean 'app'?" in (caught.value.hint or "")


@pytest.mark.parametrize("scope", ["infer", "infer:", "infer:Digits", "root", "admin ", "*", "infer:a/b"])
def test_a_scope_nobody_knows_is_refused(project: Project, scope: str) -> None:
    with pytest.raises(SettingsError, match="no scope"):
        _create(project, "app", scope)
    assert _list(project) == []


@pytest.mark.parametrize("action", ["create", "revoke"])
def test_a_key_needs_a_name(project: Project, action: str) -> None:
    with pytest.raises(SettingsError, match="needs a name"):
        access(project, AccessSettings.model_validate({"action": action}))


def test_keys_made_at_once_are_all_kept(project: Project) -> None:
    names = [f"app-{number}" for number in range(12)]
    threads = [threading.Thread(target=_create, args=(project, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(_list(project)) == sorted(names)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 1}',
        b'{"format": 1, "keys": [{}]}',
        b'{"format": 2, "keys": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_refused_by_name(project: Project, content: bytes) -> None:
    path = keys_path(project.state)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    path.chmod(0o600)
    for read in (lambda: _list(project), lambda: _create(project, "app"), lambda: _follow(project)):
        with pytest.raises(InputError, match=re.escape(str(path))):
            read()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "field, value",
    [
        ("id", "short"),
        ("sha256", "ab"),
        ("scopes", ["root"]),
        ("scopes", "admin"),
        ("expires_s", "never"),
        ("created_s", True),
        ("name", 3),
    ],
)
def test_a_damaged_field_is_refused(project: Project, field: str, value: object) -> None:
    _create(project, "app")
    path = keys_path(project.state)
    content = json.loads(path.read_bytes())
    content["keys"][0][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="damaged"):
        _follow(project)


def test_keys_others_can_read_are_refused(project: Project) -> None:
    _create(project, "app")
    keys_path(project.state).chmod(0o640)
    with pytest.raises(InputError, match="others can read") as caught:
        _follow(project)
    assert "chmod 600" in (caught.value.hint or "")
    with pytest.raises(InputError, match="others can read"):
        _list(project)


def test_a_running_replica_follows_new_and_revoked_keys(project: Project) -> None:
    followed = _follow(project)
    watch = Watch("test", look=followed.look)
    assert POLL_S < 1.0  # what is promised; a busy machine may take longer
    try:
        secret = _create(project, "app", "infer:digits").secret
        assert _becomes_true(lambda: _find(followed, secret) is not None, within_s=5.0)
        access(project, AccessSettings(action="revoke", name="app"))
        assert _becomes_true(lambda: _find(followed, secret) is None, within_s=5.0)
    finally:
        watch.close()


def test_a_file_damaged_while_serving_leaves_the_keys_and_is_told_once(
    project: Project, said: pytest.LogCaptureFixture
) -> None:
    secret = _create(project, "app").secret
    followed = _follow(project)
    path = keys_path(project.state)
    good = path.read_bytes()
    path.write_bytes(b"{")
    for _ in range(3):
        followed.look()
    assert _find(followed, secret) is not None
    assert [record.levelname for record in said.records] == ["ERROR"]
    assert str(path) in said.text
    path.write_bytes(good)
    access(project, AccessSettings(action="revoke", name="app"))
    followed.look()
    assert _find(followed, secret) is None


def test_a_file_that_cannot_be_read_while_serving_is_told_once(
    project: Project, said: pytest.LogCaptureFixture
) -> None:
    secret = _create(project, "app").secret
    followed = _follow(project)
    keys_path(project.state).unlink()
    keys_path(project.state).mkdir()
    for _ in range(3):
        followed.look()
    assert _find(followed, secret) is not None
    assert [record.levelname for record in said.records] == ["ERROR"]


def test_keys_whose_file_is_removed_count_no_more(project: Project, said: pytest.LogCaptureFixture) -> None:
    secret = _create(project, "app").secret
    followed = _follow(project)
    keys_path(project.state).unlink()
    for _ in range(2):
        followed.look()
    assert _find(followed, secret) is None
    assert [record.levelname for record in said.records] == ["WARNING"]


def test_a_change_of_equal_size_in_place_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    followed: Followed[bytes] = Followed(path, parse=bytes, absent=None)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    followed.look()
    assert followed.value == b"two"


def test_a_thread_that_follows_outlives_a_bug(said: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    again = threading.Event()

    def look() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        again.set()

    watch = Watch("test", look=look, every_s=0.005)
    try:
        assert again.wait(2.0)
    finally:
        watch.close()
    assert "a bug" in said.text


def test_an_expired_key_does_not_count(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _create(project, "app", days=1)
    followed = _follow(project)
    assert _find(followed, made.secret) is not None
    later_s = time.time() + 86_401
    monkeypatch.setattr(time, "time", lambda: later_s)
    with pytest.raises(UnauthorizedError, match="expired"):
        _find(followed, made.secret)


def test_an_id_with_another_secret_is_nobody_s(project: Project) -> None:
    one, two = _create(project, "one").secret, _create(project, "two").secret
    assert one is not None
    assert two is not None
    followed = _follow(project)
    assert _find(followed, one[:13] + two[13:]) is None
    assert _find(followed, one[:-1]) is None
    assert _find(followed, one) is not None


def test_the_endpoint_s_own_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "serve" / "key"
    key = endpoint_key(path)
    assert len(key) == 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert endpoint_key(path) == key
    path.chmod(0o644)
    with pytest.raises(InputError, match="others can read"):
        endpoint_key(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(InputError, match="shorter"):
        endpoint_key(path)
