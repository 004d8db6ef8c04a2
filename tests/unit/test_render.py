"""kit cluster render: the same settings, the same bytes; what KubeRay takes, and nothing impossible."""

from __future__ import annotations

import argparse
import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from jobs.render import RAY_VERSION, TORCH_VERSION, cluster, describe
from kit.cli import build_parser
from kit.cli.commands import find_command
from kit.cli.flags import add_flags, given
from kit.errors import InputError, SettingsError
from kit.project import Project
from kit.settings import ClusterSettings

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "tests" / "kuberay-1.7.schema.json").read_text())
COMMAND = "predict digits@champion --input s3://rows/today --output s3://answers/today"
TARGETS: dict[str, dict[str, Any]] = {
    "aws": {},
    "rayjob": {"image": "registry.example/digits:1", "claim": "state", "command": COMMAND},
    "rayservice": {"image": "registry.example/digits:1", "claim": "state", "model": "digits@champion"},
}
MARKET = "ray.io/market-type"

TOML = """
[project]
name = "digits"
state = "/mnt/digits"

[data]
path = "data.parquet"
label = "digit"

[[data.inputs]]
name = "image"

[model]
factory = "model:build"
"""


def text(target: str, *, name: str = "digits", state: str = "/mnt/digits", **more: Any) -> str:
    settings = ClusterSettings(action="render", target=target, **{**TARGETS[target], **more})
    return describe(settings, name=name, state=state)


def loaded(target: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text(target, **more))
    return found


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return found


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    described = cluster_of(manifest)
    groups = {group["groupName"]: group for group in described["workerGroupSpecs"]}
    return {
        name: group["template"]["spec"]
        for name, group in {"head": described["headGroupSpec"], **groups}.items()
    }


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_settings_give_the_same_bytes(target: str) -> None:
    assert text(target) == text(target)
    assert text(target).endswith("\n")
    assert "\n\n\n" not in text(target)


def test_the_file_at_the_root_is_what_render_writes() -> None:
    wheel = "dist/batch_edge_kit-0.1.0-py3-none-any.whl"
    assert (ROOT / "ray-cluster.yaml").read_text() == text("aws", name="kit", wheel=wheel)


def test_the_nodes_get_what_the_kit_pins() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f"tune]=={RAY_VERSION};" in project
    assert f'"torch=={TORCH_VERSION};' in project


@pytest.mark.parametrize("target", ["rayjob", "rayservice"])
def test_a_manifest_has_only_fields_that_kuberay_knows(target: str) -> None:
    manifest = loaded(target, service_account="reader")
    assert list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(manifest)) == []


def misspell(manifest: dict[str, Any]) -> None:
    manifest["spec"]["entryPoint"] = manifest["spec"].pop("entrypoint")


def misplace_labels(manifest: dict[str, Any]) -> None:
    cluster_of(manifest)["workerGroupSpecs"][0]["rayStartParams"]["labels"] = f"{MARKET}=spot"


def misspell_grace(manifest: dict[str, Any]) -> None:
    pods(manifest)["spot"]["terminationGracePeriod"] = 60


@pytest.mark.parametrize("break_it", [misspell, misplace_labels, misspell_grace])
def test_a_broken_key_is_seen(break_it: Callable[[dict[str, Any]], None]) -> None:
    manifest = copy.deepcopy(loaded("rayjob"))
    break_it(manifest)
    assert list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(manifest))


@pytest.mark.parametrize("target", ["rayjob", "rayservice"])
def test_no_pod_runs_as_root_or_takes_more_than_it_asked_for(target: str) -> None:
    for name, pod in pods(loaded(target)).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        container = pod["containers"][0]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["resources"]["requests"] == container["resources"]["limits"], name


@pytest.mark.parametrize("target", ["rayjob", "rayservice"])
def test_a_worker_drains_before_it_is_killed(target: str) -> None:
    for name, pod in pods(loaded(target, drain_s=40, grace_period_s=50)).items():
        if name != "head":
            *command, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert command == ["python", "-m", "jobs.spot", "--drain"]
            assert int(seconds) == 40
            assert pod["terminationGracePeriodSeconds"] == 50


