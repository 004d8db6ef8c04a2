"""A batch run on a cluster of several nodes that come and go: suddenly, with a notice, by market."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from jobs.cluster import show_token
from jobs.spot import MARKET_LABEL
from kit import local_ray
from tests.cluster.test_predict_survives import assert_every_row_once, await_commits, committed, given

#: Shards enough for nodes to come and go in the middle.
N_ROWS, SHARD_ROWS = 800_000, 1_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs; each test adds the nodes that work."""
    local_ray.prepare()
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    yield made
    made.shutdown()  # type: ignore[no-untyped-call]  # Ray's gap


@pytest.fixture
def add_node(cluster: Any) -> Iterator[Callable[[str], Any]]:
    show_token()
    yield lambda market: cluster.add_node(num_cpus=1, labels={MARKET_LABEL: market}, wait=True)
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def many(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("many") / "in.parquet"
    parquet.write_table(lab.table(N_ROWS), path, row_group_size=SHARD_ROWS)
    return path


def start(lab: Any, trained: Any, cluster: Any, many: Path, out: Path) -> subprocess.Popen[str]:
    driver: subprocess.Popen[str] = lab.start(
        trained.project, "predict", given(many, out, address=cluster.address, shard_rows=SHARD_ROWS)
    )
    return driver


def commits(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in committed(out)]


def test_nodes_that_die_several_times_in_one_run_cost_no_row_and_double_none(
    lab: Any, trained: Any, tmp_path: Path, cluster: Any, add_node: Any, many: Path
) -> None:
    out = tmp_path / "out"
    nodes = [add_node("spot"), add_node("spot")]
    driver = start(lab, trained, cluster, many, out)
    for n in (20, 200):
        await_commits(lab, driver, out, n=n)
        cluster.remove_node(nodes.pop(0), allow_graceful=False)  # SIGKILL of everything on it
        nodes.append(add_node("spot"))
    said = driver.communicate()[1]
    assert driver.returncode == 0, said
    assert "its shards are given to others" in said
    assert_every_row_once(trained.project, out, n_rows=N_ROWS)
    assert len({each["node"] for each in commits(out)}) >= 2


def test_spot_comes_first_and_on_demand_takes_over_when_it_is_gone(
    lab: Any, trained: Any, tmp_path: Path, cluster: Any, add_node: Any, many: Path
) -> None:
    out = tmp_path / "out"
    spot = add_node("spot")
    driver = start(lab, trained, cluster, many, out)
    await_commits(lab, driver, out, n=5)
    add_node("on-demand")
    cluster.remove_node(spot, allow_graceful=False)
    said = driver.communicate()[1]
    assert driver.returncode == 0, said
    assert_every_row_once(trained.project, out, n_rows=N_ROWS)
    by_market = [each["market"] for each in sorted(commits(out), key=lambda each: each["started_s"])]
    assert by_market[0] == "spot"
    assert by_market[-1] == "on-demand"
    report = json.loads((out / "_run" / "report.json").read_bytes())
    assert set(report["cost"]["node_seconds"]) == {"spot", "on-demand"}


def test_a_node_with_a_notice_finishes_what_it_holds_and_gets_nothing_new(
    lab: Any, trained: Any, tmp_path: Path, cluster: Any, add_node: Any, many: Path
) -> None:
    import ray

    out = tmp_path / "out"
    leaving, staying = add_node("spot"), add_node("spot")
    driver = start(lab, trained, cluster, many, out)
    lab.await_event(lambda: len({each["node"] for each in commits(out)}) == 2 or driver.poll() is not None)
    from ray.core.generated import autoscaler_pb2

    reasons: Any = autoscaler_pb2
    clients: Any = ray._raylet
    reason = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = clients.GcsClient(address=cluster.address)
    accepted, why = client.drain_node(leaving.node_id, reason, "taken away", int((time.time() + 120) * 1000))
    assert accepted, why
    told_s = time.time()
    said = driver.communicate()[1]
    assert driver.returncode == 0, said
    assert "is about to go; its worker gets no new shard" in said
    assert_every_row_once(trained.project, out, n_rows=N_ROWS)
    late = [each for each in commits(out) if each["started_s"] > told_s + 3]
    assert {each["node"] for each in late} <= {staying.node_id}
