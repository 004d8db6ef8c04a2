"""One request, whatever it came by: which version answers it, and how its answer is found.

REST and gRPC both call ``Service.infer``. Split, lease of the version, cache, breaker, batcher, fallback and
shadow stand here in their order. It knows no bytes, no sockets and nothing of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kit.errors import KitError, ModelError, NotFoundError, UnavailableError, VerificationError, nearest
from kit.inference.card import Card
from kit.inference.errors import BrokenError, DeadlineError, RateLimitedError
from kit.inference.request import InferRequest, RawRequest
from kit.settings.serving import ServedModelSettings
from kit.tensors import Tensors
from serve.batching import Batcher
from serve.breaker import Breaker
from serve.caching import ResponseCache, key_of
from serve.calls import Answer, Call
from serve.fallback import constant_outputs
from serve.guards.rates import RateLimiter
from serve.models import Loaded, Pool, State
from serve.releases import Release
from serve.releases.shadow import Shadow
from serve.version_key import VersionKey
from serve.watching.metrics import Metrics
from serve.watching.prediction_log import PredictionLog
from serve.watching.version_metrics import VersionMetrics

_SHOWN = 80
#: What the protocol's priority 0, no priority, is worth, and the least of all.
_ORDINARY, _LEAST = 6, -10


class Resident:
    """A loaded version, and what only it has: its queue and its breaker.

    Args:
        key: Which version.
        loaded: Its engine and facts.
        batcher: Its queue.
        breaker: Decides whether it is asked.
        counts: What is counted of it.
    """

    __slots__ = ("batcher", "breaker", "card", "counts", "key", "memory_bytes")

    def __init__(
        self, key: VersionKey, loaded: Loaded, *, batcher: Batcher, breaker: Breaker, counts: VersionMetrics
    ) -> None:
        self.key, self.batcher, self.breaker, self.counts = key, batcher, breaker, counts
        self.card = loaded.card
        self.memory_bytes = loaded.memory_bytes

    def close(self) -> None:
        """End its thread; nobody asks it any more."""
        self.batcher.close()


@dataclass
class Endpoint:
    """One served model in this replica.

    Attributes:
        model: Its name.
        settings: What it has of its own.
        deadline_s: Longest wait for an answer.
        max_batch_rows: Most rows of one engine call.
        max_wait_s: Longest wait for more rows.
        cache: Answers that are kept; None when none are.
        release: The one in force; None until the first is.
        shadow: Compares the release's shadow version; None without one.
        fallback: The version that answers while another one is broken; None without one.
        keys: What may be asked for by number.
    """

    model: str
    settings: ServedModelSettings
    deadline_s: float
    max_batch_rows: int
    max_wait_s: float
    cache: ResponseCache | None = None
    release: Release | None = None
    shadow: Shadow | None = None
    fallback: VersionKey | None = None
    keys: dict[str, VersionKey] = field(default_factory=dict)

    def needed(self, release: Release) -> tuple[VersionKey, ...]:
        """Name what must be loaded while a release is in force."""
        needed = release.needed()
        return needed if self.fallback is None or not needed else tuple({*needed, self.fallback})

    def put_in_force(self, release: Release) -> None:
        """Let a release decide from now on."""
        self.keys = {
            str(each.number): VersionKey(self.model, each.number, each.digest) for each in release.all
        }
        self.release = release


class Service:
    """Answers requests for the endpoints of this replica.

    Args:
        endpoints: By the model's name.
        pool: Where loaded versions are.
        rates: Limits per client; None without any.
        metrics: Counts.
        log: Keeps samples; None when none are kept.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        *,
        pool: Pool[Resident],
        metrics: Metrics,
        rates: RateLimiter | None = None,
        log: PredictionLog | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.pool = pool
        self.metrics = metrics
        self._rates = rates
        self._log = log

    def endpoint(self, model: str) -> Endpoint:
        """Find a served model.

        Raises:
            NotFoundError: It is not served here.
        """
        endpoint = self.endpoints.get(model)
        if endpoint is None:
            shown = model[:_SHOWN]
            raise NotFoundError(f"model {shown!r} is not served here", hint=nearest(shown, self.endpoints))
        return endpoint

    async def infer(self, call: Call, raw: RawRequest) -> Answer:
        """Answer a request.

        Raises:
            BrokenError: The version failed too often lately and has no fallback.
            DeadlineError: The answer would come too late.
            InputError: The tensors break the signature.
            ModelError: The version failed on these rows.
            NotFoundError: The model or the version is not served here.
            OverloadedError: The client's limit or the queue is full.
            UnavailableError: The version cannot be loaded.
        """
        self.metrics.in_flight += 1
        try:
            return await self._infer(self.endpoint(call.model), call, raw)
        finally:
            self.metrics.in_flight -= 1

    async def _infer(self, endpoint: Endpoint, call: Call, raw: RawRequest) -> Answer:
        if self._rates is not None:
            try:
                waiting = self._rates.check(call.caller, call.model)
                if waiting is not None:
                    await waiting
            except RateLimitedError:
                self.metrics.rate_limited(call.model)
                raise
        release = _in_force(endpoint)
        if call.version is None:
            caller = call.caller
            subject = caller.subject if caller.kind != "peer" else None
            key = release.choose(release.key_of(subject=subject, headers=call.headers, field=raw.field))
        else:
            key = _asked(endpoint, call.version)
        try:
            return await self._ask(endpoint, release, key, call, raw, fallback="")
        except (BrokenError, ModelError, VerificationError) as error:
            chosen = endpoint.settings.fallback
            if chosen is None:
                raise
            return await self._fall_back(endpoint, release, key, call, raw, chosen=chosen, error=error)

    async def _ask(
        self,
        endpoint: Endpoint,
        release: Release,
        key: VersionKey,
        call: Call,
        raw: RawRequest,
        *,
        fallback: str,
    ) -> Answer:
        pool = self.pool
        call.chosen = key
        resident = pool.lease(key)
        if resident is None:
            resident = await pool.acquire(key, deadline_s=call.deadline_s)
        try:
            request = raw.decode(resident.card.signature)
            cached = False
            if endpoint.cache is None:
                outputs = await _run(resident, request, call, allowed_s=endpoint.deadline_s)
            else:
                compute = partial(self._compute, key, request, call)
                outputs, cached = await endpoint.cache.answer(
                    key_of(key.digest, request.inputs), compute, deadline_s=call.deadline_s
                )
                resident.counts.cached("hit" if cached else "miss")
            shadow = endpoint.shadow
            if shadow is not None and not (cached or fallback or call.version) and release.shadows():
                shadow.offer(request.inputs, outputs, seconds=time.monotonic() - call.began_s)
            if self._log is not None:
                self._log.offer(
                    call.request_id,
                    card=resident.card,
                    release=release.sequence,
                    inputs=request.inputs,
                    outputs=outputs,
                )
            return Answer(request, resident.card, outputs, release.sequence, fallback, cached)
        finally:
            pool.release(key)

    async def _compute(self, key: VersionKey, request: InferRequest, call: Call) -> Tensors:
        """Compute for all who wait for an equal answer, with a lease that outlives whoever asked first."""
        resident = await self.pool.acquire(key, deadline_s=call.deadline_s)
        try:
            return await _run(resident, request, call, allowed_s=self.endpoints[key.model].deadline_s)
        finally:
            self.pool.release(key)

    async def _fall_back(
        self,
        endpoint: Endpoint,
        release: Release,
        key: VersionKey,
        call: Call,
        raw: RawRequest,
        *,
        chosen: int | Mapping[str, Any],
        error: KitError,
    ) -> Answer:
        if isinstance(chosen, int):
            other = endpoint.fallback
            if other is None or other == key:
                raise error
            return await self._ask(endpoint, release, other, call, raw, fallback="version")
        resident = self.pool.lease(key)
        if resident is None:
            raise error
        try:
            request = raw.decode(resident.card.signature)
            outputs = constant_outputs(resident.card.signature, chosen, n_rows=request.n_rows)
            return Answer(request, resident.card, outputs, release.sequence, "constant", False)
        finally:
            self.pool.release(key)

    def cards(self, model: str) -> list[Card]:
        """Give the loaded versions of a model, those with traffic first."""
        found = []
        for key in self.endpoint(model).keys.values():
            resident = self.pool.lease(key)
            if resident is not None:
                found.append(resident.card)
                self.pool.release(key)
        return found

    def state(self, model: str, version: str | None) -> State:
        """Say how a version stands in this replica; without a number, the first one with traffic.

        Raises:
            NotFoundError: The model or the version is not served here.
        """
        endpoint = self.endpoint(model)
        key = _asked(endpoint, version) if version is not None else next(iter(endpoint.keys.values()))
        return self.pool.states().get(key, State.absent())


