"""One process of the endpoint: puts its parts together, follows the releases, answers.

Ray Serve makes one ``Replica`` per process. Every replica verifies each model itself and checks keys itself,
because Ray Serve also opens the replicas' own ports, which no proxy guards.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kit.errors import KitError, UnavailableError
from kit.files import create_once
from kit.inference.card import Card
from kit.inference.finite import float_outputs, only_finite
from kit.project import Project
from kit.settings import ServeSettings
from kit.settings.serving import CacheSettings, ServedModelSettings
from kit.tensors import Tensors
from serve import spare
from serve.administration import Administration
from serve.app import App, Rooms
from serve.batching import Batcher
from serve.breaker import Breaker
from serve.caching import MemoryCache, RedisCache, ResponseCache
from serve.endpoints import release_store, replicas_folder
from serve.guards.gatekeeper import Gatekeeper, GuardPlan
from serve.guards.rates import open_rates
from serve.haproxy import socket_path
from serve.listener import Listener
from serve.models import EngineChoice, Loader, Pool, State, prime
from serve.releases import AliasFollower, Follower, Hooks, Release
from serve.releases.command import switch
from serve.releases.shadow import Shadow
from serve.scaling import IN_FLIGHT
from serve.service import Endpoint, Resident, Service
from serve.version_key import VersionKey
from serve.watching.exposition import Publisher
from serve.watching.logs import RequestLog
from serve.watching.metrics import Metrics
from serve.watching.prediction_log import PredictionLog
from serve.watching.tracing import Tracing

#: Faster batches run on the event loop: a thread costs 33 to 80 us, and nothing else may wait much longer.
_INLINE_S = 0.0005
_LOAD_TIMEOUT_S = 600.0
_SHADOW_TIMEOUT_S = 30.0
_SWITCH_TIMEOUT_S = 60.0
_SHADOW_PRIORITY = -10
#: Together less than the 20 s Ray gives a replica to end.
_GRPC_GRACE_S = 5.0
_POOL_GRACE_S = 5.0
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class ReplicaPlan:
    """Everything a replica is told.

    Attributes:
        project: The project's folder, which every node has.
        endpoints: Names of the models it serves.
        trusted: Public keys (PEM), one of which must have signed each version.
        settings: Of ``kit serve``.
        guards: Who may ask.
        others: Models that are served at the same address by deployments of their own.
        leads: Whether it answers what is about the endpoint as a whole, and gRPC.
        sockets: Folder of the sockets at which HAProxy asks replicas; None has them asked through Ray alone.
    """

    project: Path
    endpoints: tuple[str, ...]
    trusted: tuple[bytes, ...]
    settings: ServeSettings
    guards: GuardPlan
    others: tuple[str, ...] = ()
    leads: bool = True
    sockets: Path | None = None


class Replica:
    """One process of the endpoint.

    Args:
        plan: What to serve and to whom.
    """

    def __init__(self, plan: ReplicaPlan) -> None:
        self._plan = plan
        settings = self._settings = plan.settings
        prime(settings.engine)
        project = self._project = Project.open(plan.project)
        self._folder = replicas_folder(project.state)
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
        self.identity = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        needs = settings.model.get(plan.endpoints[0]) if plan.endpoints and not plan.leads else None
        self._metrics = Metrics(
            replicas_wanted=needs.replicas if needs and needs.replicas else settings.replicas,
            deployment=plan.endpoints[0] if needs else "endpoint",
        )
        self._publisher = Publisher(self._metrics.render, folder=self._folder, replica=self.identity)
        self._log = RequestLog(
            project.state / "serve" / "log", replica=self.identity, what=settings.log_requests
        )
        self._metrics.watch_dropped("log", count=lambda: self._log.dropped)
        self._predictions: PredictionLog | None = None
        if settings.prediction_log is not None:
            place = project.locate(settings.prediction_log.folder)
            located = settings.prediction_log.model_copy(update={"folder": place})
            self._predictions = samples = PredictionLog(located, replica=self.identity)
            self._metrics.watch_dropped("samples", count=lambda: samples.dropped)
        self._tracing: Tracing | None = None
        if settings.tracing is not None:
            self._tracing = tracing = Tracing(settings.tracing, replica=self.identity)
            self._metrics.watch_dropped("spans", count=lambda: tracing.dropped)
        self._gatekeeper = Gatekeeper(plan.guards)
        self._rates = open_rates(settings.rates, space=project.name)
        choice = EngineChoice(settings.engine, settings.device, settings.threads)
        self._loader = Loader(
            project.store(),
            trusted=plan.trusted,
            choice=choice,
            own={
                name: EngineChoice(settings.engine, settings.device, own.threads)
                for name, own in settings.model.items()
                if own.threads is not None
            },
            max_batch_rows=settings.max_batch_rows,
        )
        self._endpoints = {model: self._endpoint(model) for model in plan.endpoints}
        self._grpc: Any = None
        self._listener: Listener | None = None
        self._unloading: set[asyncio.Task[None]] = set()
        self._spare: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> App:
        """Give Ray Serve the application (it asks once, after ``__init__``)."""
        rooms = Rooms(
            gatekeeper=self._gatekeeper,
            metrics=self._metrics,
            log=self._log,
            tracing=self._tracing,
            start=self._start,
            listen=self._listen,
            stop=self._stop,
        )
        self._app = App(rooms, max_body_bytes=int(self._settings.max_body_mb * 1e6))
        return self._app

    async def _start(self) -> tuple[Service, Administration]:
        """Load what the releases need; Ray sends requests only afterwards."""
        settings = self._settings
        self._pool: Pool[Resident] = Pool(
            self._load,
            max_bytes=int(settings.memory_mb * 1e6),
            keep_s=settings.keep_s,
            on_change=self._changed,
        )
        service = Service(
            self._endpoints,
            pool=self._pool,
            metrics=self._metrics,
            rates=self._rates,
            log=self._predictions,
        )
        administration = Administration(
            service,
            metrics=self._metrics,
            folder=self._folder,
            replica=self.identity,
            switch=self._switch,
            others=self._plan.others,
            describe_others=self._describe_others,
            secured=settings.auth == "key",
            lazy=settings.lazy,
        )
        self._log.start()
        if self._predictions is not None:
            self._predictions.start()
        store = release_store(self._project)
        self._follower = Follower(
            store,
            hooks=Hooks(
                prepare=self._prepare,
                on_release=self._put_in_force,
                states=self._states,
                shadow=self._compared,
            ),
            folder=self._folder,
            replica=self.identity,
            aliases=AliasFollower(store, registry=self._project.registry()),
        )
        await self._follower.start(self._endpoints)
        for endpoint in self._endpoints.values():
            if endpoint.release is None:
                failure = self._follower.failure(endpoint.model)
                reason = failure[1] if failure else "it has no release"
                raise UnavailableError(f"model {endpoint.model!r} cannot be served: {reason}")
        self._publisher.start()
        if settings.grpc_port is not None and self._plan.leads:
            await self._start_grpc(service, administration)
        self._log.event("replica_started", pid=os.getpid(), models=", ".join(self._endpoints))
        if spare.wanted(settings):
            self._spare = asyncio.create_task(spare.keep())
        return service, administration

    async def _listen(self) -> None:
        """Let HAProxy ask without a detour through Ray."""
        if self._plan.sockets is not None:
            from ray.serve import get_replica_context

            path = socket_path(self._plan.sockets, get_replica_context().replica_tag)
            self._listener = Listener(self._app.behind_proxy, path=path)
            await self._listener.start()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve, which asks, what ``serve.scaling`` decides by."""
        return {IN_FLIGHT: float(self._metrics.in_flight)}

    async def _start_grpc(self, service: Service, administration: Administration) -> None:
        from serve.grpc import start_server

        self._grpc = await start_server(
            service,
            administration=administration,
            gatekeeper=self._gatekeeper,
            settings=self._settings,
            on_end=self._app.ended,
            trace=self._tracing.begin if self._tracing is not None else None,
        )

    async def _stop(self) -> None:
        """Let what is in work end, and leave nothing behind."""
        if self._listener is not None:
            await self._listener.close()
        if self._grpc is not None:
            await self._grpc.stop(_GRPC_GRACE_S)
        if self._spare is not None:
            self._spare.cancel()
        await self._follower.stop()
        for endpoint in self._endpoints.values():
            if endpoint.shadow is not None:
                endpoint.shadow.close()
        await self._pool.close(timeout_s=_POOL_GRACE_S)
        self._gatekeeper.close()
        if self._rates is not None:
            await self._rates.close()
        for room in (self._publisher, self._predictions, self._tracing, self._log):
            if room is not None:
                await asyncio.to_thread(room.close)

    def _endpoint(self, model: str) -> Endpoint:
        settings = self._settings
        own = settings.model.get(model, ServedModelSettings())
        deadline_ms = own.deadline_ms if own.deadline_ms is not None else settings.deadline_ms
        max_wait_ms = own.max_wait_ms if own.max_wait_ms is not None else settings.max_wait_ms
        return Endpoint(
            model,
            own,
            deadline_s=deadline_ms / 1000,
            max_batch_rows=own.max_batch_rows or settings.max_batch_rows,
            max_wait_s=max_wait_ms / 1000,
            cache=self._open_cache(own.cache) if own.cache is not None else None,
            fallback=self._version(model, own.fallback) if isinstance(own.fallback, int) else None,
        )

    def _version(self, model: str, number: int) -> VersionKey:
        return VersionKey(model, number, self._project.registry().resolve(f"{model}@{number}").digest)

    def _open_cache(self, settings: CacheSettings) -> ResponseCache:
        memory = MemoryCache(max_bytes=int(settings.max_mb * 1e6), ttl_s=settings.ttl_s)
        shared = None
        if settings.redis is not None:
            # Redis is not trusted: what comes from it counts only if somebody who knows this put it there.
            path = self._project.state / "serve" / "cache-secret"
            create_once(path, secrets.token_bytes(32), mode=0o600)
            shared = RedisCache(settings.redis, secret=path.read_bytes(), ttl_s=settings.ttl_s)
        return ResponseCache(memory, shared=shared)

    def _load(self, key: VersionKey) -> Resident:
        """Load a version and what only it has; blocks, in a thread."""
        counts = self._metrics.of(key.model, str(key.number))
        try:
            loaded = self._loader.load(key)
        except BaseException:
            counts.load_failed()
            raise
        endpoint, most_rows = self._endpoints[key.model], self._settings.max_queue_rows
        batcher = Batcher(
            only_finite(loaded.engine.run_validated, outputs=float_outputs(loaded.card.signature)),
            max_rows=endpoint.max_batch_rows,
            max_wait_s=endpoint.max_wait_s,
            max_queue_rows=most_rows,
            inline_s=_INLINE_S,
            on_batch=counts.batch,
        )
        batcher.calibrate(loaded.sample)
        breaker = Breaker(self._settings.breaker)
        counts.loaded(loaded.times_s, n_bytes=loaded.memory_bytes)
        counts.watch(
            queue_rows=lambda: batcher.waiting_rows,
            queue_limit_rows=most_rows,
            breaker=lambda: breaker.state,
        )
        return Resident(key, loaded, batcher=batcher, breaker=breaker, counts=counts)

    def _describe_others(self) -> list[Card]:
        """Describe what deployments of their own serve at this address; blocks, in a thread."""
        store = release_store(self._project)
        heads = [store.head(model) for model in self._plan.others]
        return [self._loader.card(key) for head in heads if head is not None for key in head.needed()]

    async def _prepare(self, release: Release) -> None:
        """Have every version loaded that a release needs; raises what the first failure was."""
        deadline_s = time.monotonic() + _LOAD_TIMEOUT_S
        leased = []
        try:
            for key in self._to_load(release):
                try:
                    await self._pool.acquire(key, deadline_s=deadline_s)
                except KitError as error:
                    raise self._explained(key, error) from error
                leased.append(key)
        finally:
            for key in leased:
                self._pool.release(key)

    def _to_load(self, release: Release) -> tuple[VersionKey, ...]:
        """Name what is loaded before a release comes in force; lazy models wait for their first request."""
        endpoint = self._endpoints[release.endpoint]
        if self._settings.lazy:
            states = self._pool.states()
            if not any(key in states and states[key].status == "READY" for key in endpoint.keys.values()):
                return ()
        return endpoint.needed(release)

    def _explained(self, key: VersionKey, error: KitError) -> KitError:
        """Say to operators, who read what comes of a release, why a version cannot be had."""
        state = self._pool.states().get(key)
        if state is None or state.status != "FAILED":
            return error
        return type(error)(
            f"{key} could not be loaded: {state.reason.removeprefix(f'{key}: ')}", hint=error.hint
        )

    def _put_in_force(self, release: Release) -> None:
        """Let a prepared release decide from now on."""
        endpoint = self._endpoints[release.endpoint]
        before = endpoint.shadow
        counts = (
            before.counts if before and release.shadow and before.digest == release.shadow.digest else None
        )
        endpoint.put_in_force(release)
        endpoint.shadow = None
        if before is not None:
            before.close()
            for each in self._pool.states():
                if each.digest == before.digest:
                    self._metrics.of(each.model, str(each.number)).watch_shadow(None)
        if release.shadow is not None:
            key = release.version_key(release.shadow)
            shadow = endpoint.shadow = Shadow(
                key.digest,
                run=partial(self._run_shadow, key),
                busy=lambda: self._busy(release),
                counts=counts,
            )
            self._metrics.of(key.model, str(key.number)).watch_shadow(lambda: shadow.counts)
        if not self._settings.lazy:
            known = [each for each in self._endpoints.values() if each.release is not None]
            self._pool.want(key for each in known if each.release for key in each.needed(each.release))
        if release.paused:
            for key in endpoint.keys.values():
                self._unloading.add(task := asyncio.create_task(self._pool.unload(key)))
                task.add_done_callback(self._unloading.discard)
        shares = {str(each.number): each.percent / 100 for each in release.versions}
        self._metrics.release(
            release.endpoint,
            sequence=release.sequence,
            shares=shares,
            failed=lambda: (self._follower.failure(release.endpoint) or (0, ""))[0],
        )
        self._log.event(
            "release",
            model=release.endpoint,
            sequence=release.sequence,
            origin=release.origin,
            note=release.note,
        )

    async def _switch(self, model: str, on: bool) -> None:
        """Load or unload a model in every replica, by a release; returns when they have it in force.

        Raises:
            ConflictError: Somebody else made a release at the same moment.
            UnavailableError: A replica could not load it, or did not in time.
        """
        head = self._follower.in_force(model) if model in self._endpoints else None
        if model not in self._endpoints:  # it runs in a deployment of its own
            head = await asyncio.to_thread(release_store(self._project).head, model)
        if head is None or head.paused is not on:  # it is so already
            for key in head.needed() if on and head is not None else ():
                await self._pool.acquire(key, deadline_s=time.monotonic() + _SWITCH_TIMEOUT_S)
                self._pool.release(key)
            return
        try:
            await asyncio.to_thread(switch, self._project, model, on=on, wait_s=_SWITCH_TIMEOUT_S)
        except UnavailableError as error:  # it names replicas and files, which are not for clients
            self._log.event("switch_failed", level="error", model=model, reason=error.message)
            raise UnavailableError(
                f"not every replica has {model!r} {'loaded' if on else 'unloaded'}",
                hint="the endpoint's log says why",
            ) from error

    async def _run_shadow(self, key: VersionKey, inputs: Tensors) -> Tensors:
        deadline_s = time.monotonic() + _SHADOW_TIMEOUT_S
        resident = await self._pool.acquire(key, deadline_s=deadline_s)
        try:
            n_rows = len(next(iter(inputs.values())))
            return await resident.batcher.submit(
                inputs, n_rows=n_rows, deadline_s=deadline_s, priority=_SHADOW_PRIORITY
            )
        finally:
            self._pool.release(key)

    def _busy(self, release: Release) -> bool:
        """Say whether requests of an endpoint wait for an engine."""
        for key in release.needed():
            resident = self._pool.lease(key)
            if resident is not None:
                waiting = resident.batcher.waiting_rows
                self._pool.release(key)
                if waiting:
                    return True
        return False

    def _states(self, model: str) -> Mapping[str, Any]:
        return {
            str(key.number): asdict(state) for key, state in self._pool.states().items() if key.model == model
        }

    def _compared(self, model: str) -> Mapping[str, Any]:
        shadow = self._endpoints[model].shadow
        return shadow.told() if shadow is not None else {}

    def _changed(self, key: VersionKey, state: State) -> None:
        if state.status == "FAILED":
            self._log.event(
                "load_failed", level="error", model=key.model, version=key.number, reason=state.reason
            )
        if state.status in ("FAILED", "UNAVAILABLE"):
            self._metrics.of(key.model, str(key.number)).unloaded()
