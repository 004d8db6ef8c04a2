"""A fleet in one process and virtual time: real device folders and state machines, a real desk, no socket.

Time is a heap of moments. An agent does at each of its moments what the service on a device does: ask,
fetch, install or return, and tell. What a bundle does on a device is injected by fate: examinations are not
run but answered.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.agent import install
from edge.agent.device import REJECTED, Device
from edge.fleet import rollouts, shelf
from edge.fleet.desk import Desk, Limits, Request
from edge.fleet.enrolment import make_code
from edge.fleet.limits import Rate
from edge.fleet.plan import Plan
from edge.fleet.rollout import DONE, STOPPED, Rollout, reached
from edge.fleet.store import Store
from kit import signing
from kit.errors import GateError, UnavailableError
from kit.files import sha256_bytes

GOOD, SILENT, FAILING, FLAPPING = "good", "silent", "failing", "flapping"
POLL_S, TICK_S, STATUS_S = 300.0, 30.0, 300.0
_UNLIMITED = Rate(1e12, 1e12)
_START_S = 1_800_000_000.0


@dataclass(frozen=True)
class Shares:
    """How many devices have which fate."""

    silent: float = 0.05
    failing: float = 0.03
    flapping: float = 0.10


@dataclass
class Agent:
    """One device and the service on it."""

    world: World
    name: str
    folder: Path
    fate: str
    token: str = ""
    etag: str = ""
    seq: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    confirmed_s: float = 0.0
    told: str = ""
    told_s: float = 0.0
    away_until_s: float = 0.0
    home_until_s: float = 0.0

    @property
    def device(self) -> Device:
        return Device(self.folder)

    @property
    def running(self) -> str | None:
        return self.device.state().current

    def act(self, now_s: float) -> float:
        """Do what is due; gives when to act again."""
        if self._is_away(now_s):
            return self.away_until_s
        try:
            self._look(now_s)
            self._tell(now_s)
        except UnavailableError:
            return now_s + POLL_S  # the server is down; nothing else stops
        return now_s + POLL_S * self.world.chance.uniform(1.0, 1.2)

    def _is_away(self, now_s: float) -> bool:
        """Say whether a device that comes and goes is gone, and for how long."""
        if self.fate == SILENT:
            self.away_until_s = self.world.silent_until_s
            return now_s < self.away_until_s
        if self.fate != FLAPPING:
            return False
        if now_s >= self.home_until_s > 0:
            self.away_until_s = now_s + self.world.chance.expovariate(1 / 900.0)
            self.home_until_s = 0.0
        elif self.home_until_s == 0.0:
            self.home_until_s = now_s + self.world.chance.expovariate(1 / 900.0)
        return now_s < self.away_until_s

    def _look(self, now_s: float) -> None:
        status, headers, body = self.world.ask("GET", "/v1/offer", token=self.token, etag=self.etag)
        if status != 200:
            return
        self.etag = headers["etag"]
        offer = json.loads(body)
        digest = offer.get("digest")
        if offer["kind"] == "install" and digest != self.running and digest not in self.rejected:
            _, _, archive = self.world.ask("GET", f"/v1/{offer['url']}", token=self.token)
            assert sha256_bytes(archive) == offer["sha256"]
            path = self.device.incoming / f"{digest}.bundle"
            path.write_bytes(archive)
            self._install(path, now_s)
        elif offer["kind"] == "return" and digest != self.running:
            self._return(digest, now_s)

    def _install(self, path: Path, now_s: float) -> None:
        for _ in install.install(self.device, path):
            pass
        report = self.device.state().last_report
        assert report is not None
        if report.status == REJECTED and report.digest is not None:
            self.rejected[report.digest] = report.detail
        self.confirmed_s = now_s

    def _return(self, digest: str, now_s: float) -> None:
        state = self.device.state()
        assert digest == state.previous, "told to return to what it does not have"
        device = self.device
        self.rejected[state.current or ""] = "taken back"
        device.save(dataclasses.replace(state, current=digest, previous=None))
        device.point_to(digest)
        device.sweep()
        self.confirmed_s = now_s

    def _tell(self, now_s: float) -> None:
        state = self.device.state()
        report = state.last_report
        body = {
            "format": 1,
            "agent": "0.1.0",
            "phase": state.phase,
            "digest": state.current,
            "previous": state.previous,
            "release": state.release,
            "rejected": self.rejected,
            "last_report": None if report is None else vars(report),
            "keyring": 0,
            "health": self._health(now_s),
            "machine": {"machine": "x86_64"},
        }
        same = json.dumps({**body, "health": None})
        young = now_s - self.confirmed_s < 3600 and now_s - self.told_s >= STATUS_S
        if same == self.told and not young and now_s - self.told_s < 3600:
            return
        self.seq += 1
        status, _, said = self.world.ask(
            "POST", "/v1/report", token=self.token, body=json.dumps({**body, "seq": self.seq}).encode()
        )
        assert status == 204, said
        self.told, self.told_s = same, now_s

    def _health(self, now_s: float) -> dict[str, Any]:
        answers = int((now_s - self.confirmed_s) / 5)
        share = self.world.error_shares.get(self.running or "", 0.0)
        return {
            "answers": answers,
            "errors": int(answers * share),
            "restarts": 0,
            "p50_ms": 1.0,
            "p95_ms": 2.0,
        }


class World:
    """The desk, the devices and the time.

    Args:
        folder: Where everything lies; a RAM disk, for a thousand devices sync a lot.
        old: The archive every device runs at first.
        key: The private key that signed the bundles.
        n_devices: How many.
        shares: Of which fate.
        seed: Of every chance.
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
    ) -> None:
        self.chance = random.Random(seed)
        self.now_s = _START_S
        self.down = False
        self.silent_until_s = float("inf")
        self.error_shares: dict[str, float] = {}
        self.trusted = signing.load_trusted(key.with_suffix(".pub"))
        self.store = Store(folder / "fleet")
        self.limits = Limits(
            int(POLL_S), min_free_bytes=0, asks=_UNLIMITED, tells=_UNLIMITED, enrols=_UNLIMITED
        )
        self.desk = self._open()
        self._moments: list[tuple[float, int, Callable[[], float | None]]] = []
        self._numbers = itertools.count()
        self._agents_by_folder: dict[Path, Agent] = {}
        template = self._template(folder, old=old, key=key)
        self.agents = self._enrol(folder, template, n_devices=n_devices, shares=shares or Shares())
        self._plan(self.now_s + TICK_S, self._tick)
        for agent in self.agents:
            self._plan(self.now_s + self.chance.uniform(0, POLL_S), lambda agent=agent: agent.act(self.now_s))

    def roll_out(self, bundle: Path, plan: Plan) -> Rollout:
        """Begin a rollout as ``kit fleet rollout`` does."""
        with shelf.opened(bundle, trusted=self.trusted) as opened:
            facts = shelf.facts_of(bundle, opened)
            shelf.place(self.store.folder, bundle, facts)
            with self.store.changing() as db:
                shelf.remember(db, facts, opened)
                made = rollouts.begin(db, group="line", digest=facts.digest, name=facts.name, plan=plan)
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
        self, method: str, path: str, *, token: str = "", etag: str = "", body: bytes = b""
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Carry a request to the desk.

        Raises:
            UnavailableError: The server is down.
        """
        if self.down:
            raise UnavailableError("the server is down")
        headers = {"authorization": f"Bearer {token}", "if-none-match": etag}
        answer = self.desk.answer(Request(method, path, headers, body, "sim"))
        return answer.status, answer.headers, answer.file.read_bytes() if answer.file else answer.body

    def examine(self, device: Device, digest: str) -> dict[str, Any]:
        """Answer for a trial, as fate has it."""
        agent = self._agents_by_folder[device.folder]
        bundle = device.open_slot(digest)
        if agent.fate == FAILING and bundle.release > 1:
            raise GateError("golden rows: agreement 0.5")
        return {
            "digest": digest,
            "reason": "",
            "name": "shapes",
            "target": "onnx-test",
            "release": bundle.release,
        }

    def _open(self) -> Desk:
        return Desk(
            self.store,
            limits=self.limits,
            now_ns=lambda: round(self.now_s * 1e9),
            monotonic_s=lambda: self.now_s,
        )

    def _tick(self) -> float:
        if not self.down:
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
        self._agents_by_folder[made] = Agent(self, "template", made, GOOD)
        shutil.copyfile(old, device.incoming / "old.bundle")
        for _ in install.install(device, device.incoming / "old.bundle"):
            pass
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
            agent._tell(self.now_s)
            self._agents_by_folder[place] = agent
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
