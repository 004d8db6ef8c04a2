"""Rules of rotating and revoking keys: what goes on being believed, by whom, and what a kill leaves."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kit.cli import main
from kit.errors import ConflictError, InputError, NotFoundError, SettingsError, VerificationError
from kit.keypair import generate_key, key_id, public_of
from kit.keyring import open_keyring
from kit.keys import KeysResult, keys
from kit.project import Project
from kit.settings import KeysSettings
from kit.signing import sign, verify

NOW_S = 1_800_000_000
DIGEST = "a" * 64


@pytest.fixture
def project(
    tmp_path: Path, project_templates: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Project:
    shutil.copy(project_templates["digits"] / "kit.toml", tmp_path)
    monkeypatch.setattr(time, "time", lambda: float(NOW_S))
    opened = Project.open(tmp_path)
    keys(opened, KeysSettings(action="init"))
    return opened


def rotate(project: Project, **settings: Any) -> KeysResult:
    return keys(project, KeysSettings(action="rotate", **settings))


def revoke(project: Project, wanted: str) -> KeysResult:
    return keys(project, KeysSettings(action="revoke", key_id=wanted))


def signature(project: Project) -> bytes:
    """Sign as train does."""
    return sign({"model.onnx": DIGEST}, name="digits", key=project.signing_key())


def keyring_bytes(project: Project) -> bytes:
    return (project.state / "keys" / "keyring.json").read_bytes()


def with_trusted(project: Project, place: str) -> Project:
    toml = project.folder / "kit.toml"
    text = toml.read_text(encoding="utf-8")
    toml.write_text(f'{text}\n[signing]\ntrusted = "{place}"\n', encoding="utf-8")
    return Project.open(project.folder)


def test_a_new_key_signs_and_what_the_old_one_signed_is_believed(project: Project) -> None:
    old_pem = public_of(project.signing_key())
    before = signature(project)
    rotated = rotate(project)
    old, new = key_id(old_pem), key_id(public_of(project.signing_key()))
    assert (rotated.key_id, rotated.subject, rotated.counter) == (new, old, 1)
    assert old != new
    assert verify(before, trusted=project.trusted()).key_id == old
    assert verify(signature(project), trusted=project.trusted()).key_id == new
    assert rotated.public.read_bytes() == public_of(project.signing_key())
    assert rotated.kept is not None
    assert public_of(rotated.kept) == rotated.kept.with_suffix(".pub").read_bytes() == old_pem
    assert [path.stat().st_mode & 0o777 for path in (rotated.kept, rotated.private)] == [0o600, 0o600]
    assert sorted(path.name for path in rotated.private.parent.iterdir()) == [
        ".keys.lock",
        "keyring.json",
        f"signing-{old[:12]}.pem",
        f"signing-{old[:12]}.pub",
        "signing.pem",
        "signing.pub",
    ]


def test_a_device_that_has_missed_every_keyring_takes_the_newest(project: Project) -> None:
    pinned = public_of(project.signing_key())
    rotate(project)
    rotate(project)
    revoke(project, key_id(pinned))
    keyring = open_keyring(keyring_bytes(project), trusted=[pinned])
    assert keyring.counter == 3
    assert keyring.revoked == (key_id(pinned),)
    assert pinned not in keyring.known()
    assert public_of(project.signing_key()) in keyring.trusted(NOW_S)


def test_without_the_earlier_private_keys_only_devices_in_the_know_take_it(project: Project) -> None:
    pinned = public_of(project.signing_key())
    kept = rotate(project).kept
    assert kept is not None
    kept.unlink()
    second = public_of(project.signing_key())
    rotate(project)
    assert open_keyring(keyring_bytes(project), trusted=[second]).counter == 2
    with pytest.raises(VerificationError, match="not trusted"):
        open_keyring(keyring_bytes(project), trusted=[pinned])


def test_an_old_key_can_be_given_an_end(project: Project) -> None:
    old = key_id(public_of(project.signing_key()))
    rotate(project, not_after=1.5)
    end_s = NOW_S + 129_600
    keyring = project.keyring()
    assert keyring is not None
    assert [entry.not_after_s for name, entry in keyring.keys.items() if name == old] == [end_s]
    assert (len(keyring.trusted(end_s)), len(keyring.trusted(end_s + 1))) == (2, 1)
    assert len(project.trusted()) == 2
    rotate(project)
    later = project.keyring()
    assert later is not None
    assert later.keys[old].not_after_s == end_s
    assert sorted(str(entry.not_after_s) for entry in later.keys.values()) == [str(end_s), "None", "None"]


def test_the_first_keyring_holds_every_key_the_project_trusts(project: Project, tmp_path: Path) -> None:
    """It takes the place of the pinned keys, and a colleague's key may be among those."""
    colleague = generate_key(tmp_path / "colleague.pem")
    (project.state / "keys" / "colleague.pub").write_bytes(colleague)
    rotate(with_trusted(project, ".kit/keys"))
    keyring = project.keyring()
    assert keyring is not None
    assert colleague in keyring.known()
    assert len(keyring.keys) == 3


def test_a_revoked_key_is_believed_no_more_wherever_its_public_half_lies(project: Project) -> None:
    before = signature(project)
    old = str(rotate(project).subject)
    result = revoke(project, old[:8])
    assert (result.subject, result.counter) == (old, 2)
    assert [(key.signs, key.why_not) for key in result.keys] == [(True, ""), (False, "is revoked")]
    for opened in (project, with_trusted(project, ".kit/keys")):
        assert old not in map(key_id, opened.trusted())
        with pytest.raises(VerificationError, match=f"by key {old[:12]}, which is not trusted"):
            verify(before, trusted=opened.trusted())
        verify(signature(opened), trusted=opened.trusted())


