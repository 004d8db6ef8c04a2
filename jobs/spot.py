"""Spot nodes: hear that one will be taken away, and have Ray place nothing more on it.

EC2 announces the end of a spot instance two minutes ahead, to that instance alone, and nothing in Ray
listens. ``watching`` keeps a small actor on every spot node while a driver runs; ``python -m jobs.spot``
does the same on the node itself, for as long as it lives; ``python -m jobs.spot --drain 90`` is what a pod
runs before it is stopped. All three end in the same request: drain this node. Knows nothing of the work
that runs there.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from jobs.cluster import show_token
from jobs.notices import POLL_S, Metadata, Notice, is_spot, notices
from kit.errors import EXIT_CODES, KitError, NotFoundError, UnavailableError

_log = logging.getLogger("kit")

Market = Literal["spot", "on-demand", "local"]
MARKET_LABEL = "ray.io/market-type"
_RPC_TIMEOUT_S = 5.0
_RECOMMENDED_S = 120.0  # longest time a node is tried to be drained


def drain(node_id: str, *, notice: Notice, address: str) -> None:
    """Ask Ray to place nothing more on a node, and to let what runs there know.

    Args:
        node_id: Of the node, hexadecimal.
        notice: Why, and when the node will be gone.
        address: ``host:port`` of the cluster's head.

    Raises:
        UnavailableError: The head does not answer, or refuses.
    """
    from ray.core.generated import autoscaler_pb2

    reasons: Any = autoscaler_pb2
    deadline_ms = int(notice.deadline_s * 1000) if math.isfinite(notice.deadline_s) else 0
    reason = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    with _reached(address):
        accepted, why = _client(address).drain_node(node_id, reason, f"EC2: {notice.action}", deadline_ms)
    if not accepted:
        raise UnavailableError(f"Ray does not drain the node {node_id}: {why}")


def draining_nodes() -> dict[str, float]:
    """Give the nodes of the connected cluster that are being drained.

    Returns:
        Node id, hexadecimal, to the moment it will be gone, in seconds since 1970; infinity where
        nobody said.

    Raises:
        UnavailableError: The head does not answer.
    """
    address = _connected_address()
    with _reached(address):
        found: Mapping[str, int] = _connected_client().get_draining_nodes(timeout=_RPC_TIMEOUT_S)
    return {node: deadline_ms / 1000 if deadline_ms else math.inf for node, deadline_ms in found.items()}


def market_of(node: Mapping[str, Any]) -> Market:
    """Say which market a node was bought on, by its label.

    Args:
        node: One of ``ray.nodes()``.
    """
    label = (node.get("Labels") or {}).get(MARKET_LABEL)
    return label if label in ("spot", "on-demand") else "local"


@contextlib.contextmanager
def watching(
    *, nodes: Callable[[], Collection[str]] | None = None, rebalance: bool = False
) -> Iterator[None]:
    """Have the spot nodes of the connected cluster watched while the block lasts, late ones too.

    Nothing needs to be installed on the nodes: the watchers are actors without CPUs.

    Args:
        nodes: Gives the nodes that are worth watching now, by id; None is all. A watched node is not
            idle to the autoscaler, so whoever has no more work for one leaves it out.
        rebalance: See ``Metadata.notice``.
    """
    keeper = _Keeper(nodes=nodes, rebalance=rebalance)
    keeper.start()
    try:
        yield
    finally:
        keeper.end()


class _Watcher:
    """The actor on a spot node."""

    def run(self, *, rebalance: bool) -> str:
        """Watch until the last notice; gives what was said, "" on a machine that has nothing to say."""
        import ray

        metadata = Metadata()
        if not is_spot(metadata):
            return ""
        node_id = ray.get_runtime_context().get_node_id()
        said = _drain_on_notice(metadata, rebalance=rebalance, node_id=node_id, address=_connected_address())
        return said.action


class _Keeper(threading.Thread):
    """Starts a watcher on each spot node of the cluster and takes them away at the end."""

    def __init__(self, *, nodes: Callable[[], Collection[str]] | None, rebalance: bool) -> None:
        super().__init__(name="spot-keeper", daemon=True)
        self._nodes = nodes
        self._rebalance = rebalance
        self._over = threading.Event()
        self._watchers: dict[str, tuple[Any, Any]] = {}  # node to its actor and what it will have said
        self._done: set[str] = set()

    def run(self) -> None:
        """Look at the nodes every two seconds."""
        import ray

        while not self._over.is_set():
            try:
                self._look()
            except (ray.exceptions.RayError, RuntimeError, ConnectionError, TimeoutError) as error:
                _log.warning("spot nodes cannot be looked at now: %s", str(error)[:200])
            self._over.wait(POLL_S)

    def end(self) -> None:
        """Stop looking and end the watchers."""
        self._over.set()
        self.join()
        for node_id in list(self._watchers):
            self._release(node_id)

    def _look(self) -> None:
        import ray

        known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's gap
        alive = {node["NodeID"] for node in known if node["Alive"] and market_of(node) == "spot"}
        wanted = alive if self._nodes is None else alive.intersection(self._nodes())
        for node_id, (_, answer) in list(self._watchers.items()):
            if ray.wait([answer], timeout=0)[0]:
                self._heard(node_id, answer, alive=node_id in alive)
            elif node_id not in wanted:
                self._release(node_id)
        for node_id in sorted(wanted - self._watchers.keys() - self._done):
            self._watchers[node_id] = self._watch(node_id)

    def _heard(self, node_id: str, answer: Any, *, alive: bool) -> None:
        import ray

        self._watchers.pop(node_id)
        try:
            said = ray.get(answer)
        except ray.exceptions.RayError as error:
            if alive:  # another watcher is tried at the next look
                _log.warning("the spot node %s is not watched: %s", node_id[:12], str(error)[:200])
            return
        self._done.add(node_id)
        if said:
            _log.warning("EC2 takes the spot node %s away (%s); it is drained", node_id[:12], said)

    def _release(self, node_id: str) -> None:
        import ray

        actor, _ = self._watchers.pop(node_id)
        with contextlib.suppress(ray.exceptions.RayError, RuntimeError):  # its node is gone, or Ray is
            ray.kill(actor)

    def _watch(self, node_id: str) -> tuple[Any, Any]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": there}
        actor: Any = ray.remote(**options)(_Watcher).remote()
        return actor, actor.run.remote(rebalance=self._rebalance)


def _drain_on_notice(
    metadata: Metadata, *, rebalance: bool, node_id: str | None, address: str | None
) -> Notice:
    """Drain the node at each notice and give the last one; a head that does not answer is asked again.

    The node and the head are looked up when there is a notice, where they are not given: a node may
    have been restarted in the meantime.

    Raises:
        KitError: The node could not be drained before its time was over.
    """
    said = Notice("", math.inf)
    for said in notices(metadata, rebalance=rebalance, stop=threading.Event()):
        last_s = min(said.deadline_s, time.time() + _RECOMMENDED_S)
        while True:
            try:
                head = address or _own_address()
                drain(node_id or own_node(head), notice=said, address=head)
                break
            except (UnavailableError, NotFoundError) as error:
                _log.warning("%s", error.message)
                if time.time() > last_s:
                    if said.action != "rebalance":
                        raise
                    break
            time.sleep(POLL_S)
    return said


def own_node(address: str) -> str:
    """Find the node of a cluster that runs on this machine.

    Args:
        address: ``host:port`` of the cluster's head.

    Returns:
        Its id, hexadecimal.

    Raises:
        NotFoundError: None, or more than one, runs here.
        UnavailableError: The head does not answer.
    """
    here = _alive_nodes(address, ip=_own_ip())
    if len(here) != 1:
        raise NotFoundError(
            f"{len(here)} nodes of the cluster at {address} run on {_own_ip()}",
            hint="name the one that is meant: --node-id",
        )
    return here[0]


def _alive_nodes(address: str, *, ip: str | None = None) -> list[str]:
    from ray.core.generated import gcs_pb2

    states: Any = gcs_pb2
    with _reached(address):
        nodes = _client(address).get_all_node_info(timeout=_RPC_TIMEOUT_S)
    return [
        node_id.hex()
        for node_id, node in nodes.items()
        if node.state == states.GcsNodeInfo.ALIVE and ip in (None, node.node_manager_address)
    ]


def _own_ip() -> str:
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray's gap


def _own_address() -> str:
    """Find the head of the cluster whose node runs here: RAY_ADDRESS, or what ``ray start`` wrote down."""
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address_or_die(None))  # type: ignore[arg-type]  # Ray's gap
    except (ConnectionError, ValueError) as error:
        raise UnavailableError(
            f"no Ray runs on this machine: {str(error)[:200]}", hint="start it first, or set RAY_ADDRESS"
        ) from error


def _connected_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _connected_client() -> Any:
    import ray

    worker: Any = ray._private.worker.global_worker
    return worker.gcs_client


def _client(address: str) -> Any:
    import ray

    clients: Any = ray._raylet
    return clients.GcsClient(address=address)


@contextlib.contextmanager
def _reached(address: str) -> Iterator[None]:
    """Turn what Ray's client of the head raises into ours."""
    import ray

    try:
        yield
    except (ray.exceptions.RayError, RuntimeError, ConnectionError, TimeoutError) as error:
        raise UnavailableError(f"the head at {address} does not answer: {str(error)[:200]}") from error


