"""Polls as devices make them, one connection each: ``polling.py PORT RATE SECONDS``, tokens on stdin."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

import numpy as np

_STATUS_SHARE = 1 / 60


class Generator:
    """An open loop of polls and statuses.

    Args:
        port: The server's, on loopback.
        tokens: Of the devices.
    """

    def __init__(self, port: int, tokens: list[str]) -> None:
        self._port, self._tokens = port, tokens
        self._etags: dict[str, str] = {}
        self._seqs = dict.fromkeys(tokens, 100)
        self.polls: list[tuple[float, int]] = []
        self.reports: list[tuple[float, int]] = []
        self.late_ms: list[float] = []

    async def run(self, *, rate_per_s: float, seconds: float) -> None:
        """Send for so long, and wait for the last answer."""
        chance, tasks, due_s = random.Random(1), [], 0.0
        began_s = time.perf_counter()
        while due_s < seconds:
            due_s += chance.expovariate(rate_per_s)
            wait_s = began_s + due_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self.late_ms.append((time.perf_counter() - began_s - due_s) * 1e3)
            token = chance.choice(self._tokens)
            ask = self._report if chance.random() < _STATUS_SHARE else self._poll
            tasks.append(asyncio.create_task(ask(token, due_s=began_s + due_s)))
        await asyncio.gather(*tasks)

    async def _poll(self, token: str, *, due_s: float) -> None:
        known = f"If-None-Match: {self._etags[token]}\r\n" if token in self._etags else ""
        head = f"GET /v1/offer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{known}"
        status, headers = await self._ask(f"{head}Connection: close\r\n\r\n".encode())
        self._etags[token] = headers.get("etag", "")
        self.polls.append(((time.perf_counter() - due_s) * 1e3, status))

    async def _report(self, token: str, *, due_s: float) -> None:
        self._seqs[token] += 1
        body = json.dumps(
            {
                **{"format": 1, "seq": self._seqs[token], "agent": "0.1.0", "phase": "idle"},
                **{"digest": "a" * 64, "previous": None, "release": 1, "rejected": {}, "last_report": None},
                "health": {"answers": 1200, "errors": 3, "restarts": 0, "p50_ms": 0.8, "p95_ms": 1.4},
            }
        )
        head = f"POST /v1/report HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        status, _ = await self._ask((head + length + body).encode())
        self.reports.append(((time.perf_counter() - due_s) * 1e3, status))

    async def _ask(self, request: bytes) -> tuple[int, dict[str, str]]:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return 0, {}
        try:
            writer.write(request)
            data = await reader.read(-1)
        except OSError:
            return 0, {}
        finally:
            writer.close()
        lines = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), headers


def main() -> None:
    """Print the figures as one JSON object."""
    port, rate_per_s, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    made = Generator(port, json.load(sys.stdin))
    began_s = time.perf_counter()
    asyncio.run(made.run(rate_per_s=rate_per_s, seconds=seconds))
    took_s = time.perf_counter() - began_s
    polls = np.array([latency_ms for latency_ms, _ in made.polls])
    reports = np.array([latency_ms for latency_ms, _ in made.reports] or [np.nan])
    statuses: dict[str, int] = {}
    for _, status in made.polls + made.reports:
        statuses[str(status)] = statuses.get(str(status), 0) + 1
    print(
        json.dumps(
            {
                "sent": len(made.polls) + len(made.reports),
                "seconds": took_s,
                "rate_per_s": (len(made.polls) + len(made.reports)) / took_s,
                "statuses": statuses,
                **{f"p{share}_ms": float(np.percentile(polls, share)) for share in (50, 95, 99)},
                "max_ms": float(polls.max()),
                "report_p50_ms": float(np.percentile(reports, 50)),
                "report_p99_ms": float(np.percentile(reports, 99)),
                "late_p99_ms": float(np.percentile(made.late_ms, 99)),
            }
        )
    )


if __name__ == "__main__":
    main()
