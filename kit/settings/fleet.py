"""Settings of the fleet: its server, its rollouts and its devices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kit.settings.fields import CommandSettings, Idle, Name, argument, path

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SHARE = r"^\d+(\.\d+)?%$"
_DURATION = r"^\d+(\.\d+)?[smhd]$"


class FleetSettings(CommandSettings):
    """Serve the fleet's devices, and roll bundles out to them wave by wave."""

    action: Literal["serve", "rollout", "pause", "resume", "abort", "status"] = argument(
        "serve answers devices and drives rollouts; rollout begins one; the others are about one.",
        default="status",
    )
    subject: str | None = argument(
        "For rollout the bundle file; for pause, resume, abort and status the rollout, when several go on.",
        default=None,
        min_length=1,
    )
    group: Name = Field(default="default", description="For rollout: the devices it reaches.")
    waves: str = Field(
        default="1,10%,50%,100%",
        description="For rollout: how far each wave reaches, in numbers and shares of the group's devices.",
    )
    success: str = Field(
        default="95%",
        pattern=_SHARE,
        description="For rollout: share of a wave's devices that must confirm before the next begins.",
    )
    errors: str = Field(
        default="2%",
        pattern=_SHARE,
        description="For rollout: share of errors in a device's answers above which it counts as failed.",
    )
    silence: str = Field(
        default="30m",
        pattern=_DURATION,
        description="For rollout: how long a device may take before it counts as failed; s, m, h or d.",
    )
    soak: str = Field(
        default="0s",
        pattern=_DURATION,
        description="For rollout: how long a wave that has its share must hold it.",
    )
    allow_older: str | None = Field(
        default=None,
        min_length=1,
        max_length=300,
        description="For rollout: why a release not above the devices' may come in; an override is signed.",
    )
    dry_run: bool = Field(
        default=False, description="For rollout: verify and show the plan, and begin nothing."
    )
    follow: bool | None = Field(
        default=None,
        description="For rollout and status: stay until it ends; on a terminal a rollout does so by itself.",
    )
    host: str = Field(default="127.0.0.1", description="For serve: address to listen on.")
    port: int = Field(default=8700, ge=0, le=65535, description="For serve: port; 0 takes a free one.")
    poll_s: int = Field(
        default=60, ge=1, le=86_400, description="For serve: how often devices are told to ask, in seconds."
    )
    max_telemetry_mb: float = Field(
        default=512.0, gt=0, description="For serve: most that telemetry takes; the oldest goes."
    )
    tls_cert: str | None = path("For serve: certificate chain (PEM) to serve HTTPS with.", default=None)
    tls_key: str | None = path("For serve: private key (PEM) of the certificate.", default=None)
    without_tls: bool = Field(
        default=False,
        description="For serve: listen to other machines without TLS; tokens then travel readable.",
    )

    @model_validator(mode="after")
    def _closed_by_default(self) -> FleetSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; give both")
        if self.host not in LOOPBACK and self.tls_cert is None and not self.without_tls:
            raise ValueError(
                f"host {self.host!r} is reachable from outside and there is no tls_cert; give tls_cert and "
                "tls_key, or without_tls to let tokens travel readable"
            )
        if self.action == "rollout" and self.subject is None:
            raise ValueError("rollout needs a bundle file")
        if self.action == "serve" and self.subject is not None:
            raise ValueError(f"serve takes no {self.subject!r}")
        return self

    @property
    def idle(self) -> tuple[Idle, ...]:
        """What does nothing with another action."""
        rollout = ("group", "waves", "success", "errors", "silence", "soak", "allow_older", "dry_run")
        serve = ("host", "port", "poll_s", "max_telemetry_mb", "tls_cert", "tls_key", "without_tls")
        needed = dict.fromkeys(rollout, "'rollout'") | dict.fromkeys(serve, "'serve'")
        needed["follow"] = "'rollout' or 'status'"
        return tuple(
            Idle(name, "action", actions)
            for name, actions in needed.items()
            if repr(self.action) not in actions
        )


class DevicesSettings(CommandSettings):
    """List, show, add and remove the devices of the fleet."""

    action: Literal["list", "show", "add", "remove"] = argument("What to do.", default="list")
    name: str | None = argument("Name of the device.", default=None, min_length=1)
    group: Name | None = Field(
        default=None,
        description="For add: the group it is in, 'default' when left out; for list: only these.",
    )
    at: str | None = Field(
        default=None,
        pattern=r"^(path:.+|ssh://.+)$",
        description="For add: where kit flash finds it, path:FOLDER or ssh://HOST/FOLDER; without it the "
        "device comes in by itself, with a one-time code.",
    )
    hours: float = Field(
        default=24.0, gt=0, le=8760, description="For add: how long the one-time code holds."
    )

    @model_validator(mode="after")
    def _named(self) -> DevicesSettings:
        if self.action != "list" and self.name is None:
            raise ValueError(f"{self.action} needs a device's name")
        if self.action == "list" and self.name is not None:
            raise ValueError(f"list takes no name; to see one device: kit devices show {self.name}")
        return self

    @property
    def idle(self) -> tuple[Idle, ...]:
        """What does nothing with another action."""
        needed = {"at": "'add'", "hours": "'add'", "group": "'add' or 'list'"}
        return tuple(
            Idle(name, "action", actions)
            for name, actions in needed.items()
            if repr(self.action) not in actions
        )
