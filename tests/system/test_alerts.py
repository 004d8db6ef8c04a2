"""The alert rules, run by Prometheus' own tool on series that must make them fire, and on others."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

import serve.watching
from serve.releases.comparison import Counts
from serve.watching.exposition import merge
from serve.watching.metrics import Metrics

RULES = Path(serve.watching.__file__).with_name("alerts.yaml")
pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus"
)

ALIVE = {'kit_build_info{deployment="endpoint",replica="a"}': "1x6000"}
BUCKETS = 'kit_request_seconds_bucket{model="digits",version="3",le="%s"}'


class Case(NamedTuple):
    """Series, and which alerts are firing at some minutes.

    Attributes:
        series: Series to its values, one a minute, in promtool's notation.
        firing: Minute to the names of all alerts that are firing then.
    """

    series: dict[str, str]
    firing: dict[int, set[str]]


def requests(*, asked: str = "digits", version: str = "3", **outcomes: str) -> dict[str, str]:
    return {
        f'kit_requests_total{{model="{asked}",version="{version}",outcome="{name}"}}': values
        for name, values in outcomes.items()
    }


def latencies(*, fast: int, slow: int) -> dict[str, str]:
    """Requests a minute below 250 ms, and between 500 ms and 1 s."""
    counts = {"0.25": fast, "0.5": fast, "1.0": fast + slow, "+Inf": fast + slow}
    return {BUCKETS % edge: f"0+{count}x600" for edge, count in counts.items()}


def breaker(state: int) -> dict[str, str]:
    return {'kit_breaker_state{model="digits",version="3",replica="a"}': f"0 0 {state}x60"}


def queue(rows: int) -> dict[str, str]:
    labels = '{model="digits",version="3",replica="a"}'
    return {f"kit_queue_rows{labels}": f"{rows}x60", f"kit_queue_limit_rows{labels}": "100x60"}


def replicas(*, wanted: int, **alive: str) -> dict[str, str]:
    series = {}
    for name, values in alive.items():
        labels = f'deployment="own",replica="{name}"'
        series[f"kit_build_info{{{labels}}}"] = values
        series[f"kit_replicas_wanted{{{labels}}}"] = values.replace("1x", f"{wanted}x")
    return series


CASES = {
    "nothing fires while all is well": Case(
        {**requests(ok="0+6000x600"), **latencies(fast=6000, slow=0), **breaker(0), **queue(10)},
        {10: set(), 300: set()},
    ),
    "one failure in fifty pages within ten minutes": Case(
        requests(ok="0+5880x60", internal="0+120x60"),
        {1: set(), 10: {"KitErrorRate", "KitErrorBudgetFast"}},
    ),
    "failures of any kind add up": Case(
        requests(ok="0+5920x60", model="0+40x60", deadline="0+40x60"),
        {10: {"KitErrorRate"}},
    ),
    "requests that failed before a version was chosen count": Case(
        requests(ok="0+5880x60") | requests(version="", overloaded="0+120x60"),
        {10: {"KitErrorRate", "KitErrorBudgetFast"}},
    ),
    "one model's success does not hide another's failure": Case(
        requests(ok="0+600000x60") | requests(asked="churn", ok="0+90x60", internal="0+10x60"),
        {10: {"KitErrorRate", "KitErrorBudgetFast"}},
    ),
    "a minute of trouble pages nobody": Case(
        requests(ok="0+6000x600", internal="0 0 0 0 0 120 120x600"),
        {7: set(), 12: set(), 30: set()},
    ),
    "what clients do wrong is no error": Case(
        requests(ok="0+100x600", invalid="0+100x600", unauthorized="0+100x600", rate_limited="0+99x600"),
        {10: set(), 300: set()},
    ),
    "what clients do wrong does not hide errors": Case(
        requests(ok="0+98x60", internal="0+2x60", unauthorized="0+9000x60"),
        {10: {"KitErrorRate", "KitErrorBudgetFast"}},
    ),
    "0.8 % for hours spends the budget and is found": Case(
        requests(ok="0+9920x600", internal="0+80x600"),
        {
            10: set(),
            40: {"KitErrorBudgetMedium"},
            300: {"KitErrorBudgetMedium", "KitErrorBudgetSlow", "KitErrorBudgetTrickle"},
        },
    ),
    "0.05 % is within the budget": Case(
        requests(ok="0+9995x600", internal="0+5x600"), {10: set(), 40: set(), 300: set()}
    ),
    "a p99 over 500 ms pages after ten minutes": Case(
        latencies(fast=980, slow=20), {9: set(), 15: {"KitLatency"}}
    ),
    "a p99 under 500 ms does not": Case(latencies(fast=995, slow=5), {15: set(), 60: set()}),
    "a queue near its bound": Case(queue(90), {0: set(), 3: {"KitQueue"}}),
    "a queue far from its bound": Case(queue(70), {3: set(), 30: set()}),
    "an open breaker": Case(breaker(2), {1: set(), 5: {"KitBreakerOpen"}}),
    "a breaker that probes": Case(breaker(1), {5: set()}),
    "a replica that is gone": Case(
        replicas(wanted=2, b="1x60", c="1x10 stale"),
        {10: set(), 13: {"KitReplicaGone"}, 40: {"KitReplicaGone"}},
    ),
    "a deployment whose last replica is gone": Case(
        replicas(wanted=1, b="1x10 stale"), {10: set(), 13: {"KitReplicaGone"}}
    ),
    "more replicas than the fewest": Case(
        replicas(wanted=1, b="1x60", c="1x10 stale"), {13: set(), 40: set()}
    ),
    "a release that is not in force": Case(
        {'kit_release_failed{endpoint="digits",replica="a"}': "0 0 5x60"}, {1: set(), 5: {"KitReleaseFailed"}}
    ),
    "replicas that follow different releases": Case(
        {
            'kit_release_sequence{endpoint="digits",replica="a"}': "4 4 5x60",
            'kit_release_sequence{endpoint="digits",replica="b"}': "4x60",
        },
        {1: set(), 7: {"KitReleaseSplit"}},
    ),
    "a release that takes a minute to arrive": Case(
        {
            'kit_release_sequence{endpoint="digits",replica="a"}': "4 4 5x60",
            'kit_release_sequence{endpoint="digits",replica="b"}': "4 4 4 5x60",
        },
        {3: set(), 7: set()},
    ),
}


def promtool(*arguments: str, given: bytes | None = None) -> str:
    done = subprocess.run(["promtool", *arguments], input=given, capture_output=True)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def run(folder: Path, series: dict[str, str], firing: dict[int, set[str]]) -> str:
    """Have promtool hold the rules against series; gives what it says."""
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)],
            }
            for minute, names in firing.items()
        ],
    }
    path = folder / "test.yaml"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    return promtool("test", "rules", str(path))


def test_prometheus_accepts_the_rules() -> None:
    assert "SUCCESS: 19 rules found" in promtool("check", "rules", str(RULES))


@pytest.mark.parametrize("name", CASES)
def test_exactly_these_alerts_fire(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    assert "SUCCESS" in run(tmp_path, ALIVE | case.series, case.firing)


def test_no_replica_at_all_is_an_alert(tmp_path: Path) -> None:
    assert "SUCCESS" in run(tmp_path, requests(ok="0+1x60"), {1: set(), 5: {"KitAbsent"}})


def test_a_replica_that_is_scraped_twice_does_not_hide_a_missing_one(tmp_path: Path) -> None:
    once = replicas(wanted=2, b="1x60")
    twice = {
        f'{name[:-1]},instance="{address}"}}': values for name, values in once.items() for address in "xy"
    }
    assert "SUCCESS" in run(tmp_path, ALIVE | twice, {5: {"KitReplicaGone"}})


def test_prometheus_finds_nothing_wrong_with_a_merged_text(tmp_path: Path) -> None:
    for name in ("a", "b"):
        metrics = Metrics()
        version = metrics.of("digits", "3")
        version.answered("ok", 0.0004, transport="http")
        version.batch(2, 8, 0.001, 0.002)
        version.cached("hit")
        version.loaded({"open": 0.1}, n_bytes=1000)
        version.watch(queue_rows=lambda: 5, queue_limit_rows=9, breaker=lambda: "closed")
        version.watch_shadow(lambda: Counts(compared=5))
        metrics.of("", "").answered("unauthorized", 0.0001, transport="http")
        metrics.rate_limited("digits")
        metrics.release("digits", sequence=4, shares={"3": 1.0}, failed=lambda: 0)
        metrics.watch_dropped("log", count=lambda: 0)
        (tmp_path / f"{name}.prom").write_bytes(metrics.render())
    assert promtool("check", "metrics", given=merge(tmp_path)) == ""
