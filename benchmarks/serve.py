"""Requests per second of `kit serve`, as a share of one bare uvicorn process with the same model.

    python benchmarks/serve.py PROJECT MODEL [--seconds 2] [--rounds 3]

One row per request, JSON of the Open Inference Protocol, HTTP keep-alive, 1 and 32 connections. The servers
take turns and share the machine with the load generator, so the share is the message.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from kit.engines import open_engine
from kit.project import Project
from kit.wire import encode_tensor

PORTS = {"uvicorn": 18201, "fastapi": 18202, "kit": 18203}


def bare(project: Project, model: str, *, framework: str) -> None:
    """Serve the model in this process without Ray or checks: raw ASGI, or FastAPI."""
    import uvicorn

    _, version = project.open_version(model)
    signature = version.signature
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=signature)
    dtypes = {
        spec.name: np.dtype(spec.dtype if spec.dtype != "string" else object) for spec in signature.inputs
    }

    def answer(request: dict[str, Any]) -> bytes:
        arrays = {
            each["name"]: np.array(each["data"], dtypes[each["name"]]).reshape(each["shape"])
            for each in request["inputs"]
        }
        outputs = engine.run_validated(arrays)
        values = [encode_tensor(spec, outputs[spec.name]) for spec in signature.outputs]
        return orjson.dumps({"outputs": values}, option=orjson.OPT_SERIALIZE_NUMPY)

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        body = answer(orjson.loads((await receive())["body"]))
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    app: Any = raw
    if framework == "fastapi":
        from fastapi import FastAPI, Response

        app = FastAPI()

        @app.post("/{path:path}")
        async def infer(request: dict[str, Any]) -> Any:
            return Response(answer(request), media_type="application/json")

    uvicorn.run(app, port=PORTS[framework], log_level="critical", access_log=False, lifespan="off")


async def load(port: int, *, request: bytes, connections: int, seconds: float) -> tuple[float, float]:
    """Keep every connection busy; gives requests per second and the p99 in ms."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < end:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            if b" 200 " not in head:
                raise RuntimeError(head.decode())
            times.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return len(times) / seconds, sorted(times)[int(len(times) * 0.99)] * 1000


@contextlib.contextmanager
def running(words: list[str], *, port: int, ready: str) -> Iterator[None]:
    """Run a server until it is ready: it prints a word, or it listens."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        if ready and process.stdout is not None and ready not in process.stdout.readline():
            raise RuntimeError(f"{words} did not start")
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.communicate()


def measure(folder: str, model: str, *, seconds: float, rounds: int) -> dict[tuple[int, str], list[Any]]:
    project = Project.open(Path(folder))
    _, version = project.open_version(model)
    golden, _ = version.golden()
    inputs = [encode_tensor(spec, golden[spec.name][:1]) for spec in version.signature.inputs]
    body = orjson.dumps({"inputs": inputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    found: dict[tuple[int, str], list[Any]] = {}
    with contextlib.ExitStack() as stack:
        for name, port in PORTS.items():
            words = [__file__, folder, model, f"--bare={name}"]
            if name == "kit":
                words = ["-m", "kit", "serve", model, f"--project={folder}", f"--port={port}"]
            ready = "answers at" if name == "kit" else ""
            stack.enter_context(running(words, port=port, ready=ready))
        key = (project.state / "serve" / "key").read_text().strip()
        line = f"POST /v2/models/{version.name}/infer HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        head = f"{line}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        for _ in range(rounds):
            for connections in (1, 32):
                for name, port in PORTS.items():
                    run = load(port, request=request, connections=connections, seconds=seconds)
                    found.setdefault((connections, name), []).append(asyncio.run(run))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project")
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        return bare(Project.open(Path(given.project)), given.model, framework=given.bare)
    found = measure(given.project, given.model, seconds=given.seconds, rounds=given.rounds)
    print("| connections | server | requests/s | share of uvicorn | p99 ms |\n|---|---|---|---|---|")
    for (connections, name), runs in sorted(found.items(), key=lambda item: item[0][0]):
        rates = [rate for rate, _ in runs]
        share = statistics.median(
            rate / base for rate, (base, _) in zip(rates, found[connections, "uvicorn"], strict=True)
        )
        p99 = statistics.median(late for _, late in runs)
        print(f"| {connections} | {name} | {statistics.median(rates):.0f} | {share:.2f} | {p99:.1f} |")


if __name__ == "__main__":
    main()
