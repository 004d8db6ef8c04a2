"""Spot nodes of a real cluster: the notice on one leads to nothing being placed there any more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import show_token
from jobs.notices import ENDPOINT_VARIABLE
from jobs.spot import MARKET_LABEL, draining_nodes, market_of, watching
from kit import local_ray
from tests.metadata_service import MetadataService

ROOT = Path(__file__).resolve().parents[2]
ACTION = "/latest/meta-data/spot/instance-action"
LIFE_CYCLE = "/latest/meta-data/instance-life-cycle"
NOTICE_S = 120


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, and this process joined to it."""
    local_ray.prepare()
    show_token()
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    ray.init(made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()  # type: ignore[no-untyped-call]  # Ray's gap


class Instance:
    """A node of one CPU and the metadata service of its machine."""

    def __init__(self, cluster: Any, *, market: str) -> None:
        self.service = MetadataService()
        self.service.says[LIFE_CYCLE] = market.encode()
        self.node = cluster.add_node(
            num_cpus=1,
            labels={MARKET_LABEL: market},
            env_vars={ENDPOINT_VARIABLE: self.service.url},
            wait=True,
        )
        self.id: str = self.node.node_id

    def announce(self) -> float:
        """Say that it will be taken away; gives when, in seconds since 1970."""
        deadline_s = int(time.time()) + NOTICE_S
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(deadline_s))
        self.service.says[ACTION] = json.dumps({"action": "terminate", "time": when}).encode()
        return float(deadline_s)


@pytest.fixture
def instances(cluster: Any) -> Iterator[Any]:
    made: list[Instance] = []

    def add(market: str) -> Instance:
        made.append(Instance(cluster, market=market))
        return made[-1]

    yield add
    for each in made:
        each.service.close()
        cluster.remove_node(each.node, allow_graceful=False)


def place_of_task() -> str:
    """Run a task of one CPU and say on which node it ran."""
    import ray

    def where() -> str:
        return str(ray.get_runtime_context().get_node_id())

    return str(ray.get(ray.remote(num_cpus=1)(where).remote(), timeout=60))


def occupy(node_id: str, *, num_cpus: int = 1) -> Any:
    """Work on a node: draining it takes as long as that."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Work:
        def is_going_on(self) -> bool:
            return True

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor = ray.remote(num_cpus=num_cpus, scheduling_strategy=there)(Work).remote()
    assert ray.get(actor.is_going_on.remote())
    return actor


def alive(node_id: str) -> bool:
    import ray

    return any(each["NodeID"] == node_id and each["Alive"] for each in ray.nodes())


def markets() -> dict[str, str]:
    import ray

    return {each["NodeID"]: market_of(each) for each in ray.nodes() if each["Alive"]}


def test_after_the_notice_nothing_is_placed_on_the_node_and_its_work_goes_on(
    lab: Any, instances: Any
) -> None:
    import ray

    spot = instances("spot")
    work, rest = occupy(spot.id), occupy(spot.id, num_cpus=0)
    with watching():
        lab.await_event(lambda: ACTION in spot.service.asked)
        assert spot.id not in draining_nodes()
        deadline_s = spot.announce()
        lab.await_event(lambda: spot.id in draining_nodes())
        assert draining_nodes()[spot.id] == deadline_s
        assert ray.get(work.is_going_on.remote())
        ray.kill(work)  # its CPU is free again, and stays so
        other = instances("on-demand")
        assert {place_of_task() for _ in range(3)} == {other.id}
        assert ray.get(rest.is_going_on.remote())  # the node was there all the time


def test_a_node_that_joins_later_is_watched_too_and_on_demand_nodes_are_not(lab: Any, instances: Any) -> None:
    steady = instances("on-demand")
    with watching():
        late = instances("spot")
        assert markets()[late.id] == "spot"
        assert markets()[steady.id] == "on-demand"
        lab.await_event(lambda: ACTION in late.service.asked)
        work = occupy(late.id)
        late.announce()
        lab.await_event(lambda: late.id in draining_nodes())
        del work
        assert steady.service.asked == []
        assert steady.id not in draining_nodes()


def test_a_watched_node_that_is_given_up_is_left_idle_and_the_end_takes_all_watchers_away(
    lab: Any, instances: Any
) -> None:
    spot = instances("spot")
    wanted = {spot.id}
    with watching(nodes=lambda: wanted):
        lab.await_event(lambda: lab.processes("ray::_Watcher"))
        wanted.clear()
        lab.await_event(lambda: not lab.processes("ray::_Watcher"))
        wanted.add(spot.id)
        lab.await_event(lambda: lab.processes("ray::_Watcher"))
    lab.await_event(lambda: not lab.processes("ray::_Watcher"))
    assert alive(spot.id)


def start(*words: str, address: str, **environment: str) -> subprocess.Popen[str]:
    """Run ``python -m jobs.spot`` as a node does."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.spot", *words],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": address, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_watcher_on_a_node_drains_it_and_ends(lab: Any, cluster: Any, instances: Any) -> None:
    spot = instances("spot")
    work = occupy(spot.id)
    watcher = start("--node-id", spot.id, address=cluster.address, **{ENDPOINT_VARIABLE: spot.service.url})
    lab.await_event(lambda: ACTION in spot.service.asked)
    deadline_s = spot.announce()
    said = watcher.communicate(timeout=300)[1]
    assert watcher.returncode == 0, said
    assert "its node is drained" in said
    assert draining_nodes()[spot.id] == deadline_s
    del work


def test_a_pod_that_must_go_drains_and_waits_for_its_work(lab: Any, cluster: Any, instances: Any) -> None:
    import ray

    spot = instances("spot")
    work = occupy(spot.id)
    drain = start("--drain", "60", "--node-id", spot.id, address=cluster.address)
    lab.await_event(lambda: spot.id in draining_nodes())
    assert drain.poll() is None  # there is work yet
    ray.kill(work)
    said = drain.communicate(timeout=300)[1]
    assert drain.returncode == 0, said
    assert not alive(spot.id)


def test_where_several_nodes_are_meant_none_is_drained(cluster: Any, instances: Any) -> None:
    spot = instances("spot")
    drain = start("--drain", "5", address=cluster.address)  # the head is on this machine as well
    said = drain.communicate(timeout=300)[1]
    assert drain.returncode == 5
    assert "nodes of the cluster" in said
    assert spot.id not in draining_nodes()


def test_a_watcher_that_is_stopped_ends_at_once(lab: Any, cluster: Any, instances: Any) -> None:
    spot = instances("spot")
    watcher = start(address=cluster.address, **{ENDPOINT_VARIABLE: spot.service.url})
    lab.await_event(lambda: ACTION in spot.service.asked)
    watcher.send_signal(signal.SIGTERM)
    watcher.communicate(timeout=300)
    assert watcher.returncode == -signal.SIGTERM
