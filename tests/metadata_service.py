"""The instance metadata service of EC2, version 2, as strict as the real one: no token, no answer."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class MetadataService:
    """A real HTTP server on this machine.

    Attributes:
        says: Path to what is answered; 404 elsewhere.
        failures: Statuses that are answered first, instead.
        tokens: All that were given; the last one counts.
        asked: The paths that were asked for.
        url: Where it listens.
    """

    def __init__(self) -> None:
        self.says: dict[str, bytes] = {}
        self.failures: list[int] = []
        self.tokens: list[str] = []
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                life = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                if self.path != "/latest/api/token" or not life.isdigit() or not 1 <= int(life) <= 21600:
                    return self.reply(400)
                outer.tokens.append(f"token-{len(outer.tokens)}")
                return self.reply(200, outer.tokens[-1].encode())

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if self.headers.get("X-aws-ec2-metadata-token") not in outer.tokens[-1:]:
                    return self.reply(401)
                if outer.failures:
                    return self.reply(outer.failures.pop(0))
                body = outer.says.get(self.path)
                return self.reply(404) if body is None else self.reply(200, body)

            def reply(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
