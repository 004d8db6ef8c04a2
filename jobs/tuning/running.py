"""A study on Ray Tune: the loop that runs trials until the study has ended.

Ray's own bookkeeping is thrown away with the run; what is kept is the study's ledger. It knows nothing of
exports or registries.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.fitting.memory import is_out_of_memory
from jobs.preparation.prepared import Prepared
from jobs.tuning.resources import Room
from jobs.tuning.search import algorithm, proposer, scheduler, tell_ended
from jobs.tuning.study import Study
from jobs.tuning.trial import Work, run_trial, take_from_workers
from kit.errors import UnavailableError
from kit.settings import TuneSettings

_log = logging.getLogger("kit")
_STOPPED = "the scheduler stopped it: others were better by then"
_MARK = "memory"  # one byte of it tells the room of a trial from that of its workers
_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is Python's: Ray's handler ends as if all were well
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files: the ledger is kept
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no value
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # nor Ray's pickled state, which nothing reads again
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box whatever the verbosity
}


@dataclass(frozen=True)
class Run:
    """What a study is run with.

    Attributes:
        settings: Of tune.
        work: What each trial needs to know.
        max_epochs: Most epochs of any trial.
        room: What a trial takes, and how many run at a time.
        seconds_left: Of the time budget; None without one.
        tick: Called again and again while trials run.
    """

    settings: TuneSettings
    work: Work
    max_epochs: int
    room: Room
    seconds_left: float | None
    tick: Callable[[], None]


def run_study(study: Study, run: Run, rows: Mapping[str, np.ndarray] | Prepared) -> None:
    """Run trials until the study has ended or its time is up, which leaves some running; Ray is connected.

    Args:
        study: Decides what is handed out, and hears of everything.
        run: Settings and room.
        rows: What is learned from; see ``run_trial``.

    Raises:
        UnavailableError: The ledger or the cluster fails; the study can be continued.
    """
    os.environ.update(_ENVIRONMENT)
    # Trials that run together start together; Ray would start the second's process after the first's.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(study.concurrent or 1)
    from ray import tune

    _hush()
    space, mode, work, ask = run.work.space, run.work.mode, run.work, None
    study.propose, inner = proposer(space, run.settings, mode=mode)
    ended = {number: each for number, each in study.trials.items() if each.status != "running"}
    for trial in ended.values():
        tell_ended(inner, space, trial)
    watch = _watch(study, run)
    if work.train.workers > 1:
        board = _board()
        work, ask = replace(work, board=board), partial(_ask, board)
        study.drained = _free_room
    chosen = scheduler(run.settings, mode=mode, max_epochs=run.max_epochs, space=space, trials=ended, ask=ask)
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_worker, work=work, rows=rows), _resources(run)),
            tune_config=tune.TuneConfig(
                search_alg=algorithm(study, inner=inner, space=space, mode=mode),
                scheduler=chosen,
                num_samples=-1,
                time_budget_s=run.seconds_left,
                reuse_actors=True,
                trial_name_creator=lambda trial: f"trial_{trial.config['number']:04d}",
                trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}_{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=study.ledger.study,
                callbacks=[watch],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                **_ray_storage(run, study, scratch),
            ),
        )
        tuner.fit()
    if watch.unavailable:
        raise UnavailableError(
            watch.unavailable, hint="run the same command again when it answers: the study continues"
        )
    _log.info("the study has ended after %d trials", len(study.trials))


def end_running(study: Study, *, of_workers: bool) -> None:
    """End the trials that the time budget has left running; what they have reached counts.

    Args:
        study: No trial of it runs any more.
        of_workers: Whether each was trained by workers, whose checkpoints have to be taken over.
    """
    spent = "the time budget was spent"
    for number, trial in list(study.trials.items()):
        if trial.status != "running":
            continue
        if of_workers and trial.value is not None:  # a ledger on disk: S3 is refused for workers
            curve = take_from_workers(study.ledger.checkpoint_folder(number, scratch=Path()))
            if not curve:
                study.end(number, "failed", reason=f"{spent} before its first checkpoint")
                continue
            study.heard(number, {**curve[-1], "curve": curve}, parameters=trial.parameters)
        study.end(number, "stopped", reason=spent)


def _hush() -> None:
    for name in ("ray.tune", "ray.train", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a trial that failed is told by us, in a sentence


def _worker(config: dict[str, Any], work: Work, rows: Mapping[str, np.ndarray] | Prepared) -> None:
    run_trial(config, work=work, rows=rows)


def _resources(run: Run) -> Any:
    from ray import tune

    if run.work.train.workers > 1:  # its workers take room of their own, and nothing may keep it from them
        return tune.PlacementGroupFactory([{"CPU": 0.0, _MARK: 1.0}])
    gpus = {"GPU": 1.0} if run.room.gpus else {}
    return tune.PlacementGroupFactory([{"CPU": float(run.room.cpus), **gpus}])


def _board() -> Any:
    """Start the actor that tells trials of several workers to stop."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Board:
        def __init__(self) -> None:
            self.numbers: set[int] = set()

        def stop(self, number: int) -> None:
            self.numbers.add(number)

        def is_stopped(self, number: int) -> bool:
            return number in self.numbers

    # On the driver's machine: a worker's may be taken away.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