def _drain_now(*, node_id: str | None, seconds: float) -> None:
    """Drain this machine's node and wait until it has ended by itself, or the time is over."""
    address = _own_address()
    node = node_id or own_node(address)
    deadline_s = time.time() + seconds
    drain(node, notice=Notice("terminate", deadline_s), address=address)
    while time.time() < deadline_s and node in _alive_nodes(address):
        time.sleep(POLL_S / 2)


def main(words: Sequence[str] | None = None) -> int:
    """Watch this machine, or drain its node now; see the module.

    Args:
        words: The command line; this process's own when left out.

    Returns:
        The exit code: 0 also where there is nothing to watch.
    """
    parser = argparse.ArgumentParser(prog="python -m jobs.spot", description="Drain a spot node in time.")
    parser.add_argument("--drain", type=float, metavar="SECONDS", help="drain now and wait at most so long")
    parser.add_argument("--node-id", help="the Ray node on this machine, where there are several")
    parser.add_argument("--rebalance", action="store_true", help="a recommendation to leave counts too")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    show_token()
    try:
        if given.drain is not None:
            _drain_now(node_id=given.node_id, seconds=given.drain)
            return 0
        metadata = Metadata()
        if not is_spot(metadata):
            _log.info("this machine is not a spot instance; there is nothing to watch")
            return 0
        _log.info("watching for the interruption notice of this spot instance")
        said = _drain_on_notice(metadata, rebalance=given.rebalance, node_id=given.node_id, address=None)
        _log.warning("EC2 takes this instance away (%s); its node is drained", said.action)
        return 0
    except KitError as error:
        _log.error("%s", error.message)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


if __name__ == "__main__":
    sys.exit(main())
