"""How an endpoint leaves: nobody new comes in, and who is in is answered.

Ray ends its proxy at once when it is shut down, and every request in work with it. So HAProxy is told first,
by its admin socket, to refuse connections and to close each one after its next answer; then this waits until
nothing is in work. It knows nothing of Ray or of models; ``serve.haproxy`` has the rule for the variable.
"""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

#: Set while the endpoint leaves; each answer then ends its connection.
LEAVING = "proc.leaving"
_FRONTEND = "http_frontend"
_APPLICATIONS = "http-"
_TIMEOUT_S = 2.0
_PAUSE_S = 0.02
_QUIET_LOOKS = 3
_logger = logging.getLogger("kit")


def drain(folder: Path, *, limit_s: float) -> int:
    """Refuse new connections at HAProxy, and wait until what is in work is answered.

    Args:
        folder: Where HAProxy's files are, as ``ingress.new_folder`` made it.
        limit_s: How long to wait at most.

    Returns:
        How many requests were still in work at the end; 0 also when there is no HAProxy to ask.
    """
    sockets = sorted(folder.glob("*/admin.sock"))
    end_s = time.monotonic() + limit_s
    try:
        for path in sockets:
            _tell(path, f"disable frontend {_FRONTEND}")
            _tell(path, f"experimental-mode on; set var {LEAVING} bool(true)")
        quiet = 0
        while True:
            left = sum(_in_work(_tell(path, "show stat -1 2 -1")) for path in sockets)
            quiet = quiet + 1 if left == 0 else 0  # a request may just be between two connections
            if quiet >= _QUIET_LOOKS or time.monotonic() > end_s:
                return left
            time.sleep(_PAUSE_S)
    except OSError as error:  # it is dead already, and what was in work with it
        _logger.debug("HAProxy does not answer: %s", error)
        return 0


def _in_work(table: str) -> int:
    """Count requests in HAProxy's table of backends: name, side, waiting, most waiting, in work, ..."""
    rows = (line.split(",") for line in table.splitlines() if line.startswith(_APPLICATIONS))
    return sum(int(row[2] or 0) + int(row[4] or 0) for row in rows)


def _tell(path: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(command.encode() + b"\n")
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()
