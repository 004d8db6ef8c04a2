"""A float32 image of 3 x 64 x 64: JSON, the protocol's binary tensors, and gRPC, at one connection and at 32.

wrk asks over HTTP, a process in Python over gRPC, which takes more of the cores than wrk does: between them
the server's CPU time per request is the fairer figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from asking import post, protocol_binary, wrong
from kit_endpoint import Endpoint, Place, Setting, running
from reporting import Report, number, table
from rounds import Stand, Turn, facts_of, ratio, take_turn, take_turns, turn_of
from subjects import Subject, image
from wrk import Load

_PORT, _GRPC_PORT = 18500, 18501
_CONNECTIONS = (1, 32)
_TITLES = {"json": "JSON", "binary": "binary tensors", "grpc": "gRPC (asked from Python)"}
_WANTED_TIMES = 3.0
_CALLER = Path(__file__).with_name("grpc_caller.py")


def measure_binary(given: argparse.Namespace, place: Place) -> Report:
    """Let the three ways take turns at one endpoint."""
    subject = image()
    setting = Setting((subject,), _PORT, flags=(f"--grpc-port={_GRPC_PORT}",))
    with running(place, "image", setting) as endpoint:
        row = subject.rows(1, seed=0)
        binary = protocol_binary(row)
        _check_binary(endpoint, subject)
        stands = [
            Stand("json", endpoint.server, endpoint.url, endpoint.request()),
            Stand("binary", endpoint.server, endpoint.url, binary),
            Stand("grpc", endpoint.server, f"127.0.0.1:{_GRPC_PORT}", binary),
        ]
        turns = take_turns(
            stands,
            connections=_CONNECTIONS,
            rounds=given.rounds,
            seconds=given.turn_s,
            take=partial(_take_turn, folder=place.bodies),
        )
    facts: dict[str, Any] = {
        name: {
            "title": title,
            **{
                f"{n} connections": {
                    **facts_of(turns[name, n]),
                    "times as fast as JSON": ratio(turns[name, n], turns["json", n]),
                }
                for n in _CONNECTIONS
            },
        }
        for name, title in _TITLES.items()
    }
    head = ["", "connections", "requests/s", "times as fast as JSON", "p50 ms", "p99 ms", "us CPU/request"]
    rows = [_row(each, n) for n in _CONNECTIONS for each in facts.values()]
    said = (
        f"Wanted: binary tensors {_WANTED_TIMES:g} times as fast as JSON; at one connection p50 under 0.25 "
        "ms and p99 under 2 ms."
    )
    return Report("binary", "1 x 3 x 64 x 64 float32, one replica", facts, f"{table(head, rows)}\n\n{said}")


def _row(facts: dict[str, Any], connections: int) -> list[str]:
    found = facts[f"{connections} connections"]
    return [
        facts["title"],
        str(connections),
        f"{found['per_second']:,.0f}",
        f"{found['times as fast as JSON']:.2f}",
        number(found["p50_ms"]),
        number(found["p99_ms"]),
        f"{found['cpu_us']:.0f}",
    ]


def _check_binary(endpoint: Endpoint, subject: Subject) -> None:
    """Compare a binary answer with the JSON one, bit by bit."""
    row = subject.rows(1, seed=5)
    status, headers, body = post(endpoint.setting.port, endpoint.path, protocol_binary(row))
    if status != 200:
        raise SystemExit(f"binary tensors are answered with {status}: {body[:300]!r}")
    length = int(headers["inference-header-content-length"])
    outputs, at, found = json.loads(body[:length])["outputs"], length, {}
    for each in outputs:
        size = each["parameters"]["binary_data_size"]
        found[each["name"]] = body[at : at + size]
        at += size
    probabilities = np.frombuffer(found["probabilities"], np.float32)
    _, expected = subject.answers(row)
    if np.abs(probabilities - expected[0]).max() > 1e-5:
        raise SystemExit(f"binary tensors answer {probabilities.tolist()} instead of {expected.tolist()}")
    status, _, body = post(endpoint.setting.port, endpoint.path, endpoint.request(seed=5))
    if reason := wrong(status, body, row=row, subject=subject):
        raise SystemExit(f"JSON answers wrongly: {reason}")


def _take_turn(stand: Stand, connections: int, seconds: float, *, folder: Path) -> Turn:
    if stand.name != "grpc":
        return take_turn(stand, connections, seconds, folder=folder)
    load, before_s = round(os.getloadavg()[0], 2), stand.server.cpu_s()
    ran = subprocess.run(
        [sys.executable, str(_CALLER), stand.url, "image", str(connections), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return turn_of(Load(**json.loads(ran.stdout)), cpu_s=stand.server.cpu_s() - before_s, load=load)
