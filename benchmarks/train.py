"""Time per epoch of `kit train` on the digits network, as a ratio to a bare torch loop, and by workers.

    python benchmarks/train.py [--epochs 20] [--rounds 5]

The bare loop takes the same batches of the same rows through the same network with AdamW, and measures the
same validation loss after each epoch. All four loops take turns, so the ratio is the message. The first epoch
of each run is left out. The median is taken over a run's own epochs; the whole is the mean time
from one epoch heard of to the next, which holds checkpoints and messages; both are medians over rounds. The
fastest epoch of all rounds is what a machine does that has nothing else to do. Everything runs on one Ray,
which stands before the first round begins.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jobs.cluster import connected
from jobs.fitting.local import Build, fit_here
from jobs.fitting.loop import FitConfig
from jobs.fitting.network import build_network
from jobs.fitting.workers import fit_on_workers
from jobs.preparation.prepared import Prepared, prepare_rows
from kit.init import init
from kit.project import Project
from kit.settings import InitSettings, TrainSettings


@dataclass(frozen=True)
class Timing:
    """Milliseconds an epoch of one run takes: in the median, at best, and with everything between epochs."""

    median_ms: float
    fastest_ms: float
    whole_ms: float

    @classmethod
    def of(cls, seconds: list[float], ended_s: list[float]) -> Timing:
        whole_s = (ended_s[-1] - ended_s[0]) / (len(ended_s) - 1)
        return cls(statistics.median(seconds[1:]) * 1000, min(seconds[1:]) * 1000, whole_s * 1000)


def bare(project: Project, prepared: Prepared, settings: TrainSettings) -> Timing:
    """Train with nothing but torch."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    network = build_network(project, n_features=prepared.n_features, n_classes=len(prepared.split.classes))
    data = {name: torch.from_numpy(np.array(each)) for name, each in prepared.arrays.items()}
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    seconds, ended_s = [], []
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
        ended_s.append(time.perf_counter())
        seconds.append(ended_s[-1] - began_s)
    return Timing.of(seconds, ended_s)


def ours(project: Project, prepared: Prepared, settings: TrainSettings) -> Timing:
    """Train with the kit's loop, without Ray."""
    ended_s: list[float] = []
    fitted = fit_here(
        project,
        config(project, prepared, settings),
        prepared.arrays,
        build=builder(prepared),
        hear=lambda _: ended_s.append(time.perf_counter()),
    )
    return Timing.of([each.seconds for each in fitted.epochs], ended_s)


def on_ray(project: Project, prepared: Prepared, settings: TrainSettings) -> Timing:
    """Train with the kit's loop on Ray Train."""
    ended_s: list[float] = []
    fitted = fit_on_workers(
        project,
        settings,
        prepared.arrays,
        fit=config(project, prepared, settings),
        build=builder(prepared),
        storage=project.state / "benchmark",
        identity=f"workers-{settings.workers}",
        hear=lambda _: ended_s.append(time.perf_counter()),
    )
    return Timing.of([each.seconds for each in fitted.epochs], ended_s)


def config(project: Project, prepared: Prepared, settings: TrainSettings) -> FitConfig:
    return FitConfig.of(settings, project=project, n_classes=len(prepared.split.classes))


def builder(prepared: Prepared) -> Build:
    return partial(build_network, n_features=prepared.n_features, n_classes=len(prepared.split.classes))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, list[Timing]] = {}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "digits"
        init(InitSettings(name=str(folder), template="digits"))
        project = Project.open(folder)
        prepared = prepare_rows(project)
        flags = {"epochs": given.epochs, "patience_epochs": given.epochs, "resume": False}
        one = project.command("train", TrainSettings, flags)
        two = project.command("train", TrainSettings, {**flags, "workers": 2})
        loops = {
            "bare torch loop": partial(bare, project, prepared, one),
            "kit, without Ray": partial(ours, project, prepared, one),
            "kit, 1 worker": partial(on_ray, project, prepared, one),
            "kit, 2 workers": partial(on_ray, project, prepared, two),
        }
        with connected(None, project=project):
            for _ in range(given.rounds):
                for name, run in loops.items():
                    found.setdefault(name, []).append(run())
    print("| loop | median ms | fastest ms | whole ms | ratios to | median | fastest | whole |")
    print("|---|---|---|---|---|---|---|---|")
    for name, base in (
        ("bare torch loop", "bare torch loop"),
        ("kit, without Ray", "bare torch loop"),
        ("kit, 1 worker", "bare torch loop"),
        ("kit, 2 workers", "kit, 1 worker"),
    ):
        print(line(name, base, found[name], found[base]))


def line(name: str, base: str, own: list[Timing], others: list[Timing]) -> str:
    """Write one row of the table."""
    pairs = list(zip(own, others, strict=True))
    fastest_ms, base_ms = (min(each.fastest_ms for each in runs) for runs in (own, others))
    milliseconds = (
        statistics.median(each.median_ms for each in own),
        fastest_ms,
        statistics.median(each.whole_ms for each in own),
    )
    ratios = (
        statistics.median(a.median_ms / b.median_ms for a, b in pairs),
        fastest_ms / base_ms,
        statistics.median(a.whole_ms / b.whole_ms for a, b in pairs),
    )
    cells = [name, *(f"{each:.1f}" for each in milliseconds), base, *(f"{each:.2f}" for each in ratios)]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
