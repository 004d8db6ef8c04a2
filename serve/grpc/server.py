"""The gRPC server of one replica: where it listens, with what limits, how it ends.

It runs on the replica's event loop. Replicas of one machine listen on the same port (SO_REUSEPORT): the
kernel gives each new connection to one of them. It knows no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from kit.errors import InputError, UnavailableError
from kit.settings.serving import ServeSettings
from serve.calls import Ended
from serve.grpc.contract import Administering, Gate, Inferring
from serve.grpc.health import Health, reflection_handlers
from serve.grpc.servicer import Rooms, Servicer
from serve.watching.tracing import Trace

#: Calls in work at once; more are refused. Queues are bounded on their own, this bounds bodies in memory.
MAX_CALLS = 2048
_MAX_METADATA_BYTES = 16 * 1024
#: A client keeps its connection, and so its replica, for this long; then its calls go on over a new one,
#: which may reach another. Without it a replica that joins later gets no work from clients that are there.
_CONNECTION_AGE_S = 300


@dataclass(frozen=True)
class GrpcOptions:
    """Where and how to listen.

    Attributes:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        max_body_bytes: Largest accepted message.
        tls_cert: Certificate chain (PEM); None listens without TLS.
        tls_key: Private key (PEM) of the certificate.
    """

    host: str
    port: int
    max_body_bytes: int
    tls_cert: Path | None = None
    tls_key: Path | None = None


class GrpcServer:
    """Serves the protocol, health and reflection until it is stopped.

    Args:
        rooms: Whom the methods ask.
        options: Where and how to listen.
    """

    def __init__(self, rooms: Rooms, *, options: GrpcOptions) -> None:
        self._rooms = rooms
        self._options = options
        self._server: Any = None
        self._health: Health | None = None
        #: The port that is listened on, once started.
        self.port = 0

    async def start(self) -> None:
        """Listen, on the running event loop.

        Raises:
            InputError: Certificate or key cannot be used.
            UnavailableError: The address cannot be listened on.
        """
        options = self._options
        server = grpc.aio.server(options=_channel_options(options), maximum_concurrent_rpcs=MAX_CALLS)
        servicer = Servicer(self._rooms)
        health = Health(servicer)
        server.add_generic_rpc_handlers(
            (servicer.handlers(), health.handlers(), reflection_handlers(servicer))
        )
        address = _address(options)
        credentials = _credentials(options)
        try:
            if credentials is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, credentials)
            await server.start()
        except RuntimeError as error:
            raise UnavailableError(
                f"gRPC cannot listen on {address}", hint="choose another grpc_port, or free this one"
            ) from error
        self._server, self._health = server, health

    async def stop(self, grace_s: float) -> None:
        """Take no new call, let those in work end, and cancel what is left.

        Args:
            grace_s: How long to wait for them.
        """
        if self._server is None or self._health is None:
            return
        self._health.close()
        await self._server.stop(grace_s)
        self._server = None


async def start_server(
    service: Inferring,
    *,
    administration: Administering,
    gatekeeper: Gate,
    settings: ServeSettings,
    on_end: Callable[[Ended], None],
    trace: Callable[[bytes | None], Trace | None] | None = None,
) -> GrpcServer:
    """Listen where an endpoint's settings say.

    Args:
        service: Answers infer requests.
        administration: Answers the rest.
        gatekeeper: Says who may.
        settings: Of the endpoint; ``grpc_port`` is set.
        on_end: Told of each infer request that ended.
        trace: Says what records a request, by its traceparent; None where nothing does.

    Raises:
        InputError: Certificate or key cannot be used.
        UnavailableError: The address cannot be listened on.
    """
    options = GrpcOptions(
        host=settings.host,
        port=settings.grpc_port or 0,
        max_body_bytes=int(settings.max_body_mb * 1e6),
        tls_cert=None if settings.tls_cert is None else Path(settings.tls_cert),
        tls_key=None if settings.tls_key is None else Path(settings.tls_key),
    )
    server = GrpcServer(Rooms(service, administration, gatekeeper, on_end, trace), options=options)
    await server.start()
    return server


def _address(options: GrpcOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{host}:{options.port}"


def _credentials(options: GrpcOptions) -> Any:
    """Read certificate and key; None without them."""
    if options.tls_cert is None or options.tls_key is None:
        return None
    try:
        pair = (options.tls_key.read_bytes(), options.tls_cert.read_bytes())
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read: {error.strerror}", hint="check tls_cert and tls_key"
        ) from error
    return grpc.ssl_server_credentials([pair])


def _channel_options(options: GrpcOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", options.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", MAX_CALLS),
        ("grpc.max_connection_age_ms", _CONNECTION_AGE_S * 1000),
        # Clients may ask every 10 s whether a connection lives; by default such a client is thrown out.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # Who has gone without a word is noticed, and what it waits for ends.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
