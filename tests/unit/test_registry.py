from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import ConflictError, InputError, KitError, NotFoundError, UnavailableError, VerificationError
from kit.registry import Reference, Registry, parse_reference

A = "a" * 64
B = "b" * 64
C = "c" * 64


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "state" / "registry.db")
    for digest in (A, B, C):
        registry.register("digits", digest=digest, uri=f"models/{digest}", summary={"accuracy": 0.5})
    return registry


def tamper(registry: Registry, *statements: str) -> None:
    with sqlite3.connect(registry.path) as db:
        for kind in ("events_update", "events_delete", "versions_update", "versions_delete"):
            db.execute(f"DROP TRIGGER {kind}")
        for statement in statements:
            db.execute(statement)
    db.close()


# references


@pytest.mark.parametrize(
    "text,reference",
    [
        ("digits", Reference("digits", alias="champion")),
        ("digits@candidate", Reference("digits", alias="candidate")),
        ("digits@3", Reference("digits", number=3)),
        ("digits@sha256:ab12cd", Reference("digits", digest_prefix="ab12cd")),
        ("2-digits.v_1", Reference("2-digits.v_1", alias="champion")),
    ],
)
def test_a_reference_names_an_alias_a_number_or_a_digest(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "Digits", "d" * 64, "a/b", "../x", ".hidden", "digits\n"),
        *(
            "digits@",
            "digits@@3",
            "digits@0",
            "digits@03",
            "digits@-1",
            "digits@" + "9" * 30,
            "digits@\u0663",
        ),
        *(
            "digits@sha256",
            "digits@sha256:ab12",
            "digits@sha256:ab12cg",
            "digits@sha256:AB12CD",
            "digits@3\n",
        ),
    ],
)
def test_a_malformed_reference_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_reference(text)
    assert caught.value.hint


@given(st.text(max_size=30))
def test_any_text_is_a_reference_or_an_input_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InputError:
        return
    assert parse_reference(str(reference)) == reference


# registering and reading


def test_numbers_count_from_one_per_model(registry: Registry) -> None:
    registry.register("cells", digest=A, uri="u", summary={})
    assert [(r.model, r.number) for r in registry.versions()] == [
        ("cells", 1),
        ("digits", 1),
        ("digits", 2),
        ("digits", 3),
    ]


def test_registering_the_same_digest_again_changes_nothing(registry: Registry) -> None:
    again = registry.register("digits", digest=B, uri="elsewhere", summary={})
    assert again == registry.resolve("digits@2")
    assert (again.number, again.uri, again.summary) == (2, f"models/{B}", {"accuracy": 0.5})
    assert len(registry.log()) == 3


@pytest.mark.parametrize(
    "model,digest,uri,summary",
    [
        ("Digits", A, "u", {}),
        ("digits", "A" * 64, "u", {}),
        ("digits", "ab12", "u", {}),
        ("digits", A, "", {}),
        ("digits", A, "u", {"loss": float("nan")}),
    ],
)
def test_a_bad_registration_is_refused_and_leaves_no_file(
    tmp_path: Path, model: str, digest: str, uri: str, summary: dict[str, float]
) -> None:
    registry = Registry(tmp_path / "state" / "registry.db")
    with pytest.raises(InputError):
        registry.register(model, digest=digest, uri=uri, summary=summary)
    assert list(tmp_path.iterdir()) == []


def test_reading_a_registry_that_does_not_exist_creates_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "state" / "registry.db")
    assert registry.versions() == []
    assert registry.log() == []
    registry.verify_log()
    for ask in (registry.resolve, registry.promote, registry.rollback, registry.versions, registry.log):
        with pytest.raises(NotFoundError, match="there are no models yet"):
            ask("digits")
    assert list(tmp_path.iterdir()) == []


def test_a_new_registry_leaves_only_its_file(registry: Registry) -> None:
    assert [path.name for path in registry.path.parent.iterdir()] == ["registry.db"]


@pytest.mark.parametrize(
    "reference", ["digits@2", f"digits@sha256:{B}", "digits@sha256:bbbbbb", "digits@old"]
)
def test_every_form_of_reference_finds_the_version(registry: Registry, reference: str) -> None:
    registry.promote("digits@2", alias="old")
    assert registry.resolve(reference).digest == B


