"""Settings of an endpoint: where it listens, who may ask, how it batches, what it keeps and what it tells."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kit.settings.fields import (
    CommandSettings,
    EngineName,
    Idle,
    Name,
    Scalar,
    Settings,
    Threads,
    argument,
    in_file,
    path,
)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class JwtSettings(Settings):
    """Tokens of an identity provider that are accepted beside the endpoint's own keys."""

    jwks: str = path("JSON Web Key Set: a file, or an https:// address that is read again when keys change.")
    issuer: str = Field(min_length=1, description="Who must have issued a token (iss).")
    audience: str = Field(min_length=1, description="Whom a token must be meant for (aud).")
    algorithms: tuple[Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...] = Field(
        default=("RS256", "ES256", "EdDSA"), strict=False, min_length=1, description="Accepted algorithms."
    )
    scope_claim: str = Field(
        default="scope",
        min_length=1,
        description="Claim that lists what its bearer may do, like infer:digits.",
    )
    leeway_s: float = Field(default=30.0, ge=0, le=300, description="Tolerated difference of clocks.")


class RateSettings(Settings):
    """How much one client may ask for."""

    requests: str | None = Field(
        default=None,
        pattern=r"^\d+/(second|minute|hour|day)$",
        description="Most requests of one token subject or key, like 100/second.",
    )
    redis: str | None = Field(
        default=None,
        pattern=r"^rediss?://",
        description="Redis that counts for all replicas together; each replica counts alone when left out.",
    )


class BreakerSettings(Settings):
    """When a version is taken for broken, and when it is tried again."""

    failure_share: float = Field(
        default=0.5, gt=0, le=1, description="Share of failed answers that opens the breaker."
    )
    min_requests: int = Field(default=20, ge=1, description="Answers that are needed to judge.")
    window_s: float = Field(default=10.0, gt=0, le=3600, description="How far back answers count.")
    open_s: float = Field(default=5.0, gt=0, le=3600, description="Pause before a version is tried again.")
    probes: int = Field(default=3, ge=1, le=100, description="Answers in a row that close it again.")


class CacheSettings(Settings):
    """Answers that are kept for equal requests."""

    max_mb: float = Field(default=64.0, gt=0, description="Most that is kept in each replica.")
    ttl_s: float = Field(default=300.0, gt=0, description="How long an answer is kept.")
    redis: str | None = Field(
        default=None, pattern=r"^rediss?://", description="Redis all replicas share; none when left out."
    )


class PredictionLogSettings(Settings):
    """What is kept of requests and answers for later work on drift."""

    folder: str = path("Folder for the Parquet files.", min_length=1)
    share: float = Field(default=0.01, gt=0, le=1, description="Share of the requests that is kept.")
    max_mb: float = Field(default=1024.0, gt=0, description="Most all files take; the oldest are removed.")
    redact: tuple[str, ...] = Field(
        default=(), strict=False, description="Columns or inputs whose values are left out."
    )


class TracingSettings(Settings):
    """Where OpenTelemetry spans go."""

    endpoint: str = Field(
        pattern=r"^https?://", description="OTLP/HTTP collector, like http://127.0.0.1:4318."
    )
    share: float = Field(default=0.01, gt=0, le=1, description="Share of the requests that is traced.")


class ServedModelSettings(Settings):
    """What one served model has of its own; what is left out is the endpoint's."""

    max_batch_rows: int | None = Field(default=None, ge=1, description="Most rows of one engine call.")
    max_wait_ms: float | None = Field(
        default=None, ge=0, le=1000, description="Longest wait for more rows while the engine is idle."
    )
    deadline_ms: float | None = Field(default=None, gt=0, description="Longest wait for an answer.")
    cache: CacheSettings | None = Field(default=None, description="Keep answers; off when left out.")
    fallback: int | dict[str, Scalar] | None = Field(
        default=None,
        description="What answers while the version is broken: another version's number, or an output's "
        "constant like { label = 0 }.",
    )
    own_deployment: bool = Field(
        default=False, description="Run in replicas of its own, at the same address."
    )
    replicas: int | None = Field(default=None, ge=1, le=1024, description="Replicas of its own deployment.")
    gpus: float = Field(default=0.0, ge=0, le=16, description="GPUs of each replica of its own deployment.")
    threads: Threads | None = Field(default=None, description="Engine threads.")

    @model_validator(mode="after")
    def _needs_are_its_own(self) -> ServedModelSettings:
        if not self.own_deployment and (self.replicas is not None or self.gpus):
            raise ValueError("replicas and gpus are of a deployment of its own; set own_deployment = true")
        return self


