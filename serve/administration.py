"""What an endpoint answers besides predictions: health, metadata, figures, load and unload.

Finds things out and has ``serve.protocol`` write them; REST and gRPC ask the same object. Who may ask was
decided before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from kit.errors import UnavailableError
from kit.inference.card import Card, Reply
from kit.inference.health import describe_live, describe_model_ready, describe_ready, describe_server
from kit.inference.metadata import describe_model
from kit.inference.paths import Route
from serve.guards.callers import Caller
from serve.protocol import docs, metadata, openapi
from serve.releases.acks import living_acks
from serve.service import Endpoint, Service
from serve.version_key import VersionKey
from serve.watching.exposition import merge
from serve.watching.metrics import Metrics
from serve.watching.version_metrics import Statistics

_TEXT = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
#: Loads or unloads a model in every replica.
Switch = Callable[[str, bool], Awaitable[None]]


class Administration:
    """Answers what needs no model's computation.

    Args:
        service: Knows the endpoints.
        metrics: This replica's counts.
        folder: Where all replicas leave their figures.
        replica: This replica's name.
        switch: Turns a model on or off in every replica; returns when it is done.
        others: Models at the same address in deployments of their own.
        describe_others: Describes the versions of those; blocks.
        secured: Whether a key or token is asked for.
        lazy: Whether models wait for their first request.
    """

    def __init__(
        self,
        service: Service,
        *,
        metrics: Metrics,
        folder: Path,
        replica: str,
        switch: Switch,
        others: tuple[str, ...],
        describe_others: Callable[[], list[Card]],
        secured: bool,
        lazy: bool,
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._folder = folder
        self._replica = replica
        self._switch = switch
        self._others = others
        self._describe_others = describe_others
        self._secured = secured
        self._lazy = lazy

    async def answer(self, route: Route, body: bytes, *, caller: Caller | None) -> Reply:
        """Answer any request but ``infer`` and ``predict``.

        Args:
            route: What is asked for.
            body: Of a POST.
            caller: Who asks, and hears only of models that may be asked; None where that is open to all.

        Raises:
            KitError: The body is wrong, or the model or version is not served here.
        """
        kind, model = route.kind, route.model
        if model is not None:
            return await self._of_model(route, model, body)
        if kind == "live":
            return describe_live()
        if kind == "ready":
            return describe_ready(ready=all(map(self._serves, self._service.endpoints.values())))
        if kind == "server":
            return describe_server(metadata.EXTENSIONS)
        if kind == "all_stats":
            return metadata.describe_statistics(
                each for name in self._service.endpoints for each in self._counted(self._service.cards(name))
            )
        if kind == "index":
            return metadata.describe_index(await self._indexed(caller), ready=metadata.read_index(body))
        if kind == "metrics":
            text = await asyncio.to_thread(partial(merge, self._folder, own=self._replica))
            return Reply(200, text, _TEXT)
        if kind == "docs":
            return docs.docs_page()
        cards = [card for name in self._service.endpoints for card in self._service.cards(name)]
        if self._others:
            cards += await asyncio.to_thread(self._describe_others)
        cards = [card for card in cards if _may_see(caller, card.name)]
        return openapi.describe_openapi(cards, secured=self._secured)

    async def _of_model(self, route: Route, model: str, body: bytes) -> Reply:
        kind, service = route.kind, self._service
        if kind == "load" or kind == "unload":
            metadata.read_repository(body)
            if model not in self._others:
                service.endpoint(model)
            await self._switch(model, kind == "load")
            return Reply(200, b"{}")
        endpoint = service.endpoint(model)
        if kind == "model_ready":
            if route.version is None:
                ready = self._is_ready(endpoint)
            else:
                ready = service.state(model, route.version).status == "READY"
            return describe_model_ready(model, ready=ready)
        cards = service.cards(model)
        if route.version is not None:
            service.state(model, route.version)  # refuses what is not served
            cards = [each for each in cards if each.version == route.version]
        if kind == "stats":
            return metadata.describe_statistics(self._counted(cards))
        if not cards:
            raise UnavailableError(f"model {model!r} is not loaded", hint="ask for a prediction, or load it")
        card = cards[0]
        if kind == "config":
            return metadata.describe_config(
                card, max_batch_rows=endpoint.max_batch_rows, max_wait_s=endpoint.max_wait_s
            )
        return describe_model(card, platform=metadata.PLATFORM, versions=list(endpoint.keys))

    def _serves(self, endpoint: Endpoint) -> bool:
        """Say whether a model answers as it is meant to; one that was unloaded is meant not to."""
        return self._is_ready(endpoint) or (endpoint.release is not None and endpoint.release.paused)

    def _is_ready(self, endpoint: Endpoint) -> bool:
        release = endpoint.release
        if release is None or release.paused:
            return False
        states = self._service.pool.states()
        missing = "READY" if self._lazy else "UNAVAILABLE"  # what waits for its first request answers it
        return all((states[key].status if key in states else missing) == "READY" for key in release.needed())

    def _counted(self, cards: list[Card]) -> list[tuple[Card, Statistics]]:
        return [(card, self._metrics.statistics(card.name, card.version)) for card in cards]

    async def _indexed(self, caller: Caller | None) -> list[metadata.Indexed]:
        """List the versions a caller may ask for: this replica's, then those of other deployments."""
        states = self._service.pool.states()
        keys: dict[VersionKey, None] = {}
        for endpoint in self._service.endpoints.values():
            keys.update(dict.fromkeys(endpoint.keys.values()))
        keys.update(dict.fromkeys(states))
        found = {
            (key.model, str(key.number)): states[key].status if key in states else "UNAVAILABLE"
            for key in keys
        }
        if self._others:
            for ack in await asyncio.to_thread(living_acks, self._folder):
                for model in self._others:
                    for number, state in (
                        ack.endpoints[model].states if model in ack.endpoints else {}
                    ).items():
                        found[model, number] = state["status"]
        return [
            metadata.Indexed(model, number, status, _public(status))
            for (model, number), status in found.items()
            if _may_see(caller, model)
        ]


def _may_see(caller: Caller | None, model: str) -> bool:
    return caller is not None and not caller.scopes.isdisjoint(("infer:*", f"infer:{model}", "admin"))


def _public(status: str) -> str:
    """Say why a version does not answer, without what is for operators alone."""
    return {"READY": "", "LOADING": "it is being loaded", "FAILED": "it could not be loaded"}.get(
        status, "not loaded"
    )
