from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest

from kit.errors import InputError, UnavailableError
from kit.model_version import ModelVersion
from serve.advise import SIZES, Measured, advise, available, choose


def measured(
    *, engine: str = "onnxruntime", device: str = "cpu", threads: int = 1, rows: int = 1, call_ms: float = 1.0
) -> Measured:
    return Measured(engine, device, threads, rows, call_ms, call_ms, rows * 1000 / call_ms, 100)


def test_the_advice_is_what_was_measured_here(tiny_version: ModelVersion) -> None:
    began_s = time.monotonic()
    advice = advise(tiny_version, target_ms=50, cores=2, budget_s=0.3)
    assert time.monotonic() - began_s < 20
    assert {(each.engine, each.threads) for each in advice.measured} == {
        (engine, threads) for engine in ("onnxruntime", "openvino") for threads in (1, 2)
    }
    assert advice.is_met
    assert (advice.model, advice.digest) == (tiny_version.name, tiny_version.digest)
    assert advice.chosen in advice.measured
    assert advice.chosen.rows in SIZES
    assert advice.replicas * advice.chosen.threads == 2
    assert advice.rows_per_s > 0
    assert all(each.p50_ms <= each.p99_ms for each in advice.measured)
    assert json.loads(json.dumps(advice.to_json()))["chosen"]["engine"] == advice.chosen.engine


def test_an_engine_that_answers_wrongly_is_left_out(tiny_version: ModelVersion) -> None:
    from kit.golden import write_tensors

    _, outputs = tiny_version.golden()
    outputs["logits"] = outputs["logits"] + np.float32(0.5)
    write_tensors(tiny_version.folder / "golden" / "outputs.npz", outputs)
    with pytest.raises(UnavailableError, match=r"nothing here can run tiny: onnxruntime .*: output"):
        advise(tiny_version, cores=1, budget_s=0.1)


def test_a_target_must_be_one(tiny_version: ModelVersion) -> None:
    with pytest.raises(InputError, match="target of 0"):
        advise(tiny_version, target_ms=0)


def test_threads_grow_in_powers_of_two_to_all_cores() -> None:
    onnxruntime = [
        each.threads for each in available(6) if (each.engine, each.device) == ("onnxruntime", "cpu")
    ]
    assert onnxruntime == [1, 2, 4, 6]
    assert [each.threads for each in available(1) if each.engine == "openvino"] == [1]


def test_the_largest_batch_that_keeps_the_target_twice_over_is_allowed() -> None:
    growing = [measured(rows=rows, call_ms=ms) for rows, ms in ((1, 1), (4, 2), (16, 6), (64, 20))]
    best, reasons = choose(growing, target_ms=13, cores=2)
    assert best.rows == 16
    assert any("batches of 64 rows would take up to 40.0 ms" in reason for reason in reasons)


def test_what_the_whole_machine_answers_counts_not_one_engine() -> None:
    narrow = measured(threads=1, rows=4, call_ms=4)
    wide = measured(threads=4, rows=4, call_ms=2)
    assert choose([narrow, wide], target_ms=50, cores=4)[0] == narrow
    assert choose([narrow, wide], target_ms=5, cores=4)[0] == wide


def test_a_gpu_is_advised_where_it_is_faster_and_the_simpler_where_it_is_not() -> None:
    cpu = measured(rows=16, call_ms=8)
    gpu = measured(device="cuda", rows=16, call_ms=1)
    assert choose([cpu, gpu], target_ms=50, cores=2)[0] == gpu
    slow = dataclasses.replace(gpu, rows_per_s=cpu.rows_per_s * 2.02)
    assert choose([cpu, slow], target_ms=50, cores=2)[0] == cpu


def test_a_target_nothing_keeps_is_said_so() -> None:
    best, reasons = choose([measured(call_ms=30), measured(threads=2, call_ms=20)], target_ms=10, cores=2)
    assert best.threads == 2
    assert "nothing keeps 10 ms" in reasons[0]
