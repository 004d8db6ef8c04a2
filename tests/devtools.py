"""A headless Chromium driven over its DevTools protocol: go somewhere, press keys, evaluate, look."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.awaiting import await_true

CHROMIUM = shutil.which("chromium")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Page:
    """One tab, and what it asked for and complained of.

    Args:
        socket: Open, to the tab's debugger.
    """

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._number = 0
        self.console: list[str] = []
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command and wait for its result; what happens meanwhile is remembered."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(timeout=60))
            if said.get("id") == self._number:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result
            self._take(said)

    def go(self, address: str) -> None:
        """Load an address."""
        self.send("Page.navigate", url=address)
        self.await_js("document.readyState === 'complete'")

    def js(self, code: str) -> Any:
        """Evaluate an expression."""
        found = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def await_js(self, code: str) -> None:
        """Wait until an expression is true."""
        await_true(lambda: self.js(code), why=code)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other: Tab, Enter, Escape, or a letter."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            more = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
            for kind in ("keyDown", "keyUp"):
                extra = {"text": text} if text and kind == "keyDown" else {}
                self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, **more, **extra)

    def look(self, path: Path) -> bytes:
        """Keep a picture of all of the page."""
        data = base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        path.write_bytes(data)
        return data

    def _take(self, said: dict[str, Any]) -> None:
        parameters = said.get("params", {})
        if said["method"] == "Runtime.consoleAPICalled":
            self.console.append(str([each.get("value") for each in parameters["args"]]))
        elif said["method"] == "Log.entryAdded":
            self.console.append(parameters["entry"]["text"])
        elif said["method"] == "Runtime.exceptionThrown":
            self.console.append(json.dumps(parameters["exceptionDetails"]))
        elif said["method"] == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start a browser with a new profile, and end it."""
    from websockets.sync.client import connect

    assert CHROMIUM is not None
    started = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stderr is not None
        words = next(line for line in started.stderr if "DevTools listening on" in line)
        threading.Thread(target=started.stderr.read, daemon=True).start()
        port = words.rsplit(":", 1)[1].partition("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            tabs = json.load(answer)
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        with connect(address, max_size=None) as socket:
            yield Page(socket)
    finally:
        started.kill()
        started.wait()
