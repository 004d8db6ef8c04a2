from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.errors import InputError, SettingsError
from kit.project import Project
from kit.query import query
from kit.settings import QuerySettings


class Locked(http.server.ThreadingHTTPServer):
    """An endpoint that notes what it is shown and lets nobody in."""

    shown: list[str | None]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Locked)
        self.server.shown.append(self.headers["authorization"])
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Locked]:
    monkeypatch.setenv("NO_PROXY", "*")
    with Locked(("0.0.0.0", 0), _Handler) as server:
        server.shown = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def project(digits_project: Path) -> Project:
    project = Project.open(digits_project)
    (project.state / "serve").mkdir(parents=True)
    (project.state / "serve" / "key").write_text("the-projects-own\n", encoding="ascii")
    return project


def ask(project: Project, url: str, *, api_key: Path | None = None) -> None:
    key = None if api_key is None else str(api_key)
    query(project, QuerySettings(model="tiny", input="data/digits.parquet", url=url, api_key=key))


def test_the_projects_key_is_shown_to_this_machine_alone(project: Project, endpoint: Locked) -> None:
    for host in ("127.0.0.1", "LOCALHOST", "127.0.0.2"):  # the last stands for any other machine
        with pytest.raises(InputError, match="asks for its key") as caught:
            ask(project, f"http://{host}:{endpoint.server_port}")
        assert "--api-key" in str(caught.value.hint)
    assert endpoint.shown == ["Bearer the-projects-own", "Bearer the-projects-own", None]


def test_a_key_that_is_named_is_shown_to_any_host(project: Project, endpoint: Locked, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("named", encoding="ascii")
    with pytest.raises(InputError, match="asks for its key"):
        ask(project, f"http://127.0.0.2:{endpoint.server_port}", api_key=key)
    assert endpoint.shown == ["Bearer named"]


@pytest.mark.parametrize(
    "url",
    [
        *("http://h:abc", "http://[bad", "http://", "http://h:99999", "http://h:0", "http://a..b"),
        *(f"http://{'a' * 70}", "http://h h", "http://127.0.0.1\\.b", "http://h\n"),
    ],
)
def test_a_malformed_address_is_refused_in_one_sentence(project: Project, url: str) -> None:
    with pytest.raises(SettingsError, match="is not an address") as caught:
        ask(project, url)
    assert "\n" not in caught.value.message
    assert caught.value.hint == "write --url http://HOST:PORT"


def test_an_address_with_a_password_is_refused_and_not_shown(project: Project) -> None:
    with pytest.raises(
        SettingsError, match=r"the address of 127\.0\.0\.1 holds a name or password"
    ) as caught:
        ask(project, "http://me:secret@127.0.0.1:8000")
    assert "secret" not in caught.value.message
