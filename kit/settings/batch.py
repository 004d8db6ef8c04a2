"""Settings of batch runs and of the clusters they run on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kit.settings.fields import CommandSettings, EngineName, Idle, Threads, argument, in_file, path

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
Codec = Literal["zstd", "snappy", "gzip", "lz4", "none"]
#: A count of rows, or a share of them in percent.
ALLOWANCE_PATTERN = r"^(\d+|\d{1,2}(\.\d+)?%|100(\.0+)?%)$"
#: As KubeRay takes it: a DNS label that leaves room for what is appended to it.
CLUSTER_NAME_PATTERN = r"^[a-z]([a-z0-9-]{0,45}[a-z0-9])?$"
#: Of x86-64 and without a GPU: what the machine image is made for, and whose CPUs the size's name tells.
INSTANCE_PATTERN = r"^[cmr][5-8][ai]?[dnbz]*\.((2|4|8|12|16|24|32|48)?xlarge|large)$"

Instance = Annotated[str, Field(pattern=INSTANCE_PATTERN)]


class PredictSettings(CommandSettings):
    """Predict every row of a table, each exactly once; the same command again resumes."""

    model: str = argument("Model version: digits, digits@champion, digits@3.", min_length=1)
    input: str | None = path(
        "Parquet, CSV, JSON Lines or Arrow file, folder of them or of images, glob, or s3:// address "
        "(required, except with --retry-quarantine).",
        default=None,
        min_length=1,
    )
    output: str = path("Folder for the Parquet parts, the ledger and the report.", min_length=1)
    engine: EngineName = Field(default="onnxruntime", description="What runs the model.")
    device: Device = Field(
        default="cpu",
        description="Where onnxruntime computes: cpu, cuda, tensorrt; auto takes the best that is there.",
    )
    columns: tuple[str, ...] = Field(
        default=(), strict=False, description="Input columns to keep beside the answers."
    )
    outputs: tuple[str, ...] = Field(
        default=("label", "probabilities", "value"),
        strict=False,
        min_length=1,
        description="Which of the model's outputs to write.",
    )
    origin: bool = Field(
        default=False, description="Keep where each row came from: origin_file and origin_row, from 0."
    )
    partition_by: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Kept columns, or label, whose values become folders (country=DE/).",
    )
    codec: Codec = Field(default="zstd", description="Compression of the parts.")
    row_group_rows: int = Field(
        default=131_072, ge=1, le=1 << 24, description="Most rows of a row group of the parts."
    )
    max_bad_rows: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=ALLOWANCE_PATTERN)] = Field(
        default="1%",
        description="Most rows that may be quarantined before the run ends without a manifest: a count "
        "(100) or a share (0.5%).",
    )
    retry_quarantine: bool = Field(
        default=False,
        description="Run only the rows the run in the output folder has quarantined, as they stand there or, "
        "corrected, in --input.",
    )
    workers: int = Field(
        default=0, ge=0, le=4096, description="Actors; 0 is one per CPU, as the cluster grows."
    )
    threads: Threads = Field(default=1, description="Engine threads per actor; 0 is the engine's choice.")
    batch_rows: Annotated[int, Field(ge=1, le=1 << 20)] | Literal["auto"] = Field(
        default="auto", description="Rows per call of the engine; auto tries a few sizes when the run starts."
    )
    shard_rows: int = Field(default=125_000, ge=1, le=1 << 30, description="Rows of a shard, roughly.")
    address: str | None = Field(
        default=None, description="Ray cluster to run on; a Ray on this machine when left out."
    )
    prices: dict[str, Annotated[float, Field(ge=0)]] = in_file(
        "US dollars per hour of a node, by market; what the report counts cost with.",
        default={"spot": 0.16, "on-demand": 0.48, "local": 0.0},
    )

    @model_validator(mode="after")
    def _possible(self) -> PredictSettings:
        if self.engine != "onnxruntime" and self.device != "cpu":
            raise ValueError(f"device = {self.device!r} is onnxruntime's; engine is {self.engine!r}")
        return self


class RunsSettings(CommandSettings):
    """List, inspect, verify and clean batch runs by their ledgers."""

    action: Literal["list", "show", "verify", "clean"] = argument(
        "list the project's; show one; verify hashes its parts again; clean removes an unfinished one."
    )
    output: str | None = argument("Output folder of the run, or s3:// address.", default=None, path=True)
    finished: bool = Field(default=False, description="Whether clean may remove a finished run.")

    @model_validator(mode="after")
    def _named(self) -> RunsSettings:
        if self.action != "list" and self.output is None:
            raise ValueError(f"{self.action} needs the output folder of a run")
        return self


class SubmitSettings(CommandSettings):
    """Run train, tune, compress or predict as a job on a Ray cluster, and follow it."""

    address: str = Field(
        default="http://127.0.0.1:8265", pattern=r"^https?://", description="Ray dashboard of the cluster."
    )
    attach: str | None = Field(
        default=None, description="Follow the job with this id instead of starting one."
    )
    wait: bool = Field(default=True, description="Follow the job's log until it ends.")
    retries: int = Field(
        default=0,
        ge=0,
        le=100,
        description="How often a job that was lost (its node died, it was killed) is submitted again; it "
        "resumes.",
    )
    timeout_s: float = Field(default=10.0, gt=0, le=600, description="Longest wait for an answer.")
    python: str | None = Field(
        default=None, pattern=r"^/", description="Interpreter on the cluster; here, this one when left out."
    )
    command: tuple[str, ...] = argument(
        "The command after --, for example: train --promote.", default=(), strict=False
    )

    @property
    def idle(self) -> tuple[Idle, ...]:
        """Whoever does not follow a job cannot see that it was lost."""
        if self.retries and self.attach:
            return (Idle("retries", "attach", "nothing"),)
        return () if self.wait or not self.retries else (Idle("retries", "wait", "true"),)


class ClusterSettings(CommandSettings):
    """Write the description of a cluster: a YAML of Ray for AWS, or manifests of KubeRay."""

    action: Literal["render"] = argument("render writes the description.", default="render")
    target: Literal["aws", "rayjob", "rayservice"] = Field(default="aws", description="What is described.")
    output: str | None = path("File to write; standard output when left out.", default=None, min_length=1)
    name: str | None = Field(
        default=None,
        pattern=CLUSTER_NAME_PATTERN,
        description="Name of the cluster; the project's when left out.",
    )
    image: str | None = Field(
        default=None,
        pattern=r"^[\w./:@-]+$",
        description="Machine image (aws; Ubuntu 24.04 when left out), or container image with the kit and "
        "the project in it (required elsewhere).",
    )
    python: str | None = Field(
        default=None,
        pattern=r"^[\w./-]+$",
        description="Interpreter with the kit; /opt/kit/bin/python (aws) or python when left out.",
    )
    max_workers: int = Field(default=32, ge=1, le=4096, description="Most worker nodes.")
    min_on_demand: int = Field(default=1, ge=0, le=4096, description="On-demand workers that always run.")
    max_on_demand: int = Field(default=8, ge=1, le=4096, description="Most on-demand workers.")
    idle_minutes: int = Field(default=5, ge=1, le=1440, description="Minutes after which an idle node goes.")
    region: str = Field(
        default="eu-central-1", pattern=r"^[a-z]{2}(-[a-z]+)+-\d$", description="Region (aws)."
    )
    zones: tuple[Annotated[str, Field(pattern=r"^[a-z]$")], ...] = Field(
        default=("a", "b", "c"), strict=False, min_length=1, description="Zones of the region (aws)."
    )
    head: Instance = Field(default="m7i.large", description="Instance of the head (aws).")
    spot: tuple[Instance, ...] = Field(
        default=("m7i.2xlarge", "m6i.2xlarge", "m7a.2xlarge", "m7i.4xlarge", "m6i.4xlarge"),
        strict=False,
        min_length=1,
        description="Spot instances, the first choice first (aws).",
    )
    on_demand: Instance = Field(default="m7i.2xlarge", description="Instance of on-demand workers (aws).")
    disk_gb: int = Field(default=100, ge=20, le=16384, description="Disk of every node, in GB (aws).")
    instance_profile: str | None = Field(
        default=None,
        pattern=r"^[\w+=,.@-]+$",
        description="Instance profile of the workers, to read s3:// (aws).",
    )
    wheel: str | None = path(
        "The kit's wheel, put on every node; from the package index when left out (aws).",
        default=None,
        pattern=r"\.whl$",
    )
    namespace: Annotated[str, Field(pattern=CLUSTER_NAME_PATTERN)] = Field(
        default="default", description="Namespace of Kubernetes."
    )
    folder: str = Field(
        default="/home/ray/project", pattern=r"^/[\w./-]*$", description="The project's folder in the image."
    )
    claim: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        description="PersistentVolumeClaim mounted at [project] state.",
    )
    service_account: str | None = Field(
        default=None, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", description="Service account of the pods."
    )
    market: Literal["karpenter", "eks", "label"] = Field(
        default="karpenter",
        description="How Kubernetes nodes say what they are: karpenter.sh/capacity-type, "
        "eks.amazonaws.com/capacityType, or a label ray.io/market-type of your own.",
    )
    pod_cpus: int = Field(default=7, ge=1, le=192, description="CPUs of a worker pod.")
    pod_memory_gb: int = Field(default=24, ge=2, le=1536, description="Memory of a worker pod, in GiB.")
    user_id: int = Field(default=1000, ge=1, le=65535, description="User the pods run as; never root.")
    drain_s: int = Field(default=90, ge=1, le=3600, description="Seconds a pod that must go has to drain.")
    grace_period_s: int = Field(
        default=120, ge=10, le=3660, description="Seconds after which such a pod is killed."
    )
    command: str | None = Field(
        default=None, min_length=1, description='What a RayJob runs: "predict digits --input s3://...".'
    )
    retries: int = Field(
        default=2, ge=0, le=100, description="How often a RayJob starts again on a new cluster; it resumes."
    )
    model: str | None = Field(default=None, min_length=1, description="What a RayService serves.")
    replicas: int = Field(default=2, ge=1, le=1024, description="Replicas of a RayService's endpoint.")

    @property
    def idle(self) -> tuple[Idle, ...]:
        """What does nothing for another target."""
        mine = {
            "aws": ("region", "zones", "head", "spot", "on_demand", "disk_gb", "instance_profile", "wheel"),
            "rayjob": ("command", "retries"),
            "rayservice": ("model", "replicas"),
        }
        pods = ("namespace", "folder", "claim", "service_account", "market", "pod_cpus", "pod_memory_gb")
        needed = {name: repr(target) for target, names in mine.items() for name in names}
        needed |= dict.fromkeys((*pods, "user_id", "drain_s", "grace_period_s"), "'rayjob' or 'rayservice'")
        needed["max_workers"] = "'aws' or 'rayjob'"  # an endpoint stays off spot nodes
        needed["min_on_demand"] = "'aws' or 'rayservice'"  # a job's on-demand nodes come when spot does not
        return tuple(
            Idle(name, "target", targets)
            for name, targets in needed.items()
            if repr(self.target) not in targets
        )

    @model_validator(mode="after")
    def _possible(self) -> ClusterSettings:
        needed = {
            "aws": (),
            "rayjob": ("image", "claim", "command"),
            "rayservice": ("image", "claim", "model"),
        }[self.target]
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing; target = {self.target!r} needs it")
        if self.min_on_demand > self.max_on_demand:
            raise ValueError(
                f"min_on_demand = {self.min_on_demand} is more than max_on_demand = {self.max_on_demand}"
            )
        if self.target != "rayservice" and self.max_on_demand > self.max_workers:
            raise ValueError(
                f"max_on_demand = {self.max_on_demand} is more than max_workers = {self.max_workers}"
            )
        for name, values in (("zones", self.zones), ("spot", self.spot)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {', '.join(values)} names one of them twice")
        sizes = sorted({n_cpus_of(each) for each in self.spot})
        if n_cpus_of(self.on_demand) not in sizes:
            # Ray looks at how well a node is filled before it looks at its priority.
            raise ValueError(
                f"on_demand = {self.on_demand!r} has {n_cpus_of(self.on_demand)} CPUs, and no spot instance "
                f"has as many ({', '.join(map(str, sizes))}); another size would be bought before spot"
            )
        if self.drain_s + 10 > self.grace_period_s:
            raise ValueError(
                f"drain_s = {self.drain_s} leaves less than 10 s of grace_period_s = {self.grace_period_s}"
            )
        return self


def n_cpus_of(instance: str) -> int:
    """Count the CPUs of an EC2 instance by the name of its size."""
    size = instance.partition(".")[2]
    if size in ("large", "xlarge"):
        return 2 if size == "large" else 4
    return 4 * int(size.removesuffix("xlarge"))
