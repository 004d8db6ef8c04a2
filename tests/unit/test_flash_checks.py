"""Rules of refusing a flash early, from what a look at the device has found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.flashing.checks import Found, check_machine, check_place, check_release, check_trust, fits
from kit import keypair
from kit.bundle import Bundle, open_bundle
from kit.errors import (
    ConflictError,
    InputError,
    KitError,
    MissingDependencyError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)


def found(**changed: Any) -> Found:
    values: dict[str, Any] = {
        **{"python": "3.11.7", "machine": "aarch64", "system": "Linux", "bits": 64, "memory_bytes": 1 << 30},
        **{"agent": True, "packages": {"onnxruntime": "1.31.1"}, "place": "device", "other": ""},
        **{"free_bytes": 10_000, "writable": True, "keys": {}, "state": None, "running": False},
    }
    return Found(**{**values, **changed})


@pytest.fixture
def bundle(bundles, signing_key: Path) -> Bundle:
    """Release 3."""
    made = bundles.make(release=3)
    return open_bundle(made.folder, trusted=keypair.load_trusted(signing_key.parent))


@pytest.mark.parametrize(
    "changed, error, sentence",
    [
        ({"place": "file"}, InputError, "is not a folder"),
        ({"place": "nowhere"}, NotFoundError, "nor its parent"),
        ({"place": "other", "other": "photos"}, InputError, "holds 'photos' and no keys"),
        ({"writable": False}, UnavailableError, "cannot be written"),
        ({"free_bytes": 199}, UnavailableError, "199 bytes free; .* need 200"),
        ({"free_bytes": 200}, None, ""),
        ({"place": "absent"}, None, ""),
    ],
)
def test_a_place_is_refused_by_what_stands_there(
    changed: dict[str, Any], error: type[KitError] | None, sentence: str
) -> None:
    if error is None:
        check_place(found(**changed), shown="it", n_bytes=100)
        return
    with pytest.raises(error, match=sentence):
        check_place(found(**changed), shown="it", n_bytes=100)


@pytest.mark.parametrize(
    "changed, manifest, error, sentence",
    [
        ({}, {}, None, ""),
        ({"python": "3.8.10"}, {}, UnavailableError, "Python 3.8.10"),
        ({"python": "3.10.0rc1"}, {}, None, ""),
        ({"bits": 32}, {}, UnavailableError, "32 bits"),
        ({"agent": False}, {}, MissingDependencyError, "the agent is not installed"),
        ({"packages": {}}, {}, MissingDependencyError, "no onnxruntime"),
        ({"packages": {}}, {"engine": "abacus"}, None, ""),  # for the agent there to say
        ({}, {"requirements": {"packages": {"onnxruntime": ">=1.20,<2"}}}, None, ""),
        (
            {},
            {"requirements": {"packages": {"onnxruntime": ">=1.20,<1.31"}}},
            MissingDependencyError,
            "has onn",
        ),
        ({}, {"requirements": {"machines": ["aarch64"], "memory_mb": 1000}}, None, ""),
        ({"machine": "arm64"}, {"requirements": {"machines": ["aarch64"]}}, None, ""),
        ({}, {"requirements": {"memory_mb": 2000}}, VerificationError, "needs 2000 MB of memory"),
        ({}, {"requirements": {"machines": ["x86_64"]}}, VerificationError, "for x86_64; it is a aarch64"),
    ],
)
def test_a_machine_is_refused_by_what_it_has(
    changed: dict[str, Any],
    manifest: dict[str, Any],
    error: type[KitError] | None,
    sentence: str,
    bundle: Bundle,
) -> None:
    bundle.manifest.update(manifest)
    if error is None:
        check_machine(found(**changed), bundle, shown="it")
        return
    with pytest.raises(error, match=sentence):
        check_machine(found(**changed), bundle, shown="it")


def test_a_signer_the_device_does_not_know_is_refused_unless_a_keyring_goes_with_it(
    bundle: Bundle, signing_key: Path, tmp_path: Path
) -> None:
    other = keypair.generate_key(tmp_path / "other" / "signing.pem").decode()
    own = keypair.public_of(signing_key).decode()
    check_trust(found(keys={"a.pub": other, "b.pub": own}), bundle, shown="it", keyring=False)
    check_trust(found(place="absent"), bundle, shown="it", keyring=False)
    check_trust(found(keys={"a.pub": other}), bundle, shown="it", keyring=True)
    with pytest.raises(VerificationError, match="trusts"):
        check_trust(found(keys={"a.pub": other}), bundle, shown="it", keyring=False)
    with pytest.raises(VerificationError, match=r"keys/a\.pub"):
        check_trust(found(keys={"a.pub": "rust"}), bundle, shown="it", keyring=False)


@pytest.mark.parametrize("state, refused", [(None, False), ({"release": 2}, False), ({"release": 3}, True)])
def test_a_replay_is_refused_unless_it_repairs_or_is_overridden(
    state: dict[str, Any] | None, refused: bool, bundle: Bundle
) -> None:
    check_release(found(state={"release": 9}), bundle, shown="it", override=True)
    check_release(found(state={"release": 3, "current": bundle.digest}), bundle, shown="it", override=False)
    if not refused:
        check_release(found(state=state), bundle, shown="it", override=False)
        return
    with pytest.raises(ConflictError, match="not above release 3") as caught:
        check_release(found(state=state), bundle, shown="it", override=False)
    assert "--allow-older" in str(caught.value.hint)


@pytest.mark.parametrize(
    "version, bounds, holds",
    [
        ("2.3.0", "", True),
        ("2.3.0", ">=2.1.6,<3", True),
        ("2.3", "==2.3.0", True),
        ("3.0.0", ">=2.1.6,<3", False),
        ("2.1.10", ">=2.1.6", True),
        ("2.14.0", ">=2.14,<2.15", True),
        ("2.3.0.dev20260101", ">=2.3", True),
        ("odd", ">=1", False),
    ],
)
def test_a_version_is_held_against_bounds(version: str, bounds: str, holds: bool) -> None:
    assert fits(version, bounds) is holds
