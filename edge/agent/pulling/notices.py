"""Be told when to ask: a broker's message means "ask your source now" and nothing more.

Whatever a message says is not believed, so a broker that lies makes a device ask once too often and no more.
The message is retained: a device that was switched off gets it when it comes back. A broker that stops and
starts again is found again. paho-mqtt is optional and imported here alone.
"""

from __future__ import annotations

import logging
import os
import secrets
import ssl
import threading
from pathlib import Path
from typing import Any

from edge.agent.pulling.source import Broker
from kit.errors import InputError, MissingDependencyError, UnavailableError, install_line

_KEEPALIVE_S = 60
_LONGEST_WAIT_S = 60
_MAX_PASSWORD_BYTES = 1024

_log = logging.getLogger("kit.agent")


class Notices:
    """Listens to a broker, on a thread of its own, from ``start`` to ``stop``.

    Args:
        broker: Where to listen.
        woken: Set by every message, and whenever the broker has been found again, since a message may have
            been missed meanwhile.

    Raises:
        MissingDependencyError: paho-mqtt is not installed.
        InputError: The password file or the certificates cannot be used.
    """

    def __init__(self, broker: Broker, woken: threading.Event) -> None:
        try:
            from paho.mqtt import client as mqtt
            from paho.mqtt.enums import CallbackAPIVersion
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "notices by MQTT need paho-mqtt, which is not installed", hint=install_line("mqtt")
            ) from error
        self._broker = broker
        self._woken = woken
        #: Set while the broker listens to us.
        self.listening = threading.Event()
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"kit-{secrets.token_hex(8)}",
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=True,
        )
        client.reconnect_delay_set(min_delay=1, max_delay=_LONGEST_WAIT_S)
        if broker.tls:
            client.tls_set_context(_context(broker.ca_file))
        if broker.password_file is not None:
            client.username_pw_set(*_password(broker.password_file))
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._client = client

    def start(self) -> None:
        """Begin to listen; a broker that is not there is looked for until it is.

        Raises:
            UnavailableError: The broker's name cannot be used at all.
        """
        try:
            self._client.connect_async(self._broker.host, self._broker.port, keepalive=_KEEPALIVE_S)
        except ValueError as error:
            raise UnavailableError(f"the broker {self._broker.host} cannot be asked: {error}") from error
        self._client.loop_start()

    def stop(self) -> None:
        """Listen no more."""
        self._client.disconnect()
        self._client.loop_stop()
        self.listening.clear()

    def _on_connect(self, client: Any, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            _log.warning(f"warning: the broker {self._broker.host} does not let this device in: {reason}")
            return
        client.subscribe(self._broker.topic, qos=1)

    def _on_subscribe(self, _client: Any, _user: Any, _id: Any, reasons: Any, _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            _log.warning(f"warning: the broker {self._broker.host} refuses the topic {self._broker.topic!r}")
            return
        self.listening.set()
        self._woken.set()

    def _on_disconnect(self, _client: Any, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self.listening.is_set():
            _log.info(f"the broker {self._broker.host} is gone ({reason}); looking for it again")
        self.listening.clear()

    def _on_message(self, _client: Any, _user: Any, _message: Any) -> None:
        self._woken.set()


def _context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:
        raise InputError(f"the certificates in {ca_file} cannot be read: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _password(path: Path) -> tuple[str, str]:
    """Read ``user:password`` from a file that its owner alone can read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MAX_PASSWORD_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the password file {path} cannot be read: {error}") from error
    if mode & 0o077:
        raise InputError(
            f"others can read the password file {path} (mode {mode & 0o777:04o})",
            hint=f"run `chmod 600 {path}`",
        )
    user, colon, password = text.partition(":")
    if not colon or not user:
        raise InputError(f"the password file {path} does not hold user:password")
    return user, password