def test_an_ambiguous_digest_is_refused_with_the_candidates(registry: Registry) -> None:
    registry.register("digits", digest="a" * 63 + "0", uri="u", summary={})
    with pytest.raises(InputError, match=r"several versions: 1 .*, 4 ") as caught:
        registry.resolve("digits@sha256:aaaaaa")
    assert "more digits" in str(caught.value.hint)
    assert registry.resolve(f"digits@sha256:{A}").number == 1


@pytest.mark.parametrize(
    "reference,message,hint",
    [
        ("digit", "there is no model 'digit'", "did you mean 'digits'?"),
        ("digits", "digits has no champion, it has versions 1 to 3", "kit models promote digits@3"),
        ("digits@stagng", "digits has no alias 'stagng'", "did you mean 'staging'?"),
        ("digits@9", "digits has no version 9, it has versions 1 to 3", "kit models list digits"),
        ("digits@sha256:dddddd", "digits has no sha256:dddddd, it has", "kit models list digits"),
    ],
)
def test_an_unknown_name_comes_with_the_next_step(
    registry: Registry, reference: str, message: str, hint: str
) -> None:
    registry.promote("digits@1", alias="staging")
    with pytest.raises(NotFoundError) as caught:
        registry.resolve(reference)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


# moving aliases


def test_promote_moves_the_alias_and_says_who_carries_it(registry: Registry) -> None:
    assert registry.promote("digits@1").aliases == ("champion",)
    assert registry.promote("digits@2", alias="candidate").aliases == ("candidate",)
    assert registry.promote("digits@candidate").aliases == ("candidate", "champion")
    assert registry.resolve("digits").number == 2
    assert registry.resolve("digits@1").aliases == ()


def test_promote_moves_only_from_the_expected_digest(registry: Registry) -> None:
    registry.promote("digits@1", expect=None)
    registry.promote("digits@2", expect=A)
    with pytest.raises(ConflictError, match=f"sha256:{B}, not sha256:{A}"):
        registry.promote("digits@3", expect=A)
    with pytest.raises(ConflictError, match=f"sha256:{B}, not not set|sha256:{B}"):
        registry.promote("digits@3", expect=None)
    with pytest.raises(ConflictError, match="is not set"):
        registry.promote("digits@3", alias="candidate", expect=A)
    with pytest.raises(InputError, match="not a digest"):
        registry.promote("digits@3", expect="ab12")
    assert registry.resolve("digits").digest == B


def test_promoting_what_already_stands_there_is_not_logged(registry: Registry) -> None:
    registry.promote("digits@1")
    n_events = len(registry.log())
    assert registry.promote("digits@1").aliases == ("champion",)
    assert len(registry.log()) == n_events


@pytest.mark.parametrize("alias", ["", "3", "sha256", "sha256-x", "Champion", "a b", "../x", "a,b"])
def test_a_bad_alias_is_refused(registry: Registry, alias: str) -> None:
    with pytest.raises(InputError, match="is not an alias"):
        registry.promote("digits@1", alias=alias)
    with pytest.raises(InputError, match="is not an alias"):
        registry.rollback("digits", alias=alias)


def test_repeated_rollback_goes_further_back(registry: Registry) -> None:
    for number in (1, 2, 3):
        registry.promote(f"digits@{number}")
    assert registry.rollback("digits").number == 2
    assert registry.rollback("digits").number == 1
    with pytest.raises(ConflictError, match="stood at no version before 1"):
        registry.rollback("digits")
    assert registry.resolve("digits").number == 1


def test_a_promotion_after_a_rollback_starts_from_there(registry: Registry) -> None:
    registry.promote("digits@1")
    registry.promote("digits@2")
    registry.rollback("digits")
    registry.promote("digits@3")
    assert registry.rollback("digits").number == 1


def test_rollback_moves_only_the_alias_it_names(registry: Registry) -> None:
    registry.promote("digits@1", alias="candidate")
    registry.promote("digits@2", alias="candidate")
    registry.promote("digits@3")
    assert registry.rollback("digits", alias="candidate").number == 1
    assert registry.resolve("digits").number == 3
    with pytest.raises(NotFoundError, match="no alias 'canary'"):
        registry.rollback("digits", alias="canary")


# the log


def test_the_log_tells_what_happened_in_order(registry: Registry) -> None:
    registry.promote("digits@1")
    registry.promote("digits@2")
    registry.rollback("digits")
    registry.register("cells", digest=A, uri="u", summary={})
    assert [event.kind for event in registry.log("digits")] == ["register"] * 3 + ["promote"] * 2 + [
        "rollback"
    ]
    assert registry.log("digits")[-1].body == {"alias": "champion", "number": 1, "digest": A, "previous": B}
    assert [event.seq for event in registry.log()] == [1, 2, 3, 4, 5, 6, 7]
    registry.verify_log()


