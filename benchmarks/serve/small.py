"""The small model in JSON: the kit beside others, at one connection and at 32."""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

from asking import Request, answers, natural_json, protocol_json
from environment import CONTESTANTS, interpreter, script_words, variables
from kit_endpoint import Place, Setting, check, running
from reporting import Report, number, table
from rounds import Stand, facts_of, idle_shares, ratio, take_turn, take_turns
from servers import Server
from subjects import Subject, mlp

_PORT = 18300
_CONNECTIONS = (1, 32)
_KITS = ("kit", "kit2")


def measure_small(given: argparse.Namespace, place: Place) -> Report:
    """Let all contestants take turns."""
    subject = mlp()
    model = place.folder / "mlp.onnx"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(subject.onnx)
    names = [name for name in CONTESTANTS if name in given.contestants]
    for name in names:  # before anything runs
        interpreter(CONTESTANTS[name], folder=place.folder)
    with contextlib.ExitStack() as stack:
        stands, started = [], {}
        for index, name in enumerate(names):
            port = _PORT + 10 * index
            stand, started[name] = _start(stack, name, subject, port=port, place=place, model=model)
            stands.append(stand)
        idle = idle_shares(stands)
        turns = take_turns(
            stands,
            connections=_CONNECTIONS,
            rounds=given.rounds,
            seconds=given.turn_s,
            take=partial(take_turn, folder=place.bodies),
        )
    facts: dict[str, Any] = {
        name: {
            "title": CONTESTANTS[name].title,
            "start_s": started[name],
            "idle_share_of_a_core": idle[name],
            **{f"{n} connections": facts_of(turns[name, n]) for n in _CONNECTIONS},
            **{
                f"{kit} is times as fast at {n}": ratio(turns[kit, n], turns[name, n])
                for kit in _KITS
                for n in _CONNECTIONS
                if kit in names
            },
        }
        for name in names
    }
    return Report("small", "Small MLP, JSON", facts, "\n\n".join(_table(facts, n) for n in _CONNECTIONS))


def _start(
    stack: contextlib.ExitStack, name: str, subject: Subject, *, port: int, place: Place, model: Path
) -> tuple[Stand, float]:
    contestant = CONTESTANTS[name]
    row = subject.rows(1, seed=0)
    request: Request = protocol_json(row) if contestant.protocol else natural_json(row)
    url = f"http://127.0.0.1:{port}{contestant.path}"
    if contestant.script is None:
        setting = Setting((subject,), port, contestant.flags)
        endpoint = stack.enter_context(running(place, name, setting))
        return Stand(name, endpoint.server, url, request), endpoint.start_s
    print(f"starting {contestant.title}", file=sys.stderr, flush=True)
    words = script_words(contestant, folder=place.folder, model=model, port=port)
    server = stack.enter_context(Server(words, variables=variables(), log=place.log(name)))
    start_s = server.wait_until(lambda: answers(port, contestant.path, request))
    check(port, contestant.path, subject, natural=not contestant.protocol)
    return Stand(name, server, url, request), round(start_s, 1)


def _table(facts: dict[str, Any], connections: int) -> str:
    kits = [kit for kit in _KITS if kit in facts]
    head = [f"{connections} connection{'s' * (connections > 1)}", "requests/s", "p50 ms", "p99 ms"]
    head += ["us CPU/request", *(f"{facts[kit]['title']}: times as fast (wanted)" for kit in kits)]
    rows = []
    for name, each in facts.items():
        found = each[f"{connections} connections"]
        row = [each["title"], f"{found['per_second']:,.0f}", number(found["p50_ms"]), number(found["p99_ms"])]
        row.append(f"{found['cpu_us']:.0f}")
        for kit in kits:
            wanted = CONTESTANTS[name].wanted.get(kit) if connections > 1 else None
            times = f"{each[f'{kit} is times as fast at {connections}']:.2f}"
            row.append("" if kit == name else times + (f" ({wanted:g})" if wanted else ""))
        rows.append(row)
    return table(head, rows)
