"""A fleet in one process and virtual time: real device folders and state machines, a real desk, no socket.

Time is a heap of moments. An agent does at each of its moments what the service on a device does: ask,
fetch, install or return, and tell. What a bundle does on a device is injected by fate: examinations are not
run but answered.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.agent import install
from edge.agent.device import Device
from edge.agent.pulling.client import Response
from edge.agent.pulling.credentials import write_token
from edge.agent.pulling.offer import RETURN
from edge.agent.pulling.puller import Puller
from edge.agent.pulling.source import Source
from edge.agent.pulling.uplink import Uplink
from edge.agent.state import TRIAL
from edge.agent.status import Numbers, make_status
from edge.fleet import rollouts, shelf
from edge.fleet.desk import Desk, Limits, Request
from edge.fleet.enrolment import make_code
from edge.fleet.limits import Rate
from edge.fleet.plan import Plan
from edge.fleet.rollout import DONE, STOPPED, Rollout, reached
from edge.fleet.store import Store
from kit import keypair
from kit.errors import GateError, UnavailableError
from kit.override import sign_override

GOOD, SILENT, FAILING, FLAPPING = "good", "silent", "failing", "flapping"
SERVER = "http://fleet.test"
POLL_S, TICK_S, STATUS_S = 600.0, 30.0, 300.0
_UNLIMITED = Rate(1e12, 1e12)
_START_S = 1_800_000_000.0


@dataclass(frozen=True)
class Shares:
    """How many devices have which fate."""

    silent: float = 0.05
    failing: float = 0.03
    flapping: float = 0.10


class Wire:
    """Carries a device's requests to the world's desk, as a ``Client`` of the puller does over sockets."""

    def __init__(self, world: World) -> None:
        self._world = world

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        """Ask the desk; nobody answers while the server is down."""
        path = url.removeprefix(SERVER)
        low = {name.lower(): value for name, value in (headers or {}).items()}
        status, found, data = self._world.ask(method, path, headers=low, body=body or b"")
        return Response(status, found, io.BytesIO(data).read1)


class NoRecords:
    """A ring with nothing in it."""

    def peek(self, _: int) -> list[Any]:
        return []

    def drop(self, _: Sequence[str]) -> None:
        return None


@dataclass
class Agent:
    """One device and the service on it: the real folder, state machine, puller and uplink."""

    world: World
    name: str
    folder: Path
    fate: str
    token: str = ""
    confirmed_s: float = 0.0
    report_due_s: float = 0.0
    told: Any = None
    away_until_s: float = 0.0
    home_until_s: float = 0.0

    def begin(self) -> None:
        """Open what talks to the server, as a start of the service does."""
        source, wire, clock = (
            Source(SERVER, f"{SERVER}/v1/offer", plain_http=True),
            Wire(self.world),
            self._now_s,
        )
        chance = self.world.chance.random
        self.device = Device.open(self.folder)
        self.state = self.device.state()
        self.numbers = Numbers(self.folder)
        self.puller = Puller(
            *(self.device, source), client=wire, monotonic_s=clock, wall_s=clock, chance=chance
        )
        self.uplink = Uplink(self.device, source, client=wire, monotonic_s=clock, chance=chance)

    @property
    def running(self) -> str | None:
        """The bundle it runs."""
        return self.state.current

    def act(self, now_s: float) -> float:
        """Do what is due; gives when to act again."""
        if self._is_away(now_s):
            return self.away_until_s
        offer = self.puller.look()
        if offer is not None and offer.kind == RETURN:
            self._change(install.revert(self.device, reason="the source wants it back", digest=None))
            self.confirmed_s = now_s
        elif offer is not None:
            with contextlib.suppress(UnavailableError):  # it is fetched the next time
                self.puller.fetch(offer)
        self._install(now_s)
        self._report(now_s)
        self.uplink.deliver(NoRecords())
        return now_s + max(1.0, self.puller.wait_s())

    def _now_s(self) -> float:
        return self.world.now_s

    def _is_away(self, now_s: float) -> bool:
        """Say whether a device that comes and goes is gone, and for how long."""
        if self.fate == SILENT:
            self.away_until_s = self.world.silent_until_s
        elif self.fate == FLAPPING and now_s >= self.home_until_s > 0:
            self.away_until_s = now_s + self.world.chance.expovariate(1 / 900.0)
            self.home_until_s = 0.0
        elif self.fate == FLAPPING and self.home_until_s == 0.0:
            self.home_until_s = now_s + self.world.chance.expovariate(1 / 900.0)
        return now_s < self.away_until_s

    def _install(self, now_s: float) -> None:
        before = self.running
        for path in self.device.waiting():  # a keyring, too
            self._change(install.install(self.device, path, examine=self._examine, soak=True))
        if self.state.phase == TRIAL:  # its process has started, and answers
            self._change(install.commit(self.device, running_digest=self.state.staged))
        if self.running != before:
            self.confirmed_s = now_s

    def _change(self, steps: Iterator[str]) -> None:
        for _ in steps:
            pass
        self.state = self.device.state()

    def _examine(self, device: Device, digest: str) -> dict[str, Any]:
        """Answer for a trial, as fate has it."""
        bundle = device.open_slot(digest)
        if self.fate == FAILING and bundle.release > 1:
            raise GateError("golden rows: agreement 0.5")
        facts = {"name": "shapes", "target": "onnx-test", "release": bundle.release}
        return {"digest": digest, "reason": "", **facts}

    def _report(self, now_s: float) -> None:
        """Tell, as the service does: at every change, each hour, and more often after a confirmation."""
        state = self.state
        told = (state.phase, state.current, state.previous, tuple(state.rejected), state.last_report)
        if told == self.told and now_s < self.report_due_s:
            return
        self.told = told
        self.report_due_s = now_s + (STATUS_S if now_s - self.confirmed_s < 3600 else 3600.0)
        answers = int((now_s - self.confirmed_s) / 5)
        errors = int(answers * self.world.error_shares.get(self.running or "", 0.0))
        health = {"answers": answers, "errors": errors, "restarts": 0, "p50_ms": 1.0, "p95_ms": 2.0}
        status = make_status(
            state,
            folder=self.folder,
            seq=self.numbers.next(),
            running=state.current,
            health=health,
            engines={"onnxruntime": "1.31"},
        )
        self.uplink.report(status)


class World:
    """The desk, the devices and the time.

    Args:
        folder: Where everything lies; a RAM disk, for a thousand devices sync a lot.
        old: The archive every device runs at first.
        key: The private key that signed the bundles.
        n_devices: How many.
        shares: Of which fate.
        seed: Of every chance.
        keyring: The file of the newest keyring; None for no keyring ever.
    """

    def __init__(
        self,
        folder: Path,
        *,
        old: Path,
        key: Path,
        n_devices: int,
        seed: int,
        shares: Shares | None = None,
        keyring: Path | None = None,
    ) -> None:
        self.chance, self._key = random.Random(seed), key
        self.now_s = self.began_s = _START_S
        self.down = False
        self.silent_until_s = float("inf")
        self.error_shares: dict[str, float] = {}
        self.trusted = keypair.load_trusted(key.with_suffix(".pub"))
        self.store = Store(folder / "fleet")
        self.limits = Limits(
            int(POLL_S), min_free_bytes=0, asks=_UNLIMITED, tells=_UNLIMITED, enrols=_UNLIMITED
        )
        self._keyring = keyring
        self.desk = self._open()
        self._moments: list[tuple[float, int, Callable[[], float | None]]] = []
        self._numbers = itertools.count()
        template = self._template(folder, old=old, key=key)
        self.agents = self._enrol(folder, template, n_devices=n_devices, shares=shares or Shares())
        self._plan(self.now_s + TICK_S, self._tick)
        for agent in self.agents:
            self._plan(self.now_s + self.chance.uniform(0, POLL_S), lambda agent=agent: agent.act(self.now_s))

    def roll_out(self, bundle: Path, plan: Plan, *, allow_older: bool = False) -> Rollout:
        """Begin a rollout as ``kit fleet rollout`` does."""
        with shelf.opened(bundle, trusted=self.trusted) as opened:
            facts = shelf.facts_of(bundle, opened)
            shelf.place(self.store.folder, bundle, facts)
            with self.store.changing() as db:
                shelf.remember(db, facts, opened)
                paper = sign_override(facts.digest, reason="test", key=self._key).decode()
                made = rollouts.begin(
                    db,
                    group="line",
                    digest=facts.digest,
                    name=facts.name,
                    plan=plan,
                    override=paper if allow_older else None,
                )
        self.desk.reload()
        return made

    def run(self, *, hours: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, until something holds or so many hours are over."""
        end_s = self.now_s + hours * 3600
        while self._moments and self._moments[0][0] <= end_s:
            self.now_s, _, act = heapq.heappop(self._moments)
            again_s = act()
            if again_s is not None:
                self._plan(max(again_s, self.now_s + 1e-3), act)
            if act == self._tick and until():
                return
        self.now_s = end_s

    def restart(self) -> None:
        """End the server without a word and start another on what it left."""
        self.store.close()
        self.store = Store(self.store.folder)
        self.desk = self._open()

    def wake_the_silent(self) -> None:
        """Let the silent devices appear again, late."""
        self.silent_until_s = self.now_s
        for agent in self.agents:
            if agent.fate == SILENT:
                self._plan(
                    self.now_s + self.chance.uniform(0, POLL_S), lambda agent=agent: agent.act(self.now_s)
                )

    def rollout(self, name: str) -> Rollout:
        """Give a rollout as it stands."""
        with self.store.reading() as db:
            return rollouts.load(db, name).rollout

    def running(self) -> Counter[str | None]:
        """Count the devices by what they run."""
        return Counter(agent.running for agent in self.agents)

    def fates(self) -> dict[str, str]:
        """Give every device's fate by its id."""
        return {agent.token.split("_")[1]: agent.fate for agent in self.agents}

    def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Carry a request to the desk.

        Raises:
            UnavailableError: The server is down.
        """
        if self.down:
            raise UnavailableError("the server is down")
        answer = self.desk.answer(Request(method, path, headers or {}, body, "sim"))
        data = answer.file.read_bytes() if answer.file else answer.body
        return answer.status, answer.headers, data

    def _open(self) -> Desk:
        return Desk(
            self.store,
            limits=self.limits,
            keyring=self._keyring,
            now_ns=lambda: round(self.now_s * 1e9),
            monotonic_s=lambda: self.now_s,
        )

    def _tick(self) -> float:
        if not self.down:
            self.desk.refresh()
            self.desk.tick(TICK_S)
        return self.now_s + TICK_S

    def _plan(self, at_s: float, act: Callable[[], float | None]) -> None:
        if at_s != float("inf"):
            heapq.heappush(self._moments, (at_s, next(self._numbers), act))

    def _template(self, folder: Path, *, old: Path, key: Path) -> Path:
        made = folder / "template"
        (made / "keys").mkdir(parents=True)
        (made / "incoming").mkdir()
        shutil.copyfile(key.with_suffix(".pub"), made / "keys" / "signing.pub")
        device = Device.open(made)
        device.prepare()
        first = Agent(self, "template", made, GOOD)
        first.begin()
        shutil.copyfile(old, device.incoming / "old.bundle")
        first._install(self.now_s)
        return made

    def _enrol(self, folder: Path, template: Path, *, n_devices: int, shares: Shares) -> list[Agent]:
        fates = [SILENT] * round(shares.silent * n_devices) + [FAILING] * round(shares.failing * n_devices)
        fates += [FLAPPING] * round(shares.flapping * n_devices)
        fates += [GOOD] * (n_devices - len(fates))
        self.chance.shuffle(fates)
        agents = []
        for number, fate in enumerate(fates):
            place = folder / "devices" / f"d{number}"
            shutil.copytree(template, place, symlinks=True)
            agent = Agent(self, f"d{number}", place, fate)
            with self.store.changing() as db:
                code = make_code(db, name=agent.name, group="line", hours=1e6)
            status, _, body = self.ask("POST", "/v1/enrol", body=json.dumps({"code": code}).encode())
            assert status == 201, body
            agent.token = json.loads(body)["token"]
            write_token(place, agent.token)
            agent.begin()
            agent._report(self.now_s)
            agents.append(agent)
        return agents


def expected(made: Rollout, fates: Mapping[str, str]) -> str:
    """Say how a rollout of a good bundle must end: stopped by the first wave that too many cannot confirm."""
    for wave in range(len(made.plan.waves)):
        there = reached(made, wave=wave)
        good = sum(fates[device] in (GOOD, FLAPPING) for device in there)
        if good < made.plan.success * len(there):
            return STOPPED
    return DONE
