"""A study of ours beside the same trials as bare Ray Tune functions, interleaved in one run.

Ours searches with Optuna's TPE under ASHA: eight trials of one worker on the tabular template, two at a
time. The bare trial is a plain torch loop that reports every epoch and keeps nothing. So that both run the
same trials, the bare one is given the values and the epochs that ours had.
"""

from __future__ import annotations

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
from kit.project import Project
from kit.settings import InitSettings, TuneSettings
from kit.signing import generate_key

_ROUNDS = 3


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
        for rows in torch.randperm(len(x)).split(config["batch_size"]):
            optimizer.zero_grad()
            loss(network(x[rows]), y[rows]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            tune.report({"epoch": epoch, "value": float(loss(network(vx), vy))})


def _bare(project: Project, trials: tuple[Trial, ...], *, arrays: Mapping[str, np.ndarray]) -> float:
    """Run the same trials through Ray Tune alone; gives the seconds from a running Ray to the last result."""
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler
    from ray.tune.search import Searcher

    class Given(Searcher):
        """Hands out what ours had, as Optuna would: one after the other."""

        def __init__(self) -> None:
            super().__init__(metric="value", mode="min")
            self.left = [{**each.parameters, "epochs": len(each.epochs)} for each in trials]

        def suggest(self, trial_id: str) -> Any:
            return self.left.pop(0) if self.left else Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

    with connected(None, project=project), tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        function = tune.with_parameters(_bare_trial, folder=str(project.folder), arrays=dict(arrays))
        tune.Tuner(
            tune.with_resources(function, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                search_alg=Given(),
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


def main() -> None:
    """Print the seconds of both and their ratio."""
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "tabular"
        init(InitSettings(name=str(folder), template="tabular"))
        project = Project.open(folder)
        generate_key(project.signing_key_path())
        arrays = prepare_rows(project).arrays
        watch = _Stopwatch()
        logging.getLogger("kit").addHandler(watch)
        logging.getLogger("kit").setLevel(logging.INFO)
        for round_number in range(_ROUNDS):
            settings = project.command("tune", TuneSettings, {"resume": False, "concurrent": 2})
            result = tune(project, settings)
            ours.append(watch.at["has ended after"] - watch.at["at a time"])
            bare.append(_bare(project, result.trials, arrays=arrays))
            print(f"round {round_number + 1}: ours {ours[-1]:.2f} s, bare {bare[-1]:.2f} s")
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    print(f"ours {statistics.median(ours):.2f} s, bare {statistics.median(bare):.2f} s: {ratio:.2f} x")


if __name__ == "__main__":
    main()
