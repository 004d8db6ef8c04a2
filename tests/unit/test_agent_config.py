"""Rules of agent.json, of restarts, and of the unit: pure parts of the agent that runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from shutil import which

import pytest

from edge.agent.config import Config, configure, parse_config, read_config
from edge.agent.running.limits import LEAST_WRONG, WINDOW, Answers, Limits, Restarts, memory_limit_bytes
from edge.agent.systemd import unit
from kit.errors import SettingsError

WHOLE = {
    "trial_s": 30,
    "poll_s": 0.5,
    "model": {"threads": 2, "timeout_s": 5, "max_memory_mb": 200, "max_restarts": 1, "max_body_mb": 0.5},
    "http": {"port": 8900, "host": "::1", "open": True},
    "inbox": {"in": "in", "out": "/data/out", "failed": "failed"},
    "telemetry": {"window_s": 10, "max_mb": 1, "keep_inputs": 5},
    "source": {"server": "https://fleet.example.org"},
}


def test_a_file_that_is_not_there_leaves_all_as_it_is(tmp_path: Path) -> None:
    assert read_config(tmp_path) == Config()


def test_every_setting_is_read(tmp_path: Path) -> None:
    found = parse_config(WHOLE, folder=tmp_path)
    assert (found.trial_s, found.poll_s, found.window_s, found.telemetry_mb) == (30.0, 0.5, 10.0, 1.0)
    assert (found.limits.threads, found.limits.timeout_s, found.limits.max_samples) == (2, 5, 5)
    assert found.limits.max_body_bytes == 1 << 19
    assert found.http is not None
    assert (found.http.port, found.http.host, found.http.open) == (8900, "::1", True)
    assert found.inbox is not None
    assert (found.inbox.incoming, found.inbox.results) == (tmp_path / "in", Path("/data/out"))
    assert found.source == WHOLE["source"]


@pytest.mark.parametrize(
    "value, said, hint",
    [
        ({"trials_s": 1}, "agent.json has no setting 'trials_s'", "did you mean 'trial_s'"),
        ({"model": {"thread": 1}}, "no setting 'model.thread'", "did you mean 'threads'"),
        (
            {"model": {"threads": True}},
            "model.threads = true is not a whole number from 1 to 64",
            "configure",
        ),
        ({"model": {"timeout_s": 0}}, "model.timeout_s = 0 is not a number from 0.05", "configure"),
        ({"model": []}, "model = [] is not an object", "configure"),
        ({"trial_s": float("nan")}, "trial_s = NaN is not a number", "configure"),
        ({"http": {}}, "http has no port", "http.port"),
        ({"http": {"port": 80, "host": "0.0.0.0"}}, "not an address of this machine alone", "127.0.0.1"),
        ({"http": {"port": "80"}}, 'http.port = "80" is not a whole number', "configure"),
        ({"inbox": {"in": "a", "out": "b"}}, "inbox has no 'failed'", "inbox.failed"),
        ({"inbox": {"in": "a", "out": "a", "failed": "b"}}, "three different folders", "inbox.in"),
        ({"source": {"servr": "https://a"}}, "servr", "server"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_one_that_was_meant(
    value: dict, said: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_config(value, folder=tmp_path)
    assert said in refused.value.message
    assert hint in (refused.value.hint or "")


def test_changes_are_made_together_or_not_at_all(tmp_path: Path) -> None:
    configure(tmp_path, ["trial_s=30", "model.timeout_s=5", "source.server=https://fleet.example.org"])
    assert json.loads((tmp_path / "agent.json").read_text()) == {
        "trial_s": 30,
        "model": {"timeout_s": 5},
        "source": {"server": "https://fleet.example.org"},
    }
    for wrong in (["trial_s=5", "model.thread=1"], ["trial_s"], ["=5"], ["trial_s.x=1"]):
        with pytest.raises(SettingsError):
            configure(tmp_path, wrong)
    assert read_config(tmp_path).trial_s == 30.0
    assert configure(tmp_path, ["model.timeout_s=", "trial_s=", "source.server="]) == {}
    (tmp_path / "agent.json").write_text("{")
    with pytest.raises(SettingsError, match=r"agent\.json"):
        read_config(tmp_path)


def test_a_process_is_restarted_so_many_times_in_so_long_and_ever_later() -> None:
    restarts = Restarts(Limits(max_restarts=3, restarts_within_s=60.0))
    waits = [restarts.ended(now_s=second) for second in (0.0, 10.0, 20.0)]
    assert waits == [0.1, 0.2, 0.4]
    assert restarts.ended(now_s=61.0) == 0.4  # the first is long ago
    assert restarts.ended(now_s=62.0) is None
    assert restarts.total == 5
    assert [restarts.last_resort() for _ in range(7)] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert restarts.ended(now_s=1e6) == 0.1
    assert Restarts(Limits(max_restarts=0)).ended(now_s=0.0) is None


def test_wrong_answers_are_a_failure_by_their_share_of_the_last_ones() -> None:
    answers = Answers(Limits(max_wrong=0.5))
    assert not any(answers.wrong() for _ in range(LEAST_WRONG - 1))
    assert answers.wrong()
    answers = Answers(Limits(max_wrong=0.5))
    for _ in range(1000):
        answers.right()
    fails = [answers.wrong() for _ in range(WINDOW)]
    assert fails.index(True) == WINDOW // 2  # the 51st of the last hundred
    never = Answers(Limits(max_wrong=1.0))
    assert not any(never.wrong() for _ in range(1000))
    mixed = Answers(Limits(max_wrong=0.5))
    assert not any(mixed.right() or mixed.wrong() for _ in range(1000))


def test_memory_is_bounded_by_what_was_set_or_what_the_bundle_needs() -> None:
    assert memory_limit_bytes(Limits(max_memory_mb=100.0), needed_mb=500.0) == 100_000_000
    assert memory_limit_bytes(Limits(), needed_mb=None) == 256_000_000
    assert memory_limit_bytes(Limits(), needed_mb=200.0) == 600_000_000


def test_the_unit_is_one_that_systemd_accepts(tmp_path: Path) -> None:
    text = unit(tmp_path, user="root", writable=(tmp_path / "data",))
    lines = text.splitlines()
    for line in ("Type=notify", "WatchdogSec=60", "Restart=always", "NoNewPrivileges=yes", "User=root"):
        assert line in lines
    assert f"ReadWritePaths={tmp_path.resolve()} {tmp_path.resolve() / 'data'}" in lines
    odd = tmp_path / "50%"
    odd.mkdir()
    with pytest.raises(SettingsError, match="a character that a unit cannot"):
        unit(odd)
    if which("systemd-analyze") is None:
        pytest.skip("systemd is not on this machine")
    path = tmp_path / "kit-agent.service"
    path.write_text(text)
    ended = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in ended.stderr.splitlines() if "kit-agent" in line]
    assert said == [], said