class ServeSettings(CommandSettings):
    """Serve models over HTTP and gRPC until interrupted, or show what an endpoint does."""

    models: Annotated[tuple[str, ...], Field(strict=False)] = argument(
        "Model versions: digits, digits@champion, digits@3; or the word status.", default=()
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port of HTTP.")
    grpc_port: int | None = Field(
        default=None, ge=1, le=65535, description="Port of gRPC; not listened on when left out."
    )
    replicas: int = Field(default=1, ge=0, le=1024, description="Replicas of the endpoint, or the fewest.")
    max_replicas: int | None = Field(
        default=None, ge=1, le=1024, description="Most replicas; their number is fixed when left out."
    )
    target_in_flight: float = Field(
        default=16.0, gt=0, description="Requests in work per replica that more replicas are started for."
    )
    scale_down_s: float = Field(
        default=60.0, ge=1, description="How long fewer replicas must be enough before one is stopped."
    )
    spare: bool = Field(
        default=True, description="Keep a process ready for the next replica where their number may grow."
    )
    engine: EngineName = Field(default="onnxruntime", description="What runs the model.")
    device: Literal["cpu", "cuda", "tensorrt", "auto"] = Field(
        default="cpu", description="Where onnxruntime computes."
    )
    threads: Threads = Field(default=1, description="Engine threads per replica; 0 is the engine's choice.")
    max_body_mb: float = Field(default=16.0, gt=0, le=1024, description="Largest request body, in MB.")
    max_batch_rows: int = Field(default=256, ge=1, le=1 << 16, description="Most rows of one engine call.")
    max_wait_ms: float = Field(
        default=0.0, ge=0, le=1000, description="Longest wait for more rows while the engine is idle."
    )
    max_queue_rows: int = Field(
        default=2048,
        ge=1,
        le=1 << 20,
        description="Most rows a model's replica lets wait, and never more than half a second's work; "
        "429 beyond.",
    )
    deadline_ms: float = Field(
        default=30_000.0,
        gt=0,
        le=3_600_000,
        description="Longest wait for an answer; a request may ask for less.",
    )
    memory_mb: float = Field(
        default=4096.0, gt=0, description="Most the loaded models of a replica take together."
    )
    keep_s: float = Field(
        default=300.0, ge=0, description="How long a version that lost its traffic stays in memory."
    )
    lazy: bool = Field(
        default=False,
        description="Load a model with its first request, and unload it after keep_s without one.",
    )
    auth: Literal["key", "none"] = Field(
        default="key", description="key asks for a key or token; none answers this machine alone."
    )
    open_to_all: bool = Field(
        default=False, description="Answer other machines although auth is none: anybody may ask."
    )
    ingress: Literal["auto", "haproxy", "python"] = Field(
        default="auto", description="HTTP proxy of Ray Serve; auto is haproxy where it is installed."
    )
    tls_cert: str | None = path("Certificate chain (PEM) to serve HTTPS and gRPC with.", default=None)
    tls_key: str | None = path("Private key (PEM) of the certificate.", default=None)
    log_requests: Literal["errors", "all", "none"] = Field(
        default="errors", description="Which requests get a line in the log; never their content."
    )
    advise: bool = Field(
        default=False, description="Measure the model on this machine's devices, advise, and end."
    )
    target_ms: float = Field(
        default=50.0, gt=0, description="For advise: how long an answer may take under load."
    )
    jwt: JwtSettings | None = in_file("Accept tokens of an identity provider.", default=None)
    rates: RateSettings = in_file("Limits per client.", default_factory=RateSettings)
    breaker: BreakerSettings = in_file("When a version is taken for broken.", default_factory=BreakerSettings)
    prediction_log: PredictionLogSettings | None = in_file("Keep samples of requests.", default=None)
    tracing: TracingSettings | None = in_file("Send traces.", default=None)
    model: dict[Name, ServedModelSettings] = in_file(
        "What single models have of their own: [serve.model.NAME].", default_factory=dict
    )

    @model_validator(mode="after")
    def _closed_by_default(self) -> ServeSettings:
        if self.auth == "none" and self.host not in _LOOPBACK and not self.open_to_all:
            raise ValueError(
                f"host {self.host!r} is reachable from outside and auth is 'none'; use auth = 'key', or "
                "open_to_all to let anybody ask"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; give both")
        if self.max_replicas is None and self.replicas == 0:
            raise ValueError("no replicas and no max_replicas: nothing would ever answer; set max_replicas")
        if self.max_replicas is not None and self.max_replicas < max(1, self.replicas):
            raise ValueError(f"max_replicas is {self.max_replicas}, fewer than replicas, {self.replicas}")
        self._check_grpc()
        return self

    def _check_grpc(self) -> None:
        """Refuse what gRPC cannot do: it listens in the replicas themselves, with no proxy before them."""
        if self.grpc_port is None:
            return
        own = [name for name, each in self.model.items() if each.own_deployment]
        if own:
            raise ValueError(
                f"gRPC does not reach {own[0]!r} in its own deployment; leave out one of the two"
            )
        if self.replicas == 0:
            raise ValueError(
                "without a replica nothing listens for gRPC; set replicas = 1 or leave out grpc_port"
            )

    @property
    def idle(self) -> tuple[Idle, ...]:
        """What does nothing as the others are."""
        found = []
        if self.max_replicas is None:
            names = ("target_in_flight", "scale_down_s", "spare")
            found += [Idle(name, "max_replicas", "a number") for name in names]
        if not self.advise:
            found.append(Idle("target_ms", "advise", "true"))
        if self.auth != "none":
            found.append(Idle("open_to_all", "auth", "'none'"))
        return tuple(found)


class ReleaseSettings(CommandSettings):
    """Show or change how an endpoint's traffic falls on versions."""

    endpoint: str = argument("Name of the served model.", min_length=1)
    action: Literal["show", "set", "history", "rollback"] = argument("What to do.", default="show")
    weights: Annotated[tuple[str, ...], Field(strict=False)] = argument(
        "For set: VERSION=PERCENT, like 3=10 champion=90; a single VERSION takes all and, if it is an alias, "
        "is followed.",
        default=(),
    )
    sticky: str | None = Field(
        default=None,
        pattern=r"^(none|subject|header:[A-Za-z0-9-]+|field:[\w.-]+)$",
        description="What keeps a user on one version: header:NAME, subject, field:NAME or none; as before "
        "when left out.",
    )
    shadow: str | None = Field(
        default=None,
        pattern=r"^(none|[^=]+(=\d+(\.\d+)?)?)$",
        description="VERSION=PERCENT of the requests a version answers unseen, to be compared; none ends it.",
    )
    to: int | None = Field(
        default=None,
        ge=1,
        description="For rollback: sequence number to go back to; the one before when left out.",
    )
    note: str = Field(default="", max_length=200, description="Why, kept in the history.")
    wait_s: float = Field(
        default=30.0, ge=0, description="How long to wait until every replica has the release in force."
    )

    @property
    def idle(self) -> tuple[Idle, ...]:
        """What does nothing with another action."""
        needed = dict.fromkeys(("weights", "sticky", "shadow"), "'set'") | {"to": "'rollback'"}
        needed |= dict.fromkeys(("note", "wait_s"), "'set' or 'rollback'")
        return tuple(
            Idle(name, "action", actions)
            for name, actions in needed.items()
            if repr(self.action) not in actions
        )


class AccessSettings(CommandSettings):
    """Make, list and revoke the keys of endpoints."""

    action: Literal["list", "create", "revoke"] = argument("What to do.")
    name: str | None = argument(
        "Name of the key: who uses it.", default=None, pattern=r"^[A-Za-z0-9][\w.@-]{0,62}$"
    )
    scope: tuple[str, ...] = Field(
        default=("infer:*",),
        strict=False,
        min_length=1,
        description="What it may do: infer:MODEL, infer:*, metrics, admin; may be given more than once.",
    )
    days: float | None = Field(
        default=None, gt=0, le=36_500, description="Days until it expires; never when left out."
    )
