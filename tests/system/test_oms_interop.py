"""Our signatures and the official ``model_signing`` tool's, each checked by the other.

The tool lives in an environment of its own, as a reference and not a dependency.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kit import keypair, seal
from kit.errors import VerificationError

PYTHON = Path(os.environ.get("KIT_OMS_PYTHON", Path(__file__).parents[2] / ".venv-oms" / "bin" / "python"))
ALLOWED = ("*.onnx", "golden/*.npz", "golden-more/*.npz")

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="the official tool is not installed; run `make .venv-oms/ready`"
)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "signing.pem"
    keypair.generate_key(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "digits"
    for name in ("model.onnx", "golden/inputs.npz", "golden-more/é ü.npz"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(name.encode())
    return made


def official(
    command: str, folder: Path, *more: str, signature: str = "model.sig"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(str(PYTHON), "-m", "model_signing", command, "key", str(folder)),
            *("--signature", str(folder / signature), *more),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_the_official_tool_verifies_our_seal_and_notices_a_flipped_byte(folder: Path, key: Path) -> None:
    seal.seal(folder, name="digits", key=key)
    public = ("--public_key", str(key.with_suffix(".pub")))
    accepted = official("verify", folder, *public)
    assert accepted.returncode == 0, accepted.stderr
    assert "Verification succeeded" in accepted.stdout

    (folder / "model.onnx").write_bytes(b"Model.onnx")
    refused = official("verify", folder, *public)
    assert refused.returncode != 0
    assert "Hash mismatch for 'model.onnx'" in refused.stderr


def test_the_official_tool_refuses_our_seal_under_another_key(
    folder: Path, key: Path, tmp_path: Path
) -> None:
    seal.seal(folder, name="digits", key=key)
    keypair.generate_key(tmp_path / "other.pem")
    refused = official("verify", folder, "--public_key", str(tmp_path / "other.pub"))
    assert refused.returncode != 0
    assert "Key mismatch" in refused.stderr


def test_we_open_what_the_official_tool_signed_and_are_stricter_about_git(folder: Path, key: Path) -> None:
    signed = official("sign", folder, "--private_key", str(key))
    assert signed.returncode == 0, signed.stderr
    trusted = keypair.load_trusted(key.with_suffix(".pub"))
    sealed = seal.open_sealed(folder, trusted=trusted, allowed=ALLOWED)
    assert list(sealed.files) == ["golden/inputs.npz", "golden-more/é ü.npz", "model.onnx"]

    (folder / ".git").mkdir()
    (folder / ".git" / "smuggled.onnx").write_bytes(b"")
    assert official("verify", folder, "--public_key", str(key.with_suffix(".pub"))).returncode == 0
    with pytest.raises(VerificationError, match=r"\.git/smuggled\.onnx"):
        seal.open_sealed(folder, trusted=trusted, allowed=(*ALLOWED, ".git/*"))
