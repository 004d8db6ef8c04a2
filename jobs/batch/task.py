"""A batch run from its plan to its manifest: what is left is run on Ray, counted, reported and closed.

Which run it is, and whether it may be, ``jobs.predict`` has decided.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.batch.actor import Work
from jobs.batch.cost import Stay
from jobs.batch.finish import Allowance, count, damaged_shards, manifest_of
from jobs.batch.ledger import Commit, Ledger
from jobs.batch.live import Extent, Live
from jobs.batch.parts import Layout
from jobs.batch.plan import Plan, Shard
from jobs.batch.pool import Member, Pool
from jobs.batch.report import About, build, preload, write_page
from jobs.batch.run import Run
from jobs.cluster import check_room, connected, translated
from jobs.runs import remember
from jobs.spot import watching
from kit.errors import MissingDependencyError
from kit.files import canonical_json
from kit.model_version import ModelVersion
from kit.project import Project
from kit.settings import PredictSettings

_log = logging.getLogger("kit")


@dataclass
class Task:
    """A run or a retry, and what is known of it so far.

    Attributes:
        project: Whose model runs.
        settings: As they were given.
        version: The model version, verified.
        ledger: Where it is written down.
        plan: What is to be done.
        lost: Set when another driver has taken the output folder.
        kept: Records of earlier drivers, by shard.
        made: Records of this one.
        engine: The rows per call and the speed of the engine alone.
        seconds: Wall time of the shards of this driver.
    """

    project: Project
    settings: PredictSettings
    version: ModelVersion
    ledger: Ledger
    plan: Plan
    lost: threading.Event
    kept: dict[str, Commit] = field(default_factory=dict)
    made: dict[str, Commit] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def commits(self) -> list[Commit]:
        """All records, in the order of the shards."""
        both = {**self.kept, **self.made}
        return [both[shard.name] for shard in self.plan.shards if shard.name in both]


def complete(task: Task) -> int:
    """Do what is left of a run, and close it.

    Returns:
        Rows of the table.

    Raises:
        GateError: More rows are refused than ``max_bad_rows`` allows, or the rows do not add up.
        InputError: The input breaks a rule as a whole; the message names the file.
        UnavailableError: The cluster, S3 or the disk fails.
        KeyboardInterrupt: It was interrupted; what was in flight is done and kept.
    """
    ledger, plan = task.ledger, task.plan
    manifest = ledger.read("manifest")
    if manifest is not None:
        _log.info("run %s in %s is finished; nothing is left to do", plan.run_id, ledger.place.uri)
        task.kept = ledger.commits()
        return int(manifest["rows_in"])
    remember(task.project, ledger.place.uri)
    ledger.place.clear_leftovers()
    task.kept = _still_there(ledger)
    left = [shard for shard in plan.shards if shard.name not in task.kept]
    if task.kept:
        _log.info("run %s: %d of %d shards are done", plan.run_id, len(task.kept), len(plan.shards))
    task.engine = ledger.read("engine") or {}
    stays = _shards_run(task, left) if left else ()
    counts = count(plan, task.commits, ledger.place)
    Allowance(task.settings.max_bad_rows, n_rows=counts.rows_in).require(task.commits, finished=True)
    facts = build(
        About(
            model=plan.model,
            digest=plan.digest,
            engine=str(task.engine.get("engine", task.settings.engine)),
            input=plan.reading.uri,
            output=ledger.place.uri,
            classes=tuple(map(str, task.version.signature.classes)),
            retry=ledger.retry,
        ),
        task.commits,
        stays=stays,
        prices=task.settings.prices,
        engine=task.engine,
        profile=task.version.profile,
    )
    ledger.put("report.json", canonical_json(facts))
    try:
        ledger.put("report.html", write_page(task.project, facts))
    except MissingDependencyError as error:  # the answers do not depend on the page
        _log.warning("no %s was written: %s", ledger.name("report.html"), error.message)
    ledger.place.settle()
    ledger.create("manifest", manifest_of(plan, task.commits, counts))
    task.project.write_record("predict", f"{time.time_ns()}-{plan.run_id}", facts)
    return counts.rows_in


def _still_there(ledger: Ledger) -> dict[str, Commit]:
    """Give the records whose files are as committed; what a power cut or a hand took is made anew."""
    commits = ledger.commits()
    damaged = damaged_shards(list(commits.values()), ledger.place)
    for shard, why in damaged.items():
        _log.warning("%s; %s is made anew", why, shard)
    ledger.place.delete(ledger.commit_name(shard) for shard in damaged)
    return {shard: commit for shard, commit in commits.items() if shard not in damaged}


def _shards_run(task: Task, left: Sequence[Shard]) -> tuple[Stay, ...]:
    """Run the shards that are left on Ray; gives when which node held an actor."""
    settings, plan = task.settings, task.plan
    allowance = Allowance(settings.max_bad_rows, n_rows=plan.n_rows)
    with connected(settings.address, project=task.project), _hinted(task):
        threading.Thread(target=preload, daemon=True).start()  # while the actors' processes start
        gpus = 1.0 if settings.device in ("cuda", "tensorrt") else 0.0
        if settings.workers:
            check_room(settings.workers, threads=max(settings.threads, 1), address=settings.address)
        pool = Pool(_work(task), workers=settings.workers, gpus=gpus)
        started_s = 0.0

        sizes = {shard.name: shard.n_bytes for shard in plan.shards}
        resumed = Extent(
            len(task.kept),
            sum(sizes[name] for name in task.kept),
            sum(each.rows_in for each in task.kept.values()),
        )
        total = Extent(len(sizes), sum(sizes.values()), plan.n_rows)
        with watching(nodes=lambda: pool.held), Live(total, resumed=resumed) as live:

            def on_start(member: Member, shard: Shard) -> int:
                nonlocal started_s
                task.engine = _engine_of(task, member, shard)
                started_s = time.monotonic()
                live.begin()
                return int(task.engine["batch_rows"])

            def on_commit(commit: Commit) -> None:
                task.made[commit.shard] = commit
                live.done(commit, n_bytes=sizes[commit.shard])
                if commit.rows_refused:
                    allowance.require(task.commits, finished=False)

            run = Run(
                pool=pool,
                shards=left,
                on_start=on_start,
                on_commit=on_commit,
                on_tick=lambda pool: live.pool(pool.nodes, actors=len(pool.members), restarts=pool.restarts),
                lost=task.lost.is_set,
            )
            try:
                run.go()
                task.seconds = time.monotonic() - started_s
            finally:
                pool.close()
        return tuple(pool.stays)


def _engine_of(task: Task, member: Member, shard: Shard) -> dict[str, Any]:
    """Settle the rows per call: what the run's first driver found stays, and so do the answers."""
    import ray

    known = task.ledger.read("engine")
    if known is not None:
        return known
    wanted = task.settings.batch_rows
    with translated():
        found = ray.get(member.handle.measure.remote(shard, wanted if isinstance(wanted, int) else None))
    assert member.ready is not None
    facts = {**found, "engine": member.ready.engine, "threads": task.settings.threads}
    task.ledger.create("engine", facts)
    if wanted == "auto":
        _log.info("%s rows a call", f"{facts['batch_rows']:,}")
    return facts


@contextlib.contextmanager
def _hinted(task: Task) -> Iterator[None]:
    """Say how much is kept when a run ends early."""
    try:
        yield
    except BaseException:
        n_done = len(task.commits)
        _log.warning(
            "%d of %d shards are done and kept in %s; the same command resumes",
            n_done,
            len(task.plan.shards),
            task.ledger.place.uri,
        )
        raise


def _work(task: Task) -> Work:
    settings, project = task.settings, task.project
    return Work(
        store=project.store().uri,
        cache=project.state / "cache",
        digest=task.plan.digest,
        trusted=project.trusted(),
        output=task.ledger.place.uri,
        retry=task.ledger.retry,
        reading=task.plan.reading,
        layout=Layout(settings.codec, settings.row_group_rows, settings.partition_by),
        columns=settings.columns,
        outputs=settings.outputs,
        origin=settings.origin,
        engine=settings.engine,
        device=settings.device,
        threads=settings.threads,
        formats=frozenset(file.format for file in task.plan.files),
    )
