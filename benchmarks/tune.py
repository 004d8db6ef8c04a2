"""Seconds of a study of `kit tune`, as a ratio to the same trials as bare functions on Ray Tune.

    python benchmarks/tune.py [--rounds 3]

Eight trials of one worker on the tabular template, Optuna's TPE under ASHA, two at a time. A bare trial is
a plain torch loop that reports every epoch and keeps nothing. So that both run the same trials, a bare study
asks Optuna as well, but is given the values and the epochs that a study of ours had. Each is timed from a
running Ray to the last trial's end; exporting and registering the best are not counted. They take turns, and
in every second round the bare one goes first, so the ratio is the message.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jobs.cluster import connected
from jobs.fitting.network import build_network
from jobs.preparation.prepared import prepare_rows
from jobs.tune import tune
from jobs.tuning.study import Trial
from kit.init import init
from kit.keypair import generate_key
from kit.project import Project
from kit.settings import InitSettings, TuneSettings


class _Stopwatch(logging.Handler):
    """Notes when a study says that it starts and that it has ended; Ray runs all the while."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        for words in ("at a time", "has ended after"):
            if words in record.getMessage():
                self.at[words] = time.perf_counter()


def _bare_trial(config: dict[str, Any], folder: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Train as one would in a notebook."""
    import torch
    from ray import tune

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_network(
        Project.open(Path(folder)),
        n_features=arrays["train_x"].shape[1],
        n_classes=2,
        parameters={"width": config["width"]},
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=config["learning_rate"], weight_decay=1e-4)
    loss = torch.nn.functional.cross_entropy
    x, y, vx, vy = (
        torch.from_numpy(np.array(arrays[name]))
        for name in ("train_x", "train_y", "validation_x", "validation_y")
    )
    for epoch in range(1, config["epochs"] + 1):
        network.train()
        for rows in torch.split(torch.randperm(len(x)), config["batch_size"]):
            optimizer.zero_grad()
            loss(network(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
        network.eval()
        with torch.no_grad():
            tune.report({"epoch": epoch, "value": float(loss(network(vx), vy))})


def _bare(project: Project, trials: tuple[Trial, ...], *, arrays: Mapping[str, np.ndarray]) -> float:
    """Run the same trials through Ray Tune alone; gives the seconds from a running Ray to the last result."""
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    left = [{**each.parameters, "epochs": len(each.epochs)} for each in trials]
    space = {
        "width": tune.randint(16, 65),
        "learning_rate": tune.loguniform(5e-4, 2e-2),
        "batch_size": tune.choice([16, 32, 64]),
    }

    class Given(OptunaSearch):
        """Asks Optuna, and hands out what ours had, one after the other."""

        def suggest(self, trial_id: str) -> Any:
            return super().suggest(trial_id) and left.pop(0) if left else Searcher.FINISHED

    with connected(None, project=project), tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        function = tune.with_parameters(_bare_trial, folder=str(project.folder), arrays=dict(arrays))
        tune.Tuner(
            tune.with_resources(function, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                search_alg=Given(space, metric="value", mode="min", seed=0),
                num_samples=len(trials),
                max_concurrent_trials=2,
                reuse_actors=True,
                scheduler=AsyncHyperBandScheduler(
                    time_attr="epoch", metric="value", mode="min", max_t=1000, grace_period=999
                ),
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        return time.perf_counter() - began


def _ours(project: Project, watch: _Stopwatch) -> tuple[float, tuple[Trial, ...]]:
    """Run a study; gives its seconds and its trials."""
    result = tune(project, project.command("tune", TuneSettings, {"resume": False, "concurrent": 2}))
    return watch.at["has ended after"] - watch.at["at a time"], result.trials


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    watch = _Stopwatch()
    logging.getLogger("kit").addHandler(watch)
    logging.getLogger("kit").setLevel(logging.INFO)
    ours: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "tabular"
        init(InitSettings(name=str(folder), template="tabular"))
        project = Project.open(folder)
        generate_key(project.signing_key_path())
        arrays = prepare_rows(project).arrays
        _, trials = _ours(project, watch)  # not counted: this process imports what both sides use
        for turn in range(given.rounds):
            if turn % 2:
                bare.append(_bare(project, trials, arrays=arrays))
            seconds, next_trials = _ours(project, watch)
            ours.append(seconds)
            if not turn % 2:
                bare.append(_bare(project, next_trials, arrays=arrays))
            trials = next_trials
    print("| study of 8 trials | s | of them slowest | ratio |\n|---|---|---|---|")
    for name, seconds_of in (("bare Ray Tune", bare), ("kit tune", ours)):
        median = statistics.median(seconds_of)
        ratio = median / statistics.median(bare)
        print(f"| {name} | {median:.2f} | {max(seconds_of):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