async def _run(resident: Resident, request: InferRequest, call: Call, *, allowed_s: float) -> Tensors:
    breaker = resident.breaker
    now_s = time.monotonic()
    if not breaker.allow(now_s):
        error = BrokenError(
            f"version {resident.card.version} of model {resident.card.name!r} failed too often lately",
            hint="ask again later",
        )
        error.retry_after_s = breaker.retry_after_s(now_s)
        raise error
    trace = call.trace
    began_ns = time.time_ns() if trace is not None else 0
    try:
        outputs = await resident.batcher.submit(
            request.inputs, n_rows=request.n_rows, deadline_s=call.deadline_s, priority=_rank(call.priority)
        )
    except ModelError:
        breaker.failed(time.monotonic())
        raise
    except DeadlineError:
        # An engine that hangs is broken, too. A client that is in a hurry breaks nothing.
        if time.monotonic() >= call.deadline_s >= call.began_s + allowed_s:
            breaker.failed(time.monotonic())
        raise
    if trace is not None:
        trace.stage("queue and engine", started_ns=began_ns, ended_ns=time.time_ns())
    breaker.succeeded(now_s)
    return outputs


def _rank(priority: int) -> int:
    """Turn the protocol's priority, where less goes first, into the batcher's, where more does."""
    return max(_ORDINARY - priority, _LEAST) if priority else 0


def _in_force(endpoint: Endpoint) -> Release:
    if endpoint.release is None:
        raise UnavailableError(f"model {endpoint.model!r} is not ready", hint="ask again in a moment")
    if endpoint.release.paused:
        raise UnavailableError(
            f"model {endpoint.model!r} is unloaded",
            hint=f"load it: POST /v2/repository/models/{endpoint.model}/load",
        )
    return endpoint.release


def _asked(endpoint: Endpoint, version: str) -> VersionKey:
    key = endpoint.keys.get(version)
    if key is None:
        shown = version[:_SHOWN]
        raise NotFoundError(
            f"version {shown!r} of model {endpoint.model!r} is not served here",
            hint=nearest(shown, endpoint.keys),
        )
    return key
