"""What is changed in HAProxy's file before HAProxy reads it."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from serve.haproxy import Edits, socket_path, write_launcher, write_pem

#: The lines of Ray's file that matter here, as Ray 2.60 writes them.
RAYS = """global
    log 127.0.0.1:514 local0 info
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 40s
    timeout http-keep-alive 90s
    log global
    option httplog
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend prometheus
    bind :9101
    mode http
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind {address}
    use_backend http-kit if {{ path_beg / }}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
backend http-kit
    server SERVE_REPLICA_kit-endpoint-gtr62sg3 127.0.0.1:30000 check observe layer4 error-limit 3
    server SERVE_REPLICA_kit-endpoint-on64v9ev 127.0.0.1:30001 check observe layer4 error-limit 3
    server SERVE_PROXY_ACTOR-fallback-15b8868e 127.0.0.1:37853 check backup
listen stats
  bind *:8404
  stats enable
"""


def edited(folder: Path, edits: Edits, *, address: str = "127.0.0.1:8000", rays: str = RAYS) -> str:
    """Have the launcher edit the file and HAProxy check what came out of it."""
    launcher = write_launcher(folder, edits)
    file = folder / "haproxy.cfg"
    file.write_text(rays.format(folder=folder, address=address))
    (folder / "500.http").write_text("HTTP/1.1 500 no\r\n\r\n")
    said = subprocess.run([launcher, "-c", "-f", file], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return file.read_text()


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "0.0.0.0:8000", "::1:8000", ":::8000"])
def test_side_pages_listen_on_this_machine_alone_and_the_endpoint_where_it_was_asked_to(
    tmp_path: Path, address: str
) -> None:
    binds = [
        line.split()[1] for line in edited(tmp_path, Edits(), address=address).splitlines() if "bind " in line
    ]
    assert binds == ["127.0.0.1:9101", address, "127.0.0.1:8404"]


def test_a_file_that_would_still_listen_everywhere_unasked_is_not_served(tmp_path: Path) -> None:
    launcher = write_launcher(tmp_path, Edits())
    file = tmp_path / "haproxy.cfg"
    file.write_text("frontend other\n    bind *:9101 alpn h2\n")
    assert subprocess.run([launcher, "-c", "-f", file], capture_output=True, check=False).returncode == 1


def test_errors_have_the_protocols_shape_and_unknown_replicas_are_no_404(tmp_path: Path) -> None:
    lines = edited(tmp_path, Edits()).splitlines()
    pages = {line.split()[1]: Path(line.split()[2]) for line in lines if "errorfile" in line}
    own = {status: f"{status}.http" for status in ("400", "403", "404", "408", "503", "504")}
    assert {status: page.name for status, page in pages.items()} == {**own, "502": "503.http"}
    for page in pages.values():
        head, _, body = page.read_bytes().partition(b"\r\n\r\n")
        assert json.loads(body)["error"]
        assert (b"retry-after" in head) == head.startswith(b"HTTP/1.1 50")
    assert "    http-request deny deny_status 503" in lines
    assert not any("status 404" in line and "return" in line for line in lines)


def test_replicas_are_asked_at_their_own_sockets_and_at_rays_ports_whether_they_are_well(
    tmp_path: Path,
) -> None:
    servers = [
        line.split() for line in edited(tmp_path, Edits()).splitlines() if line.lstrip().startswith("server ")
    ]
    for words, replica, port in zip(servers, ("gtr62sg3", "on64v9ev"), ("30000", "30001"), strict=False):
        assert words[2] == f"unix@{socket_path(tmp_path, replica)}"
        assert words[3:8] == ["check", "addr", "127.0.0.1", "port", port]
    assert servers[2][2:] == ["127.0.0.1:37853", "check", "backup"]  # Ray's own, where no replica is there


def test_nothing_is_logged_per_request_and_slow_headers_end(tmp_path: Path) -> None:
    text = edited(tmp_path, Edits())
    assert "httplog" not in text
    assert "local0" not in text
    assert "timeout http-request 30s" in text


def test_a_model_of_its_own_deployment_has_the_same_address(tmp_path: Path) -> None:
    text = edited(tmp_path, Edits(own=("digits", "a.b")))
    rule = r"replace-path ^/predict/(digits|a\.b)(/versions/[^/]+)?$ /v2/models/\1\2/predict"
    assert rule in text


def test_tls_is_served_and_never_plain_http_where_it_was_asked_for(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout"
    subprocess.run(["openssl", *words.split(), key, "-out", cert], check=True, capture_output=True)
    pem = write_pem(tmp_path, cert=cert, key=key)
    assert stat.S_IMODE(pem.stat().st_mode) == 0o600
    assert f"bind 127.0.0.1:8000 ssl crt {pem} ssl-min-ver TLSv1.2" in edited(tmp_path, Edits(pem=pem))
    launcher = write_launcher(tmp_path, Edits(pem=pem))
    file = tmp_path / "haproxy.cfg"
    file.write_text(
        RAYS.format(folder=tmp_path, address="127.0.0.1:8000").replace("http_frontend", "renamed")
    )
    assert subprocess.run([launcher, "-c", "-f", file], capture_output=True, check=False).returncode == 1
