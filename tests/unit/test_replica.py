"""A whole replica in this process, asked as Ray's server asks it; no Ray, no sockets."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from kit.errors import InputError, NotFoundError, UnavailableError
from kit.project import Project
from kit.settings import AccessSettings, ServeSettings
from serve.endpoints import begin
from serve.guards.access import access
from serve.guards.gatekeeper import plan_guards
from serve.replica import Replica, ReplicaPlan
from tests.system.served_models import BREAKS_ABOVE, make_project


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[bytes, bytes]


class Asked:
    """A replica that has started, and how it is asked."""

    def __init__(self, replica: Replica, app: Any) -> None:
        self.replica, self.app = replica, app

    async def ask(
        self,
        method: str,
        path: str,
        value: object = None,
        *,
        key: str = "",
        host: bytes = b"127.0.0.1:8000",
        gone: asyncio.Event | None = None,
    ) -> Answer | None:
        """Ask; None when the client went before the answer came, which it does when ``gone`` is set."""
        body = b"" if value is None else orjson.dumps(value)
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"host", host), *([(b"authorization", b"Bearer " + key.encode())] if key else [])]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": headers,
            "client": ("127.0.0.1", 1),
        }
        await self.app(scope, receive, send)
        if not sent:
            return None
        text = b"".join(each.get("body", b"") for each in sent[1:])
        read = orjson.loads(text) if text[:1] in (b"{", b"[") else text.decode()
        return Answer(sent[0]["status"], read, dict(sent[0]["headers"]))

    async def infer(self, model: str, *values: float, **more: Any) -> Answer:
        row = list(values) or [0.5, -1.0, 2.0, 0.25]
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row}
        answer = await self.ask("POST", f"/v2/models/{model}/infer", {"inputs": [tensor], **more})
        assert answer is not None
        return answer

    async def counted(self, text: str) -> float:
        """Sum the counts of the replica whose name and labels hold all words of a text."""
        text_lines = self.replica._metrics.render().decode().splitlines()
        lines = [line for line in text_lines if not line.startswith("#")]
        return sum(float(line.split()[-1]) for line in lines if all(each in line for each in text.split()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = make_project(tmp_path_factory.mktemp("replica") / "project").folder
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Project:
    """Give a copy of its own, because releases are kept in it."""
    shutil.copytree(made, tmp_path / "project")
    return Project.open(tmp_path / "project")


@contextlib.asynccontextmanager
async def started(project: Project, **settings: Any) -> AsyncIterator[Asked]:
    chosen = ServeSettings.model_validate({"models": ("tiny", "twin"), "auth": "none", **settings})
    served = begin(project, chosen)
    plan = ReplicaPlan(
        project.folder,
        tuple(each.release.endpoint for each in served),
        project.trusted(),
        chosen,
        plan_guards(project, chosen, local_addresses=frozenset()),
    )
    replica = Replica(plan)
    app = replica.__serve_build_asgi_app__()
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan"}, told.get, said.put))
    await told.put({"type": "lifespan.startup"})
    ready = asyncio.create_task(said.get())
    await asyncio.wait((life, ready), return_when=asyncio.FIRST_COMPLETED)
    if life.done():
        ready.cancel()
        life.result()
    try:
        yield Asked(replica, app)
    finally:
        await told.put({"type": "lifespan.shutdown"})
        await life


def run(project: Project, check: Callable[[Asked], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with started(project, **settings) as asked:
            await check(asked)
            assert await asked.counted("kit_in_flight") == 0
            assert all(not state.users for state in asked.replica._pool.states().values())

    asyncio.run(main())


def test_a_lazy_model_is_loaded_by_its_first_requests_once(project: Project) -> None:
    async def check(asked: Asked) -> None:
        assert asked.replica._pool.states() == {}
        ready = await asked.ask("GET", "/v2/health/ready")
        assert ready is not None
        assert ready.status == 200
        answers = await asyncio.gather(*(asked.infer("tiny") for _ in range(20)))
        assert {each.status for each in answers} == {200}
        assert await asked.counted("kit_loads_total tiny") == 1
        assert await asked.counted("kit_loads_total twin") == 0

    run(project, check, lazy=True)


def test_an_unloaded_model_answers_nothing_and_leaves_the_others_ready(project: Project) -> None:
    async def check(asked: Asked) -> None:
        assert (await asked.ask("POST", "/v2/repository/models/tiny/unload", {})).status == 200  # type: ignore[union-attr]  # it stays
        assert (await asked.infer("tiny")).status == 503
        assert (await asked.infer("twin")).status == 200
        assert (await asked.ask("GET", "/v2/health/ready")).status == 200  # type: ignore[union-attr]  # it stays
        assert (await asked.ask("POST", "/v2/repository/models/tiny/load", {})).status == 200  # type: ignore[union-attr]  # it stays
        assert (await asked.infer("tiny")).status == 200

    run(project, check)


def test_a_key_hears_of_the_models_it_may_ask_for_and_of_no_other(project: Project) -> None:
    made = access(project, AccessSettings(action="create", name="reader", scope=("infer:twin",)))
    assert made.secret is not None
    secret = made.secret

    async def check(asked: Asked) -> None:
        index = await asked.ask("POST", "/v2/repository/index", {}, key=secret)
        assert index is not None
        assert {each["name"] for each in index.body} == {"twin"}
        described = await asked.ask("GET", "/openapi.json", key=secret)
        assert described is not None
        assert not any("/tiny" in path for path in described.body["paths"])

    run(project, check, auth="key")


def test_a_broken_version_is_replaced_by_constants_and_its_failures_are_its_own(project: Project) -> None:
    async def check(asked: Asked) -> None:
        for _ in range(6):
            answer = await asked.infer("twin", BREAKS_ABOVE + 5, 0.0, 0.0, 0.0)
            assert (answer.status, answer.body["parameters"]) == (200, {"fallback": "constant"})
            assert answer.body["outputs"][0]["data"] == [1]
        assert await asked.counted('kit_breaker_state model="twin"') == 2
        assert await asked.counted('kit_requests_total model="twin" outcome="fallback" version="1"') == 6

    breaker = {"min_requests": 5, "open_s": 60.0}
    run(project, check, model={"twin": {"fallback": {"label": "middle"}}}, breaker=breaker)


def test_another_version_answers_for_a_broken_one_without_a_share_of_the_traffic(project: Project) -> None:
    async def check(asked: Asked) -> None:
        resident = asked.replica._pool.lease(next(iter(asked.replica._endpoints["tiny"].keys.values())))
        assert resident is not None
        asked.replica._pool.release(resident.key)
        for _ in range(20):
            resident.breaker.failed(time.monotonic())
        answer = await asked.infer("tiny")
        assert (answer.status, answer.headers[b"kit-version"]) == (200, b"2")
        assert answer.body["parameters"] == {"fallback": "version"}

    run(project, check, model={"tiny": {"fallback": 2}}, breaker={"window_s": 3600.0, "open_s": 3600.0})


@pytest.mark.parametrize(
    "fallback,error",
    [
        ({"lable": 1}, "did you mean 'label'"),
        ({"label": "nope"}, "high, low, middle"),
        ({"probabilities": "x"}, "give a number"),
    ],
)
def test_a_fallback_that_could_not_answer_is_refused_before_anything_starts(
    project: Project, fallback: dict[str, Any], error: str
) -> None:
    settings = ServeSettings.model_validate({"models": ("twin",), "model": {"twin": {"fallback": fallback}}})
    with pytest.raises(InputError) as caught:
        begin(project, settings)
    assert error in str(caught.value.hint)
    with pytest.raises(NotFoundError):
        begin(
            project, ServeSettings.model_validate({"models": ("twin",), "model": {"twin": {"fallback": 7}}})
        )


def test_a_client_that_goes_is_counted_and_keeps_nothing(project: Project) -> None:
    async def check(asked: Asked) -> None:
        resident = asked.replica._pool.lease(next(iter(asked.replica._endpoints["tiny"].keys.values())))
        assert resident is not None
        asked.replica._pool.release(resident.key)
        never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        resident.batcher.submit = lambda *_, **__: never  # type: ignore[method-assign]  # an engine that hangs
        gone = asyncio.Event()
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.0] * 4}]}
        asking = asyncio.create_task(asked.ask("POST", "/v2/models/tiny/infer", body, gone=gone))
        await asyncio.wait((asking,), timeout=0.1)
        assert not asking.done()
        gone.set()
        assert await asking is None
        assert never.cancelled()
        assert await asked.counted('kit_requests_total model="tiny" outcome="cancelled"') == 1

    run(project, check)


def test_another_hosts_name_is_not_this_machine(project: Project) -> None:
    async def check(asked: Asked) -> None:
        answer = await asked.ask("GET", "/v2", host=b"evil.example")
        assert answer is not None
        assert answer.status == 403

    run(project, check)


def test_a_model_whose_release_cannot_be_had_is_named_with_the_reason(project: Project) -> None:
    async def main() -> None:
        async with started(project, models=("tiny@4",)):
            raise AssertionError("it started")

    with pytest.raises(UnavailableError, match="model 'tiny' cannot be served"):
        asyncio.run(main())
