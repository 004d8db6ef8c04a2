"""What an agent and the process of its model have in memory: ``python memory.py DEVICE``, run by itself.

It loads nothing that they load, since a page that a third process shares would count as less than it is.
"""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_SETTLED_S = 2.0
_CALLS = 100


def main() -> None:
    """Start the agent, ask it for a while, and print megabytes as JSON."""
    folder = Path(sys.argv[1])
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "edge.agent", "run", str(folder)]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    try:
        client = _connected(folder / "run" / "agent.sock")
        (model,) = _asked(client, "POST", "/v2/repository/index", {})
        about = _asked(client, "GET", f"/v2/models/{model['name']}", None)
        inputs = [_zeros(each) for each in about["inputs"]]
        for _ in range(_CALLS):
            _asked(client, "POST", f"/v2/models/{model['name']}/infer", {"inputs": inputs})
        time.sleep(_SETTLED_S)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found: dict[str, float] = {}
        for what, pid in [("agent", process.pid), *(("worker", int(child)) for child in children)]:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("Rss", "Pss"):
                    found[f"{what} {name}"] = int(value.split()[0]) * 1024 / 1e6
        # Proportional: a page that both share counts half for each, so the two may be added up.
        found["together Pss"] = found["agent Pss"] + found["worker Pss"]
        print(json.dumps(found))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _zeros(tensor: dict[str, Any]) -> dict[str, Any]:
    shape = [1, *tensor["shape"][1:]]
    data = [0] * math.prod(shape)
    return {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "data": data}


def _asked(client: socket.socket, method: str, path: str, value: object) -> Any:
    body = json.dumps(value).encode() if value is not None else b""
    client.sendall(f"{method} {path} HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    data = client.recv(1 << 16)
    head, _, said = data.partition(b"\r\n\r\n")
    assert b" 200 " in head, data
    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(said) < length:
        said += client.recv(1 << 16)
    return json.loads(said)


def _connected(path: Path) -> socket.socket:
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
            return client
        except OSError:
            client.close()
            time.sleep(0.01)


if __name__ == "__main__":
    main()
