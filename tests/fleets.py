"""Fleets for tests: a store with bundles and devices, and devices that only tell what they are told to."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from edge.fleet import rollouts
from edge.fleet.desk import Answer, Desk, Limits, Request
from edge.fleet.enrolment import make_code
from edge.fleet.limits import Rate
from edge.fleet.offers import BundleFacts
from edge.fleet.plan import Plan, parse_waves
from edge.fleet.rollout import Rollout
from edge.fleet.store import Store

OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
PLAN = Plan(parse_waves("1,50%,100%"), Fraction(95, 100), Fraction(2, 100), silence_s=1800.0)
NO_LIMITS = Limits(asks=Rate(1e9, 1e9), tells=Rate(1e9, 1e9), enrols=Rate(1e9, 1e9), min_free_bytes=0)


def add_bundle(store: Store, digest: str, *, release: int, data: bytes = b"archive") -> BundleFacts:
    """Put a bundle on the shelf, whatever is in it."""
    from edge.fleet import shelf
    from kit.files import sha256_bytes, write_atomic

    facts = BundleFacts(digest, "shapes", "onnx-test", release, len(data), sha256_bytes(data))
    write_atomic(shelf.archive_path(store.folder, digest), data)
    with store.changing() as db:
        db.execute(
            "INSERT INTO bundles VALUES (?, ?, ?, ?, ?, ?, NULL, 0)",
            (digest, facts.name, facts.target, release, facts.size_bytes, facts.sha256),
        )
    return facts


def begin(store: Store, digest: str = NEW, *, plan: Plan = PLAN, group: str = "line") -> Rollout:
    """Begin a rollout."""
    with store.changing() as db:
        return rollouts.begin(db, group=group, digest=digest, name="shapes", plan=plan)


@dataclass
class Asker:
    """A device that asks a desk and does nothing by itself."""

    desk: Desk
    name: str
    id: str = ""
    token: str = ""
    seq: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def enrolled(cls, desk: Desk, name: str, *, group: str = "line", digest: str | None = OLD) -> Asker:
        """Let a device in, and have it say what it runs."""
        with desk.store.changing() as db:
            code = make_code(db, name=name, group=group, hours=1)
        made = cls(desk, name)
        answer = made.post("/v1/enrol", {"code": code, "name": name, "machine": {"machine": "x86_64"}})
        assert answer.status == 201, answer
        body = json.loads(answer.body)
        made = dataclasses.replace(made, id=body["device"], token=body["token"])
        made.tell(digest=digest, release=1)
        return made

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def get(self, path: str, **headers: str) -> Answer:
        return self.desk.answer(Request("GET", path, {**self.headers(), **headers}))

    def post(self, path: str, body: Any) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.desk.answer(Request("POST", path, self.headers(), data, "127.0.0.1"))

    def offer(self) -> dict[str, Any]:
        answer = self.get("/v1/offer")
        assert answer.status == 200, answer
        found: dict[str, Any] = json.loads(answer.body)
        return found

    def status(self, **changes: Any) -> dict[str, Any]:
        """Give the next status; what is changed stays so."""
        self.seq += 1
        self.state |= changes
        return {
            "format": 1,
            "seq": self.seq,
            "agent": "0.1.0",
            "phase": "idle",
            "digest": None,
            "previous": None,
            "release": 0,
            "rejected": {},
            "last_report": None,
            "keyring": 0,
            "health": {"answers": 0, "errors": 0, "restarts": 0, "p50_ms": 1.0, "p95_ms": 2.0},
            "machine": {"machine": "x86_64"},
            **self.state,
        }

    def tell(self, **changes: Any) -> None:
        answer = self.post("/v1/report", self.status(**changes))
        assert answer.status == 204, answer
