"""Training on a cluster of several nodes that lose one: suddenly, with a notice, and with fewer to go on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import show_token
from jobs.train import train
from kit import local_ray
from kit.project import Project
from kit.settings import TrainSettings

NOTICE_S = 4.0


@pytest.fixture(scope="module")
def cluster(lab: Any) -> Iterator[Any]:
    """A head without CPUs; each test adds the nodes that work."""
    local_ray.prepare()
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    yield made
    made.shutdown()  # type: ignore[no-untyped-call]  # Ray's gap


@pytest.fixture
def nodes(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Adds nodes of one CPU, and takes away those that are left."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
    show_token()
    yield lambda: cluster.add_node(num_cpus=1, wait=True)
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)


def settings(project: Project, cluster: Any, **flags: Any) -> TrainSettings:
    return project.command("train", TrainSettings, {"address": cluster.address, **flags})


def epochs_shown(caplog: pytest.LogCaptureFixture) -> list[int]:
    said = [record.getMessage() for record in caplog.records]
    return [int(each.split(":")[0].removeprefix("epoch ")) for each in said if each.startswith("epoch ")]


def test_a_training_whose_node_dies_goes_on_on_another_to_the_same_bytes(
    lab: Any, trained: Any, tmp_path: Path, at: Any, cluster: Any, nodes: Any, caplog: Any
) -> None:
    project = lab.twin(trained.project, tmp_path / "blobs")
    first = nodes()

    def kill() -> None:
        cluster.remove_node(first, allow_graceful=False)
        nodes()

    at("epoch 6:", kill)
    with caplog.at_level(logging.INFO, logger="kit"):
        result = train(project, settings(project, cluster, checkpoint_interval_s=0.5))
    assert first not in cluster.worker_nodes
    shown = epochs_shown(caplog)
    assert shown.count(1) == 1  # it did not start anew
    assert shown[-1] == lab.epochs
    assert [each.epoch for each in result.epochs] == list(range(1, lab.epochs + 1))
    weights = [
        (each.store().fetch(found.candidate.version.digest) / "model.onnx").read_bytes()
        for each, found in ((project, result), (trained.project, trained.result))
    ]
    assert weights[0] == weights[1]


def test_a_node_that_is_taken_away_with_a_notice_costs_at_most_what_came_after_it(
    lab: Any, trained: Any, tmp_path: Path, at: Any, cluster: Any, nodes: Any, caplog: Any
) -> None:
    import ray
    from ray.core.generated import autoscaler_pb2

    reasons: Any = autoscaler_pb2
    clients: Any = ray._raylet

    project = lab.twin(trained.project, tmp_path / "blobs")
    workers = lab.count_builds(project)
    first = nodes()

    def announce() -> None:
        lab.await_event(lambda: lab.processes("ray::PreemptionWatcher"))  # it starts beside the workers
        reason = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int((time.time() + NOTICE_S) * 1000)
        client = clients.GcsClient(address=cluster.address)
        accepted, why = client.drain_node(first.node_id, reason, "taken away", deadline_ms)
        assert accepted, why
        nodes()

    at("epoch 3:", announce)
    with caplog.at_level(logging.INFO, logger="kit"):
        # No checkpoint but for the notice: none is due before an hour has passed.
        result = train(
            project, settings(project, cluster, checkpoint_interval_s=3600.0, epochs=60, patience_epochs=60)
        )
    assert workers() == 2  # one on each node
    assert epochs_shown(caplog).count(1) == 1  # the second one did not start anew
    assert [each.epoch for each in result.epochs] == list(range(1, len(result.epochs) + 1))


def test_an_elastic_training_goes_on_with_fewer_workers(
    lab: Any, trained: Any, tmp_path: Path, at: Any, cluster: Any, nodes: Any
) -> None:
    project = lab.twin(trained.project, tmp_path / "blobs")
    nodes()
    second = nodes()
    at("epoch 2:", lambda: cluster.remove_node(second, allow_graceful=False))
    chosen = settings(project, cluster, workers=2, min_workers=1, checkpoint_interval_s=0.5, epochs=10)
    result = train(project, chosen)
    record = json.loads(result.record.read_bytes())
    assert record["used"]["workers"] == 1
    assert [each.epoch for each in result.epochs] == list(range(1, len(result.epochs) + 1))
    assert result.candidate.metrics["accuracy"] > 0.8