def test_the_head_stays_off_spot_and_runs_no_work() -> None:
    head = cluster_of(loaded("rayjob"))["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert head["labels"] == {MARKET: "on-demand"}
    assert pods(loaded("rayjob"))["head"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}


def test_spot_comes_first_in_a_job_and_never_in_an_endpoint() -> None:
    groups = {group["groupName"]: group for group in cluster_of(loaded("rayjob"))["workerGroupSpecs"]}
    assert groups["spot"]["priority"] > groups["on-demand"]["priority"]
    assert {name: group["labels"] for name, group in groups.items()} == {
        "spot": {MARKET: "spot"},
        "on-demand": {MARKET: "on-demand"},
    }
    assert list(pods(loaded("rayservice"))) == ["head", "on-demand"]


@pytest.mark.parametrize(
    "market, key, value",
    [
        ("karpenter", "karpenter.sh/capacity-type", "spot"),
        ("eks", "eks.amazonaws.com/capacityType", "SPOT"),
        ("label", MARKET, "spot"),
    ],
)
def test_spot_pods_go_where_the_nodes_say_they_are_spot(market: str, key: str, value: str) -> None:
    pod = pods(loaded("rayjob", market=market))["spot"]
    assert pod["nodeSelector"] == {key: value}
    assert pod["tolerations"] == [{"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}]


def test_the_token_comes_from_a_secret() -> None:
    for target in ("rayjob", "rayservice"):
        assert cluster_of(loaded(target))["authOptions"] == {"mode": "token", "secretName": "digits-token"}


def test_the_endpoint_s_key_comes_from_a_secret() -> None:
    variables = {
        each["name"]: each for each in pods(loaded("rayservice"))["on-demand"]["containers"][0]["env"]
    }
    secret = variables["KIT_ENDPOINT_KEY"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "digits-endpoint", "key": "key"}


def test_the_job_s_command_line_is_one_the_kit_reads() -> None:
    words = shlex.split(loaded("rayjob", folder="/app")["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "kit", "predict"]
    command = find_command("predict")
    assert command is not None
    parsed = build_parser(command).parse_args(words[4:])
    assert (parsed.model, parsed.output, str(parsed.project)) == (
        "digits@champion",
        "s3://answers/today",
        "/app",
    )


@pytest.mark.parametrize(
    "command, named",
    [
        ("serve digits", "serve"),
        ("predict digits --input s3://a --output out", "'out'"),
        ("predict digits --input=rows.csv --output s3://b", "'rows.csv'"),
        ("train --address auto", "--address"),
        ("train 'open", "cannot be read"),
    ],
)
def test_a_job_that_cannot_run_is_refused(command: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        text("rayjob", command=command)


def test_a_state_no_pod_can_see_is_refused() -> None:
    with pytest.raises(InputError, match=r"'\.kit'"):
        text("rayjob", state=".kit")


@pytest.mark.parametrize("name", ["Digits", "1digits", "digits_v2", "d" * 48])
def test_a_name_no_cluster_can_have_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be the name"):
        text("rayjob", name=name)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"spot": ("m7g.2xlarge",)}, "pattern"),
        ({"on_demand": "m7i.8xlarge"}, "bought before spot"),
        ({"on_demand": "m7i.large"}, "bought before spot"),
        ({"spot": ("m7i.2xlarge", "m7i.2xlarge")}, "twice"),
        ({"zones": ()}, "at least 1"),
        ({"min_on_demand": 9}, "more than max_on_demand"),
        ({"max_workers": 4}, "more than max_workers"),
        ({"target": "rayjob", "image": None}, "image is missing"),
        ({"target": "rayjob", "image": "a", "claim": "b"}, "command is missing"),
        ({"target": "rayservice", "image": "a", "claim": "b"}, "model is missing"),
        ({"drain_s": 115}, "leaves less than 10 s"),
        ({"user_id": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ClusterSettings(action="render", **wrong)


def test_a_setting_of_another_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kit.toml").write_text(TOML)
    project = Project.open(tmp_path)
    with pytest.raises(SettingsError, match="does nothing with target = 'aws'"):
        project.command("cluster", ClusterSettings, {"action": "render", "namespace": "batch"})


def test_values_reach_the_file_as_they_are_and_cannot_leave_their_place() -> None:
    described = loaded("rayservice", model='digits@1"\n  evil: true')
    assert yaml.safe_load(described["spec"]["serveConfigV2"])["applications"][0]["args"]["models"] == [
        'digits@1"\n  evil: true'
    ]
    aws = loaded("aws", region="us-east-1", zones=("d",), instance_profile="rows", idle_minutes=45)
    assert aws["provider"]["availability_zone"] == "us-east-1d"
    workers = [node for name, node in aws["available_node_types"].items() if name != "head"]
    assert all(node["node_config"]["IamInstanceProfile"] == {"Name": "rows"} for node in workers)
    assert aws["available_node_types"]["on-demand"]["idle_timeout_s"] == 2700


def test_kit_toml_describes_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "kit.toml").write_text(
        TOML + '[cluster]\nspot = ["r7i.4xlarge"]\non_demand = "r7i.4xlarge"\nnamespace = "batch"\n'
    )
    project = Project.open(tmp_path)
    described = cluster(project, project.command("cluster", ClusterSettings)).text
    assert "InstanceType: r7i.4xlarge" in described
    pods_too = {
        "target": "rayjob",
        **{name: TARGETS["rayjob"][name] for name in ("image", "claim", "command")},
    }
    with pytest.raises(SettingsError, match="spot"):
        project.command("cluster", ClusterSettings, {**pods_too, "spot": ["r7i.4xlarge"]})
    described = cluster(project, project.command("cluster", ClusterSettings, pods_too)).text
    assert yaml.safe_load(described)["metadata"]["namespace"] == "batch"


def test_the_project_s_own_name_and_file_are_used(tmp_path: Path) -> None:
    (tmp_path / "kit.toml").write_text(TOML)
    project = Project.open(tmp_path)
    flags = {"action": "render", "output": str(tmp_path / "cluster.yaml")}
    result = cluster(project, project.command("cluster", ClusterSettings, flags))
    assert Path(str(result.path)).read_text() == result.text
    assert yaml.safe_load(result.text)["cluster_name"] == "digits"


def documented() -> list[list[str]]:
    """Give the words of every ``kit cluster render`` in the documents."""
    page = (ROOT / "docs" / "how-to" / "cluster.md").read_text().replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in page.splitlines() if line.startswith("$ kit cluster ")]
    return [shlex.split(line)[2:] for line in lines]


def test_the_documented_commands_render() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, ClusterSettings)
    seen = set()
    for words in documented():
        settings = ClusterSettings(**given(parser.parse_args(words), ClusterSettings))
        assert yaml.safe_load(describe(settings, name="digits", state="/mnt/shared/digits"))
        seen.add(settings.target)
    assert seen == set(TARGETS)
