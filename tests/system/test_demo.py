"""What the demo promises: the same answers everywhere, small bundles, one page, and the README's output."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

pytestmark = pytest.mark.timeout(900)  # the whole path, from the data to a device
ROOT = Path(__file__).parents[2]
DEVICE_PYTHON = ROOT / ".venv-device" / "bin" / "python"
MAX_BUNDLE_BYTES = 1_000_000


@dataclass(frozen=True)
class Demo:
    """A demo that has run."""

    output: str
    project: Path
    rows: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    if not DEVICE_PYTHON.exists():
        pytest.skip("the device's environment is missing: make setup")
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "kit.cli.demo", "--folder", folder, "--device-python", DEVICE_PYTHON],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    record = json.loads((folder / "digits" / ".kit" / "runs" / "demo" / "latest.json").read_text())
    return Demo(done.stdout, folder / "digits", {row["place"]: row for row in record["rows"]})


@pytest.mark.parametrize("place", ["ONNX (onnxruntime)", "batch (Ray)", "HTTP (Ray Serve)"])
def test_onnx_batch_and_http_give_every_row_the_float_models_label(demo: Demo, place: str) -> None:
    assert demo.rows[place]["agreement"] == 1.0


@pytest.mark.parametrize("target", ["litert-int8", "openvino-int8"])
def test_a_device_is_within_a_point_of_the_float_model(demo: Demo, target: str) -> None:
    float_model = demo.rows["float model (torch)"]["accuracy"]
    assert float_model > 0.95
    assert abs(demo.rows[f"device ({target})"]["accuracy"] - float_model) <= 0.01


@pytest.mark.parametrize("target", ["litert-int8", "openvino-int8"])
def test_a_bundle_is_under_a_megabyte(demo: Demo, target: str) -> None:
    assert (demo.project / "bundles" / f"digits-{target}.bundle").stat().st_size < MAX_BUNDLE_BYTES


def test_the_device_has_neither_ray_nor_torch() -> None:
    if not DEVICE_PYTHON.exists():
        pytest.skip("the device's environment is missing: make setup")
    names = ("ray", "torch", "pyarrow", "onnx")
    code = f"import importlib.util as u; print([name for name in {names} if u.find_spec(name)])"
    done = subprocess.run(
        [DEVICE_PYTHON, "-c", code], capture_output=True, text=True, check=True, timeout=500
    )
    assert done.stdout.strip() == "[]"


def test_the_demo_ends_with_one_table_and_the_report(demo: Demo) -> None:
    screen = demo.output[demo.output.rindex("the same 360 held-out rows") :]
    for place in demo.rows:
        assert place in screen
    assert str(demo.project / "report.html") in screen
    assert "<svg" in (demo.project / "report.html").read_text(encoding="utf-8")


def test_a_folder_of_images_is_answered_like_the_table_and_a_damaged_one_set_aside(
    demo: Demo, tmp_path: Path
) -> None:
    table = parquet.read_table(demo.project / "data" / "digits.parquet").slice(0, 60)
    (tmp_path / "in").mkdir()
    for row, pixels in enumerate(table["image"].to_pylist()):
        Image.fromarray(np.array(pixels, dtype=np.uint8).reshape(8, 8)).save(
            tmp_path / "in" / f"{row:02d}.png"
        )
    whole = (tmp_path / "in" / "07.png").read_bytes()
    (tmp_path / "in" / "07.png").write_bytes(whole[:40])
    words = [sys.executable, "-m", "kit", "predict", "digits", "--project", str(demo.project), "--output"]
    first = [*words, str(tmp_path / "out"), "--input", str(tmp_path / "in"), "--columns", "file"]
    subprocess.run([*first, "--max-bad-rows", "1"], check=True, capture_output=True, timeout=500)
    answers = parquet.read_table(tmp_path / "out")
    expected = parquet.read_table(demo.project / "predictions")["label"].to_pylist()[:60]
    assert answers["file"].to_pylist() == [f"{row:02d}.png" for row in range(60) if row != 7]
    assert answers["label"].to_pylist() == expected[:7] + expected[8:]
    aside = parquet.read_table(tmp_path / "out" / "_quarantine")
    assert aside["origin_file"].to_pylist() == ["07.png"]
    (tmp_path / "in" / "07.png").write_bytes(whole)
    again = [*words, str(tmp_path / "out"), "--retry-quarantine"]
    subprocess.run(again, check=True, capture_output=True, timeout=500)
    answers = parquet.read_table(tmp_path / "out").sort_by("file")
    assert answers["label"].to_pylist() == expected


def test_nothing_of_the_endpoint_is_left_running(demo: Demo) -> None:
    commands = [_command(entry) for entry in Path("/proc").glob("[0-9]*")]
    assert any("pytest" in command for command in commands)
    assert not [command for command in commands if str(demo.project) in command]


def test_what_the_readme_shows_is_what_the_demo_prints(demo: Demo) -> None:
    shown = re.findall(r"```console\n(\$ kit init.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert shown, "README.md shows no transcript that starts with $ kit init"
    printed = [_masked(line) for line in demo.output.splitlines()]
    for line in shown[0].splitlines():
        if line.strip() and not line.startswith("$ cd"):
            assert _masked(line) in printed, line


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:  # it has ended
        return ""


def _masked(line: str) -> str:
    """Take out what differs from run to run and machine to machine: figures, digests, folders."""
    line = re.sub(r"\S*/(?=[\w.-]*(digits|\.kit|bundles|signing))", "", line)
    line = re.sub(r"(?<![\w-])[0-9a-f]{12,64}\b|\d[\d,.]*", "#", line)
    return re.sub(r"[─\s]+", " ", line).strip()