def test_what_cannot_be_revoked_is_refused_and_changes_nothing(project: Project) -> None:
    own = key_id(public_of(project.signing_key()))
    with pytest.raises(InputError, match=f"key {own[:12]} is the one that signs"):
        revoke(project, own)
    assert project.keyring() is None
    old = str(rotate(project).subject)
    revoke(project, old)
    written = keyring_bytes(project)
    now = key_id(public_of(project.signing_key()))
    for wanted, error, said in (
        (now, InputError, "is the one that signs"),
        (old, ConflictError, "is revoked already"),
        ("0" * 64, NotFoundError, "no key 0000"),
    ):
        with pytest.raises(error, match=said):
            revoke(project, wanted)
    assert keyring_bytes(project) == written


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"action": "revoke"}, "revoke needs the id of a key"),
        ({"action": "rotate", "key_id": DIGEST}, "rotate takes no"),
        ({"action": "revoke", "key_id": "../../x"}, "key_id"),
        ({"action": "revoke", "key_id": "abc"}, "key_id"),
        ({"action": "rotate", "not_after": -1}, "not_after"),
        ({"action": "rotate", "not_after": float("nan")}, "not_after"),
        ({"action": "show", "not_after": 3.0}, "not_after = 3.0 does nothing"),
    ],
)
def test_flags_that_mean_nothing_are_refused(project: Project, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        project.command("keys", KeysSettings, settings)


def test_a_changed_keyring_stops_everything_that_believes_keys(project: Project) -> None:
    rotate(project)
    path = project.state / "keys" / "keyring.json"
    path.write_bytes(path.read_bytes().replace(b'"sig": "M', b'"sig": "N'))
    for ask in (project.trusted, lambda: rotate(project)):
        with pytest.raises(VerificationError, match=r"keyring\.json is not believed"):
            ask()


def test_a_keyring_the_project_would_not_believe_is_not_written(project: Project, tmp_path: Path) -> None:
    generate_key(tmp_path / "other.pem")
    opened = with_trusted(project, "other.pub")
    own = public_of(project.signing_key())
    with pytest.raises(VerificationError, match="would not be believed here") as caught:
        rotate(opened)
    assert caught.value.hint is not None
    assert "signing.pub to what [signing] trusted names" in caught.value.hint
    assert opened.keyring() is None
    assert public_of(opened.signing_key()) == own


def test_one_command_at_a_time_changes_the_keys(project: Project) -> None:
    with (project.state / "keys" / ".keys.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="another command changes the keys"):
            rotate(project)
    assert rotate(project).counter == 1


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], None]]:
    """Let a process change so many names on the disk, and then die; None lets it live."""
    left: list[int | None] = [None]

    def wrapped(change: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            if left[0] is not None:
                if left[0] <= 0:
                    raise Killed
                left[0] -= 1
            return change(*arguments, **more)

        return run

    for name in ("replace", "link", "unlink"):
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))

    def after(n_changes: int | None) -> None:
        left[0] = n_changes

    yield after
    left[0] = None


def test_killed_at_any_point_a_rotation_leaves_a_usable_project_and_can_be_run_again(
    project: Project, dying: Callable[[int | None], None], tmp_path: Path
) -> None:
    folder, saved = project.signing_key().parent, tmp_path / "saved"
    shutil.copytree(folder, saved)
    pinned, before = public_of(project.signing_key()), signature(project)

    def check() -> None:
        signs = key_id(public_of(project.signing_key()))
        assert verify(signature(project), trusted=project.trusted()).key_id == signs
        assert verify(before, trusted=project.trusted()).key_id == key_id(pinned)
        assert keys(project, KeysSettings(action="show")).key_id == signs
        if project.keyring() is not None:
            keyring = open_keyring(keyring_bytes(project), trusted=[pinned])
            assert {signs, key_id(pinned)} <= set(keyring.keys)
        else:
            assert signs == key_id(pinned)
        assert not [path for path in folder.glob("*.pem") if path.stat().st_mode & 0o077]

    killed, n_changes = True, 0
    while killed:
        dying(n_changes)
        try:
            rotate(project, not_after=30)
            killed = False
        except Killed:
            dying(None)
            check()
            assert rotate(project).key_id != key_id(pinned)
        dying(None)
        check()
        assert not list(folder.glob("signing-next*"))
        n_changes += 1
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)
    # three changes for each of four files that are made, one for each of three that are replaced, two more
    assert n_changes > 16


def test_a_key_that_was_revoked_before_it_ever_signed_does_not_come_back(
    project: Project, dying: Callable[[int | None], None]
) -> None:
    n_changes = 0
    while project.keyring() is None:  # until it dies between the keyring and the new key
        n_changes += 1
        dying(n_changes)
        with pytest.raises(Killed):
            rotate(project)
        dying(None)
    following = project.signing_key().with_name("signing-next.pem")
    unborn = key_id(public_of(following))
    assert revoke(project, unborn).counter == 2
    assert rotate(project).key_id != unborn
    assert unborn not in map(key_id, project.trusted())


def test_the_command_says_what_each_key_is_good_for(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    first = key_id(public_of(project.signing_key()))
    assert main(["keys", "rotate", "--not-after", "30"]) == 0
    said = capsys.readouterr().out
    assert f"before:  .kit/keys/signing-{first[:12]}.pem" in said
    assert "signs, counts\n" in said
    assert f"{first[:16]}   counts until 2027-02-14 08:00:00 UTC" in said
    assert main(["keys", "revoke", first[:16]]) == 0
    assert f"revoked {first}\nkeyring 2: .kit/keys/keyring.json" in capsys.readouterr().out
    assert main(["keys", "show", "--json"]) == 0
    assert '"why_not": "is revoked"' in capsys.readouterr().out
