"""The described clusters, taken by those who read them: EC2, Ray's autoscaler, Ray Serve."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.render import describe
from kit.settings import ClusterSettings

FILE = Path(__file__).resolve().parents[2] / "ray-cluster.yaml"
POD = {"image": "registry.example/digits:1", "claim": "state"}


@pytest.fixture
def written() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


@pytest.fixture
def ec2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that takes what EC2 takes, and its client."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "HOME": str(tmp_path),  # Ray writes an SSH key there
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    yield boto3.client("ec2")
    server.stop()


def test_the_aws_provider_of_ray_starts_every_kind_of_node(written: dict[str, Any], ec2: Any) -> None:
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    image = next(each for each in ec2.describe_images()["Images"] if "ubuntu" in each["Name"])["ImageId"]
    iam = boto3.client("iam")
    profile = iam.create_instance_profile(InstanceProfileName="head")["InstanceProfile"]["Arn"]
    for node in written["available_node_types"].values():
        node["node_config"]["ImageId"] = image
        node["node_config"]["IamInstanceProfile"] = {"Arn": profile}
    described = bootstrap_aws(prepare_config(written))
    provider = AWSNodeProvider(described["provider"], described["cluster_name"])
    for name, node in described["available_node_types"].items():
        tags = {"ray-user-node-type": name, "ray-node-kind": "worker", "ray-launch-config": "0"}
        provider.create_node(copy.deepcopy(node["node_config"]), tags, 1)
    started = {
        next(tag["Value"] for tag in each["Tags"] if tag["Key"] == "ray-user-node-type"): each
        for reservation in ec2.describe_instances()["Reservations"]
        for each in reservation["Instances"]
    }
    assert started.keys() == written["available_node_types"].keys()
    for name, instance in started.items():
        assert instance.get("InstanceLifecycle", "on-demand") == (
            "spot" if name.startswith("spot-") else "on-demand"
        )
        assert (
            instance["InstanceType"] == written["available_node_types"][name]["node_config"]["InstanceType"]
        )
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
    for name, node in written["available_node_types"].items():
        kind = node["node_config"]["InstanceType"]
        offered = ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"][0]
        assert node["resources"]["CPU"] in (offered["VCpuInfo"]["DefaultVCpus"], 0), name


def bought(nodes: dict[str, Any], *, n_tasks: int, gone: tuple[str, ...] = ()) -> Counter[str]:
    """Ask Ray's own scheduler which nodes it would start for tasks of one CPU."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    kinds = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=0,
            max_worker_nodes=node["max_workers"],
            priority=node.get("priority", 0),
            resources={**node["resources"], "memory": 1e9},
            labels=node["labels"],
        )
        for name, node in nodes.items()
    }
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=kinds,
        max_num_nodes=33,
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make({"CPU": 1})] * n_tasks
        ),
        cloud_resource_availabilities={name: 0.0 if name in gone else 1.0 for name in kinds},
        recoverable_resource_availabilities={name: 0.0 if name in gone else 1.0 for name in kinds},
    )
    reply = ResourceDemandScheduler().schedule(request)
    return Counter({each.instance_type: each.count for each in reply.to_launch})


@pytest.mark.parametrize("n_tasks", [1, 3, 8, 9, 16, 40, 200])
def test_the_autoscaler_buys_spot_while_there_is_any_of_the_size(
    written: dict[str, Any], n_tasks: int
) -> None:
    nodes = written["available_node_types"]
    for gone in ((), ("spot-m7i-2xlarge",)):
        started = bought(nodes, n_tasks=n_tasks, gone=gone)
        assert sum(nodes[name]["resources"]["CPU"] * count for name, count in started.items()) >= n_tasks
        assert all(name.startswith("spot-") for name in started)


def test_the_autoscaler_buys_on_demand_where_spot_is_gone(written: dict[str, Any]) -> None:
    nodes = written["available_node_types"]
    gone = tuple(name for name in nodes if name.startswith("spot-"))
    assert bought(nodes, n_tasks=8, gone=gone) == {"on-demand": 1}


def manifest(target: str, **more: Any) -> dict[str, Any]:
    settings = ClusterSettings(action="render", target=target, **{**POD, **more})
    loaded: dict[str, Any] = yaml.safe_load(describe(settings, name="digits", state="/mnt/digits"))
    return loaded


def test_ray_reads_the_pods_of_a_job_as_they_are_meant() -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    described = manifest("rayjob", command="train", pod_cpus=15, max_workers=20)["spec"]["rayClusterSpec"]
    read = autoscaling_config._generate_available_node_types_from_ray_cr_spec(described)
    head, spot, on_demand = (read[name] for name in ("headgroup", "spot", "on-demand"))
    assert head["resources"]["CPU"] == 0
    assert spot["resources"] == {"CPU": 15, "memory": 24 * 2**30}
    assert (spot["min_workers"], spot["max_workers"]) == (0, 20)
    assert spot["labels"] == {"ray.io/market-type": "spot"}
    assert spot["priority"] > on_demand["priority"]
    workers = {"spot": spot, "on-demand": on_demand}
    assert set(bought(workers, n_tasks=30)) == {"spot"}
    assert set(bought(workers, n_tasks=30, gone=("spot",))) == {"on-demand"}


def test_ray_serve_reads_the_endpoint_as_it_is_meant() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(manifest("rayservice", model="digits", replicas=3)["spec"]["serveConfigV2"])
    read = ServeDeploySchema.model_validate(config)
    application = read.applications[0]
    assert application.args == {"project": "/home/ray/project", "models": ["digits"]}
    deployment = application.deployments[0]
    assert deployment.num_replicas == 3
    # Ray Serve takes keys it does not know without a word: every one of ours must have become something.
    assert config["applications"][0].keys() <= type(application).model_fields.keys()
    assert config["applications"][0]["deployments"][0].keys() <= type(deployment).model_fields.keys()
    options = config["applications"][0]["deployments"][0]["ray_actor_options"]
    assert options.keys() <= type(deployment.ray_actor_options).model_fields.keys()
    assert config["http_options"].keys() <= type(read.http_options).model_fields.keys()
