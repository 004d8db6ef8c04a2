"""The report in a real browser: nothing is requested, nothing is refused, everything is there."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.project import Project
from kit.report import report
from kit.settings import ReportSettings

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install -y chromium")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--enable-logging=stderr", "--v=0"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # the browser's own calls home end here
)
DIGEST = "ab" * 32
RECORDS: dict[str, dict[str, Any]] = {
    "train": {
        "model": "digits",
        "number": 1,
        "digest": DIGEST,
        "task": "classification",
        "classes": ["<img src=x>", "one"],
        "epochs": [
            {"epoch": epoch, "train_loss": 1 / epoch, "validation_loss": 1.1 / epoch} for epoch in (1, 2, 3)
        ],
        "best_epoch": 3,
        "metrics": {"accuracy": 0.975},
        "gates": [{"metric": "accuracy", "value": 0.975, "bound": 0.96, "passed": True}],
        "promoted": True,
        "n_rows": {"train": 100, "test": 40},
        "parity": 7e-7,
        "confusion": [[19, 1], [0, 20]],
    },
    "predict": {
        "model": "digits@1",
        "digest": DIGEST,
        "engine": "onnxruntime",
        "output": "s3://bucket/a-very-long-name/" + "x" * 200,
        "rows_in": 20_000_000,
        "rows_out": 20_000_000,
        "n_parts": 200,
        "seconds": 57.0,
        "rows_per_second": 350_000.0,
        "labels": {"zero": 12_000_000, "one": 8_000_000},
        "throughput": {"bucket_s": 1.0, "rows_per_second": [350_000.0] * 57},
        "stages": {"read": {"seconds": 20.0, "share": 0.2}, "infer": {"seconds": 80.0, "share": 0.8}},
        "reasons": {"r" * 400: 3},
        "drift": [
            {
                **{"name": "confidence", "role": "answer", "index": 0.3, "threshold": 0.2, "drifted": True},
                **{"edges": [0.0, 0.5, 1.0], "reference": [0, 10, 90, 0], "observed": [0, 40, 60, 0]},
            },
            {"name": "c" * 300, "index": 0.1, "threshold": 0.2},
        ],
    },
    "export": {
        "model": "digits@1",
        "digest": DIGEST,
        "reference": {
            "metric": "accuracy",
            "value": 0.975,
            "size_bytes": 327_700,
            "latency_ms": {"p50": 0.04, "p95": 0.09},
        },
        "targets": [
            {
                "target": "litert-int8",
                "metric": "accuracy",
                "value": 0.97,
                "agreement": 0.995,
                "output_error": 0.01,
                "n_rows": 40,
                "size_bytes": 108_000,
                "latency_ms": {"p50": 0.031, "p95": 0.05},
                "passed": False,
                "reason": "latency 0.050 ms is over max_latency_ms = 0.01",
                "note": "n" * 300,
                "bundle": None,
                "bundle_digest": None,
                "ladder": [
                    {"recipe": "int8" * 30, "says": "s" * 300, "reason": "r" * 300, "kept": ["k" * 300] * 20}
                ],
                "confusion": {"labels": ["<img src=x>", "one" * 50], "counts": [[19, 1], [0, 20]]},
                "errors": {"edges": [-0.1, 0.0, 0.1], "counts": [60, 20]},
                "layers": [{"name": "l" * 300, "kind": "K" * 100, "error": 0.02, "added": 0.01}],
            }
        ],
    },
    "demo": {
        "n_rows": 40,
        "rows": [
            {
                "place": "float model",
                "accuracy": 0.975,
                "agreement": 1.0,
                "size_bytes": None,
                "latency_ms": None,
            }
        ],
    },
}


@pytest.fixture
def page(tmp_path: Path, project: Project, making_records: dict[str, Any]) -> Path:
    """A report with a drawing of every kind, and names too long for a column."""
    making_records["prepare"]["columns"][1]["name"] = "width" * 50
    making_records["tune"]["trials"][3]["reason"] = "m" * 300
    for trial in making_records["tune"]["trials"]:
        trial["parameters"]["p" * 100] = "v" * 100
    making_records["evaluate"]["importance"][0]["column"] = "width" * 50
    making_records["compress"]["reason"] = "r" * 300
    for kind, record in {**RECORDS, **making_records}.items():
        project.write_record(kind, "one", record)
    return report(project, ReportSettings(output=str(tmp_path / "site" / "report.html"))).path


@pytest.fixture
def asked(page: Path) -> Iterator[tuple[str, list[str]]]:
    """A server of the page's folder: its address, and every path it was asked for."""
    paths: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(page.parent))

        def log_message(self, format: str, *arguments: Any) -> None:
            paths.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", paths
        server.shutdown()
        thread.join()