def test_sql_cannot_change_events_or_versions(registry: Registry) -> None:
    db = sqlite3.connect(registry.path)
    for statement in (
        "UPDATE events SET kind = 'promote'",
        "DELETE FROM events",
        "UPDATE versions SET number = 9",
        "DELETE FROM versions",
    ):
        with pytest.raises(sqlite3.IntegrityError, match=r"append-only|immutable"):
            db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET at_ns = at_ns + 1 WHERE seq = 2",
        "UPDATE events SET kind = 'promote' WHERE seq = 2",
        "UPDATE events SET model = 'cells' WHERE seq = 2",
        """UPDATE events SET body = '{"alias": "champion"}' WHERE seq = 2""",
        "UPDATE events SET body = 'no json' WHERE seq = 2",
        "UPDATE events SET hash = 'abc' WHERE seq = 2",
        "DELETE FROM events WHERE seq = 2",
        "UPDATE events SET seq = 20 WHERE seq = 2",
    ],
)
def test_verify_log_names_the_first_bad_entry(registry: Registry, statement: str) -> None:
    tamper(registry, statement)
    with pytest.raises(VerificationError, match="event 2 "):
        registry.verify_log()


def test_verify_log_notices_tables_that_contradict_the_log(registry: Registry) -> None:
    registry.promote("digits@1")
    tamper(registry, f"UPDATE aliases SET digest = '{B}'")
    with pytest.raises(VerificationError, match=f"digits@champion is sha256:{B}, the log says sha256:{A}"):
        registry.verify_log()
    with pytest.raises(VerificationError, match="does not say so"):
        registry.rollback("digits")


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE versions SET digest = '{'d' * 64}' WHERE number = 3",
        """UPDATE versions SET summary = '{"accuracy": 1.0}' WHERE number = 3""",
        "UPDATE versions SET registered_ns = 1 WHERE number = 3",
        "DELETE FROM versions WHERE number = 3",
        "DELETE FROM events WHERE seq = 3",
    ],
)
def test_verify_log_notices_a_version_the_log_does_not_know(registry: Registry, statement: str) -> None:
    tamper(registry, statement)
    with pytest.raises(VerificationError, match="digits@3 is not what the log registered"):
        registry.verify_log()


def test_verify_log_names_the_newest_entry_by_which_a_cut_end_can_be_told(registry: Registry) -> None:
    assert registry.verify_log() == registry.log()[-1]
    registry.promote("digits@1")
    kept = registry.verify_log()
    tamper(registry, "DELETE FROM events WHERE seq = 4", "DELETE FROM aliases")
    assert registry.verify_log() != kept


# files that are no registry


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"not a database" * 500)
    with pytest.raises(VerificationError, match=r"registry\.db is damaged or not a database"):
        Registry(path).versions()


@pytest.mark.parametrize("content", ["empty", "other"])
def test_another_database_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "registry.db"
    path.touch()
    if content == "other":
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE mine (x)")
        db.close()
    before = path.read_bytes()
    with pytest.raises(VerificationError, match=r"registry\.db is not a model registry"):
        Registry(path).register("digits", digest=A, uri="u", summary={})
    assert path.read_bytes() == before


def test_a_newer_format_is_refused(registry: Registry) -> None:
    db = sqlite3.connect(registry.path)
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(VerificationError, match="format 2, this kit reads 1"):
        registry.versions()


def test_no_flipped_byte_escapes_as_another_error(registry: Registry) -> None:
    registry.promote("digits@1")
    registry.promote("digits@2")
    healthy = registry.path.read_bytes()
    refused = 0
    for offset in range(0, len(healthy), 97):
        registry.path.write_bytes(healthy[:offset] + bytes([healthy[offset] ^ 0xFF]) + healthy[offset + 1 :])
        try:
            registry.verify_log()
            registry.rollback("digits")
        except KitError:
            refused += 1
    assert refused > 0


def test_a_folder_or_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "registry.db"):
        with pytest.raises(UnavailableError, match=str(path)):
            Registry(path).register("digits", digest=A, uri="u", summary={})


def test_a_record_is_an_immutable_value(registry: Registry) -> None:
    record = registry.resolve("digits@1")
    assert replace(record, number=1) == record
    with pytest.raises(AttributeError):
        record.number = 2  # type: ignore[misc]  # what the test is about
