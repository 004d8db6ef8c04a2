"""Seconds per epoch of `kit train` on the digits network, as a ratio to a bare torch loop, and by workers.

    python benchmarks/train.py [--epochs 20] [--rounds 5] [--worker-rounds 3]

The bare loop takes the same batches of the same rows through the same network with AdamW, and measures the
same validation loss after each epoch. Loops take turns, and so do one and two workers on Ray Train, so the
ratio is the message. Each figure is a median over epochs, the first of each run left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from jobs.fitting.local import Build, fit_here
from jobs.fitting.loop import FitConfig, Fitted
from jobs.fitting.network import build_network
from jobs.fitting.workers import fit_on_workers
from jobs.preparation.prepared import Prepared, prepare_rows
from kit.init import init
from kit.project import Project
from kit.settings import InitSettings, TrainSettings


def bare(project: Project, prepared: Prepared, settings: TrainSettings) -> list[float]:
    """Train with nothing but torch; gives the seconds of each epoch."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    network = build_network(project, n_features=prepared.n_features, n_classes=len(prepared.split.classes))
    data = {name: torch.from_numpy(np.array(each)) for name, each in prepared.arrays.items()}
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    seconds = []
    for epoch in range(1, settings.epochs + 1):
        began_s = time.perf_counter()
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(data["train_x"]))
        network.train()
        for rows in torch.split(torch.from_numpy(order), settings.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(network(data["train_x"][rows]), data["train_y"][rows])
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
        network.eval()
        with torch.no_grad():
            float(cross_entropy(network(data["validation_x"]), data["validation_y"]))
        seconds.append(time.perf_counter() - began_s)
    return seconds


def ours(project: Project, prepared: Prepared, settings: TrainSettings) -> list[float]:
    """Train with the kit's loop, without Ray."""
    fitted = fit_here(
        project,
        config(project, prepared, settings),
        prepared.arrays,
        build=builder(prepared),
        hear=lambda figures: None,
    )
    return seconds_of(fitted)


def on_ray(project: Project, prepared: Prepared, settings: TrainSettings) -> list[float]:
    """Train with the kit's loop on Ray Train."""
    fitted = fit_on_workers(
        project,
        settings,
        prepared.arrays,
        fit=config(project, prepared, settings),
        build=builder(prepared),
        storage=project.state / "benchmark",
        identity=f"workers-{settings.workers}",
    )
    return seconds_of(fitted)


def config(project: Project, prepared: Prepared, settings: TrainSettings) -> FitConfig:
    return FitConfig.of(settings, project=project, n_classes=len(prepared.split.classes))


def builder(prepared: Prepared) -> Build:
    return partial(build_network, n_features=prepared.n_features, n_classes=len(prepared.split.classes))


def seconds_of(fitted: Fitted) -> list[float]:
    return [each.seconds for each in fitted.epochs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker-rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "digits"
        init(InitSettings(name=str(folder), template="digits"))
        project = Project.open(folder)
        prepared = prepare_rows(project)
        flags = {"epochs": given.epochs, "patience_epochs": given.epochs, "resume": False}
        one = project.command("train", TrainSettings, flags)
        two = project.command("train", TrainSettings, {**flags, "workers": 2})
        for _ in range(given.rounds):
            for name, run in (("bare torch loop", bare), ("kit, no Ray", ours)):
                found.setdefault(name, []).append(statistics.median(run(project, prepared, one)[1:]))
        for _ in range(given.worker_rounds):
            for name, settings in (("kit, 1 worker", one), ("kit, 2 workers", two)):
                found.setdefault(name, []).append(statistics.median(on_ray(project, prepared, settings)[1:]))
    print("| loop | ms an epoch | to | ratio |\n|---|---|---|---|")
    for name, base in (
        ("bare torch loop", "bare torch loop"),
        ("kit, no Ray", "bare torch loop"),
        ("kit, 1 worker", "kit, 1 worker"),
        ("kit, 2 workers", "kit, 1 worker"),
    ):
        if name in found:
            ratio = statistics.median(a / b for a, b in zip(found[name], found[base], strict=True))
            print(f"| {name} | {statistics.median(found[name]) * 1000:.1f} | {base} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