def browse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the browser with a new profile."""
    assert CHROMIUM is not None
    return subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )


def console(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def requests_of(log: Path, *, origin: str) -> list[str]:
    """Give the addresses a page asked for, wherever they lead; the browser's own requests left out."""
    pattern = rf'"initiator":"{re.escape(origin)}".*?"url":"([^"]+)"'
    return re.findall(pattern, log.read_text(encoding="utf-8"))


def test_the_browser_asks_for_the_page_and_nothing_else(tmp_path: Path, asked: tuple[str, list[str]]) -> None:
    address, paths = asked
    log = tmp_path / "net.json"
    done = browse(tmp_path, f"--log-net-log={log}", "--dump-dom", f"{address}report.html")
    assert console(done) == []
    assert paths == ["/report.html"]
    assert f"{address}report.html" in log.read_text(encoding="utf-8")
    assert requests_of(log, origin=address.rstrip("/")) == []


def test_the_browser_shows_every_section_and_drawing(tmp_path: Path, page: Path) -> None:
    done = browse(tmp_path, "--dump-dom", page.as_uri())
    assert console(done) == []
    making = ["data", "study", "training", "evaluation", "compression"]
    found = re.findall(r'<section id="(\w+)">', done.stdout)
    assert found == ["agreement", *making, "export", "batch"]
    assert done.stdout.count('class="plot" role="img"') == 21
    assert "<img" not in done.stdout
    assert "20,000,000" in done.stdout


ADDED = '<img src="other.png"><script src="http://elsewhere.invalid/other.js"></script></main>'


def test_the_details_of_a_target_open_without_a_script(tmp_path: Path, page: Path) -> None:
    """In a copy without the policy, which refuses the script that looks and clicks."""
    text = re.sub(r"<meta http-equiv=[^>]+>", "", page.read_text(encoding="utf-8"))
    copy = page.with_name("opened.html")
    hidden = "document.querySelector('details figure').checkVisibility()"
    clicked = f"const before = {hidden}; document.querySelector('summary').click()"
    script = f"<script>onload = () => {{ {clicked}; document.title = [before, {hidden}].join(' ') }}</script>"
    copy.write_text(text + script, encoding="utf-8")
    done = browse(tmp_path, "--dump-dom", copy.as_uri())
    assert "<title>false true</title>" in done.stdout


def test_the_policy_refuses_what_somebody_adds_to_the_page(
    tmp_path: Path, page: Path, asked: tuple[str, list[str]]
) -> None:
    address, paths = asked
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", ADDED), encoding="utf-8")
    done = browse(tmp_path, "--dump-dom", f"{address}report.html")
    assert len(console(done)) >= 2
    assert paths == ["/report.html"]


def test_a_page_without_the_policy_would_be_caught(
    tmp_path: Path, page: Path, asked: tuple[str, list[str]]
) -> None:
    """The checks above can fail: both requests are seen when nothing refuses them."""
    address, paths = asked
    text = re.sub(r"<meta http-equiv=[^>]+>", "", page.read_text(encoding="utf-8"))
    page.write_text(text.replace("</main>", ADDED), encoding="utf-8")
    log = tmp_path / "net.json"
    browse(tmp_path, f"--log-net-log={log}", "--dump-dom", f"{address}report.html")
    assert "/other.png" in paths
    assert "http://elsewhere.invalid/other.js" in requests_of(log, origin=address.rstrip("/"))


def test_a_phone_scrolls_tables_and_never_the_page(tmp_path: Path, page: Path) -> None:
    """A copy without the policy, all of it open, in a frame as wide as a phone: a window is wider."""
    text = re.sub(r"<meta http-equiv=[^>]+>", "", page.read_text(encoding="utf-8"))
    text = text.replace("<details>", "<details open>")
    page.with_name("measured.html").write_text(text, encoding="utf-8")
    frame = page.with_name("frame.html")
    measure = "[inner.innerWidth, inner.document.documentElement.scrollWidth].join(' ')"
    frame.write_text(
        '<iframe style="width:360px;height:800px;border:0" src="measured.html"></iframe>'
        f"<script>onload = () => {{ const inner = frames[0]; document.title = {measure} }}</script>"
    )
    done = browse(tmp_path, "--allow-file-access-from-files", "--dump-dom", frame.as_uri())
    found = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert found is not None, done.stdout[:500]
    assert (int(found[1]), int(found[2])) == (360, 360)
