"""ray-cluster.yaml says what Ray's own loader and EC2 understand, and what the kit promises of it."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

FILE = Path(__file__).resolve().parents[2] / "ray-cluster.yaml"
MARKET = "ray.io/market-type"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def check(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return dict(prepared)


def run_instances() -> Any:
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def is_spot(node: dict[str, Any]) -> bool:
    return node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"


def test_the_loader_of_ray_accepts_it(written: dict[str, Any]) -> None:
    assert check(written)["available_node_types"].keys() == written["available_node_types"].keys()


def test_the_loader_of_ray_refuses_a_misspelt_key(written: dict[str, Any]) -> None:
    wrong = copy.deepcopy(written)
    wrong["available_node_types"]["on-demand"]["min_worker"] = 1
    with pytest.raises(Exception, match="min_worker"):
        check(wrong)


def test_every_node_config_is_a_request_ec2_understands(written: dict[str, Any]) -> None:
    for name, node in written["available_node_types"].items():
        request = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, run_instances())
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_the_head_is_on_demand_and_runs_no_work(written: dict[str, Any]) -> None:
    head = written["available_node_types"][written["head_node_type"]]
    assert not is_spot(head)
    assert head["resources"] == {"CPU": 0}
    assert any("--num-cpus=0" in command for command in written["head_start_ray_commands"])


def test_spot_is_bought_before_on_demand(written: dict[str, Any]) -> None:
    workers = [
        node for name, node in written["available_node_types"].items() if name != written["head_node_type"]
    ]
    spot = [node["priority"] for node in workers if is_spot(node)]
    steady = [node["priority"] for node in workers if not is_spot(node)]
    assert spot
    assert steady
    assert min(spot) > max(steady)


def test_labels_tell_which_market_a_node_is_from(written: dict[str, Any]) -> None:
    for node in written["available_node_types"].values():
        assert node["labels"][MARKET] == ("spot" if is_spot(node) else "on-demand")


def test_an_endpoint_finds_a_steady_worker_waiting(written: dict[str, Any]) -> None:
    steady = [node for node in written["available_node_types"].values() if not is_spot(node)]
    assert any(node["min_workers"] > 0 for node in steady)


def test_every_process_asks_for_the_token_and_the_dashboard_stays_on_the_head(
    written: dict[str, Any],
) -> None:
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in written[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_nodes_get_the_kit_whose_metadata_pin_ray(written: dict[str, Any]) -> None:
    project = tomllib.loads(FILE.with_name("pyproject.toml").read_text())["project"]
    wheel = f"batch_edge_kit-{project['version']}-py3-none-any.whl"
    assert written["file_mounts"][f"~/kit/{wheel}"] == f"dist/{wheel}"
    assert any(f"kit/{wheel}[cluster]" in command for command in written["setup_commands"])
    assert any(
        each.startswith("ray[") and "==" in each for each in project["optional-dependencies"]["cluster"]
    )


def test_every_worker_starts_the_watcher_after_its_ray(written: dict[str, Any]) -> None:
    *before, last = written["worker_start_ray_commands"]
    assert any("ray start" in command for command in before)
    assert "/opt/kit/bin/python -m jobs.spot " in last
    assert "setsid --fork" in last  # the command that starts a node must come back
    assert not any("jobs.spot" in command for command in written["head_start_ray_commands"])


def test_spot_comes_in_several_kinds_sizes_and_zones(written: dict[str, Any]) -> None:
    kinds = [
        node["node_config"]["InstanceType"]
        for node in written["available_node_types"].values()
        if is_spot(node)
    ]
    assert len({each.partition(".")[0] for each in kinds}) >= 3
    assert len({each.partition(".")[2] for each in kinds}) >= 2
    assert len(written["provider"]["availability_zone"].split(",")) >= 3
