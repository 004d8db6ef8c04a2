from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jobs.batch.cost import Stay
from jobs.batch.ledger import Commit, PartFile
from jobs.batch.report import About, build
from kit.files import canonical_json
from kit.observed import Observed
from kit.profile import profile
from kit.report.records.running import PredictRecord
from kit.signature import Signature
from kit.tensors import TensorSpec

SIGNATURE = Signature(
    "classification",
    (TensorSpec("x", "float32", (-1, 2), ("a", "b")),),
    (
        TensorSpec("label", "int64", (-1,), classes=("no", "yes")),
        TensorSpec("probabilities", "float32", (-1, 2)),
    ),
)
ABOUT = About("digits@3", "ab" * 32, "onnxruntime", "in", "out", ("no", "yes"))
START_S = 1_800_000_000.0


def rows(n_rows: int, *, shift: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(int(shift))
    values = random.standard_normal((n_rows, 2)).astype(np.float32)
    values[:, 1] += shift
    yes = random.random(n_rows).astype(np.float32)
    outputs = {"label": (yes > 0.5).astype(np.int64), "probabilities": np.stack([1 - yes, yes], axis=1)}
    return {"x": values}, outputs


INPUTS, OUTPUTS = rows(2000, shift=0)
PROFILE: dict[str, Any] = profile(INPUTS, signature=SIGNATURE, outputs=OUTPUTS)


def commit(
    index: int, *, from_s: float, to_s: float, node: str = "n1", market: str = "spot", shift: float = 0
) -> Commit:
    noted = Observed(PROFILE, signature=SIGNATURE)
    noted.observe(*rows(1000, shift=shift))
    name = f"part-{index:05d}"
    return Commit(
        shard=name,
        rows_in=1000,
        rows_out=990,
        rows_refused=10,
        files=(PartFile(f"{name}.parquet", 4000, "cd" * 32, 990),),
        quarantine=PartFile(f"_quarantine/{name}.parquet", 100, "ef" * 32, 10),
        reasons={"a value is missing": 7, f"only here: {index}": 3},
        seconds={"read": 1.0, "prepare": 0.5, "infer": 2.0, "write": 0.5},
        started_s=START_S + from_s,
        ended_s=START_S + to_s,
        node=node,
        market=market,
        batch_rows=256,
        labels=noted.labels,
        observed=noted.to_json(),
    )


def built(
    commits: list[Commit],
    *,
    stays: tuple[Stay, ...] = (),
    bare: float | None = None,
    profile: dict[str, Any] = PROFILE,
) -> dict[str, Any]:
    """Build a run's facts, and bring them through the file."""
    facts = build(
        ABOUT,
        commits,
        stays=stays,
        prices={"spot": 0.16, "on-demand": 0.48},
        engine={"batch_rows": 256, "rows_per_second": bare},
        profile=profile,
    )
    found: dict[str, Any] = json.loads(canonical_json(facts))
    return found


def stay(from_s: float, to_s: float, *, node: str = "n1", market: str = "spot") -> Stay:
    return Stay(node, market, START_S + from_s, START_S + to_s)


def test_the_facts_are_sums_over_the_shards() -> None:
    found = built([commit(index, from_s=index, to_s=index + 1) for index in range(12)])
    sums = ("rows_in", "rows_out", "rows_refused", "n_shards", "n_parts", "n_bytes")
    assert [found[name] for name in sums] == [12_000, 11_880, 120, 12, 12, 48_000]
    assert (found["seconds"], found["rows_per_second"]) == (12, 990)
    assert sum(found["labels"].values()) == 12_000
    assert found["stages"]["infer"] == {"seconds": 24, "share": 0.5}


def test_the_ten_most_frequent_reasons_are_kept() -> None:
    found = built([commit(index, from_s=0, to_s=1) for index in range(12)])
    assert (len(found["reasons"]), found["n_reasons"]) == (10, 13)
    assert found["reasons"]["a value is missing"] == 84


def test_rows_are_spread_over_the_time_their_shard_took() -> None:
    facts = built([commit(0, from_s=0, to_s=10), commit(1, from_s=5, to_s=10)])["throughput"]
    paces = facts["rows_per_second"]
    assert len(paces) == 40
    assert (paces[0], paces[-1]) == (100, 300)
    assert sum(paces) * facts["bucket_s"] == pytest.approx(2000)


def test_a_long_run_has_sixty_spans_and_loses_no_row() -> None:
    commits = [commit(index, from_s=index * 7, to_s=index * 7 + 13) for index in range(100)]
    facts = built(commits)["throughput"]
    assert len(facts["rows_per_second"]) == 60
    assert sum(facts["rows_per_second"]) * facts["bucket_s"] == pytest.approx(100_000, rel=1e-3)


def test_the_time_between_two_sittings_is_not_counted() -> None:
    found = built([commit(0, from_s=0, to_s=10), commit(1, from_s=5000, to_s=5010)])
    assert (found["seconds"], found["n_sittings"]) == (20, 2)
    assert found["throughput"]["resumed_at_s"] == [10]
    paces, bucket_s = found["throughput"]["rows_per_second"], found["throughput"]["bucket_s"]
    assert sum(paces) * bucket_s == pytest.approx(2000, rel=1e-3)


def test_a_short_pause_is_part_of_the_run() -> None:
    found = built([commit(0, from_s=0, to_s=10), commit(1, from_s=40, to_s=50)])
    assert (found["seconds"], found["n_sittings"]) == (50, 1)


def test_efficiency_is_held_against_the_engine_alone_in_all_actors() -> None:
    stays = (stay(0, 10), stay(0, 10))
    found = built([commit(0, from_s=1, to_s=9), commit(1, from_s=1, to_s=10)], stays=stays, bare=200.0)
    assert (found["efficiency"], found["actors"]) == (0.5, 2)


def test_efficiency_counts_only_the_rows_of_the_sitting_whose_actors_are_known() -> None:
    commits = [commit(0, from_s=0, to_s=10), commit(1, from_s=1001, to_s=1009)]
    found = built(commits, stays=(stay(1000, 1010),), bare=200.0)
    assert found["efficiency"] == 0.5


def test_without_a_measured_engine_there_is_no_efficiency() -> None:
    assert built([commit(0, from_s=0, to_s=1)], stays=(stay(0, 1),))["efficiency"] is None
    assert built([commit(0, from_s=0, to_s=1)], bare=200.0)["efficiency"] is None


def test_the_cost_holds_earlier_sittings_by_their_records() -> None:
    commits = [commit(0, from_s=0, to_s=1800), commit(1, from_s=9000, to_s=9010)]
    found = built(commits, stays=(stay(9000, 10_800),))["cost"]
    assert found["node_seconds"] == {"spot": 3600}
    assert found["usd"] == pytest.approx(0.16)


def test_nodes_say_what_they_did() -> None:
    commits = [commit(0, from_s=0, to_s=4), commit(1, from_s=2, to_s=6)]
    commits.append(commit(2, from_s=0, to_s=5, node="n2", market="on-demand"))
    first, second = built(commits, stays=(stay(0, 7, node="n3"),))["nodes"][:2]
    assert first == {"node": "n1", "market": "spot", "seconds": 6, "rows": 2000, "n_shards": 2}
    assert (second["node"], second["market"]) == ("n2", "on-demand")


def test_what_has_drifted_comes_first_with_its_counts() -> None:
    found = built([commit(0, from_s=0, to_s=1, shift=3)])
    first = found["drift"][0]
    assert (first["name"], first["role"], first["drifted"]) == ("b", "input", True)
    assert len(first["reference"]) == len(first["observed"]) == len(first["edges"]) + 1
    assert not any(each["drifted"] for each in found["drift"][1:])
    assert found["observed"]["n_sampled"] == 1000


def test_a_version_without_described_answers_shows_no_drift_of_them() -> None:
    old = {key: value for key, value in PROFILE.items() if key != "outputs"}
    found = built([commit(0, from_s=0, to_s=1)], profile=old)
    assert {each["role"] for each in found["drift"]} == {"input"}
    assert found["profile"]["n_held_out"] is None


def test_a_run_without_a_row_has_facts_all_the_same() -> None:
    found = built([])
    assert (found["rows_in"], found["seconds"], found["drift"]) == (0, 0, [])
    empty = replace(commit(0, from_s=0, to_s=0), rows_in=0, rows_out=0, labels=(), observed={}, seconds={})
    assert built([empty])["stages"]["read"]["share"] == 0


def test_the_record_reads_what_was_built() -> None:
    facts = built([commit(0, from_s=0, to_s=2, shift=3)], stays=(stay(0, 2),), bare=2000.0)
    record = PredictRecord.model_validate({**facts, "id": "one", "written_at_s": 1})
    kept = record.model_dump(mode="json", exclude_unset=True)
    assert {name: kept[name] for name in facts} == facts
    label = record.answer("label")
    assert label is not None
    assert sum(label.observed) == 1000


def test_a_record_of_an_earlier_kit_is_still_read() -> None:
    old = {
        "id": "one",
        "written_at_s": 1,
        "model": "digits@1",
        "digest": "ab" * 32,
        "engine": "onnxruntime",
        "output": "out",
        "rows_in": 3,
        "rows_out": 3,
        "n_parts": 1,
        "seconds": 1.0,
        "rows_per_second": 3.0,
        "labels": {"no": 3},
        "shards": [],
    }
    record = PredictRecord.model_validate(old)
    assert (record.rows_refused, record.cost, record.drift, record.answer("label")) == (0, None, (), None)