def _ask(board: Any, number: int) -> None:
    """Ask a trial to end, and wait until the board knows: the trial looks there as soon as it may go on."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError):  # a board that is gone stops nobody
        ray.get(board.stop.remote(number))


def _free_room() -> None:
    """Give back the room of workers whose trial was killed; Ray leaves it taken until the driver ends.

    Called while no trial runs, so that every group of this driver's that is not Ray Tune's own is such a one.
    The cluster's other drivers have groups as well: the job that made one stands at the end of its name.
    """
    import ray
    from ray.util.placement_group import PlacementGroup

    job = ray.get_runtime_context().get_job_id()
    for identity, group in ray.util.placement_group_table().items():
        gone = group["state"] == "REMOVED" or any(_MARK in each for each in group["bundles"].values())
        if identity.endswith(job) and not gone:
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(identity)))


def _ray_storage(run: Run, study: Study, scratch: str) -> dict[str, Any]:
    """Say where Ray puts its own files: away with the run, but where a population's nodes all see them."""
    if not run.work.share_epochs:
        return {"storage_path": scratch}
    from kit.tables import open_file_system

    system, root = open_file_system(study.ledger.uri)
    return {"storage_path": f"{root}/{study.ledger.study}/ray", "storage_filesystem": system}


def _watch(study: Study, run: Run) -> Any:
    from ray import tune

    class Watch(tune.Callback):
        """Brings what Ray tells of trials to the study."""

        def __init__(self) -> None:
            self.unavailable = ""

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            run.tick()

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            number = int(trial.config["number"])
            if "unavailable" in result:
                self.unavailable = result["unavailable"]
                raise UnavailableError(
                    self.unavailable,
                    hint="run the same command again when it answers: the study continues",
                )
            if "failed" in result:
                study.end(number, "failed", reason=result["failed"])
            elif "epoch" in result:
                # Those it had when it told, not those a population has given it for what follows.
                study.heard(number, result, parameters=dict(result["config"]["values"]))
            if result.get("stopped"):
                study.end(number, "stopped", reason=_STOPPED)
            elif result.get("ended"):
                study.end(number, "finished")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            number = int(trial.config["number"])
            study.end(number, "stopped", reason=_STOPPED)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            number = int(trial.config["number"])
            memory = is_out_of_memory(RuntimeError(_error_text(trial)))
            study.died(
                number,
                reason="it ran out of memory and Ray ended its process"
                if memory
                else "its process was killed",
                own_fault=memory,
            )

    return Watch()


def _error_text(trial: Any) -> str:
    """Read what Ray wrote about a trial's end; its text, never its pickle."""
    try:
        with open(trial.error_file, encoding="utf-8") as file:
            return file.read()
    except (OSError, TypeError):
        return ""
