"""One rank, from the fork to its last step: joins its group, restores the state, trains, and says why when it fails.

It installs no signal handler: only the agent handles signals, and whoever stops a rank kills it. The store's commit is safe against that.
"""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ddp_trainer import engine
from ddp_trainer.checkpoint.manifest import BadCheckpointError, FileEntry, Manifest
from ddp_trainer.checkpoint.saver import Saver
from ddp_trainer.checkpoint.schedule import Due
from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.checkpoint.store import CheckpointStore, Loaded
from ddp_trainer.config import RunConfig, differences
from ddp_trainer.data.order import evaluation_slice
from ddp_trainer.distributed import Group, Place, is_echo
from ddp_trainer.errors import DataError, DdpError
from ddp_trainer.resilience.fault import ECHO, leave_note
from ddp_trainer.tasks.protocol import Dataset, Task
from ddp_trainer.tasks.registry import load_task
from ddp_trainer.telemetry.evaluation import write_evaluation
from ddp_trainer.telemetry.events import EVENTS_FILE, EventLog
from ddp_trainer.telemetry.facts import FactsPage
from ddp_trainer.telemetry.recorder import Recorder

_log = logging.getLogger(__name__)
USER_ERROR_EXIT = 1
ECHO_EXIT = 162
"""A rank that failed because of another one ends with peer_loss's code; its agent looks for the real cause."""


@dataclass(frozen=True)
class Start:
    """What the agent knows of the run's past when it starts a rank."""

    attempt: int
    reached_step: int
    """The last step seen done before the fault; 0 at a fresh start."""


def main(config: dict[str, Any], place: dict[str, Any], start: dict[str, Any], page: str, note: str) -> int:
    """Be a rank: the target of the agent's fork. Returns the exit code; a failure's words go to the file `note`."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s rank {place['rank']} %(message)s", force=True)
    try:
        _run(RunConfig.model_validate(config), Place(**place), Start(**start), FactsPage.open(Path(page)))
    except DdpError as error:
        _log.error("%s", error)  # a sentence for the user; a traceback would hide it
        leave_note(Path(note), error.exit.cause, str(error))
        return error.exit.code
    except BaseException as error:  # the process's edge: whatever it is, it is reported and ends the rank
        traceback.print_exc()
        if is_echo(error):
            leave_note(Path(note), ECHO, f"a collective failed: {str(error).splitlines()[0]}")
            return ECHO_EXIT
        leave_note(Path(note), "user_error", f"{type(error).__name__}: {error}".strip())
        return USER_ERROR_EXIT
    return 0


def _run(config: RunConfig, place: Place, start: Start, page: FactsPage) -> None:
    leads = place.rank == 0
    recorder = Recorder(
        config=config,
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
        page=page,
        run_dir=config.run_dir if leads else None,
        attempt=start.attempt,
    )
    task = load_task(config)
    train_set, test_set = task.datasets(lambda what, done, total: recorder.phase("starting", what, done, total))
    recorder.phase("starting", "meeting the other ranks")
    group = Group.join(config, place)
    if group.device.type == "cuda":
        recorder.on_gpu(str(torch.cuda.get_device_properties(group.device).uuid))
    recorder.phase("starting", "building the model")
    store = CheckpointStore(config.run_dir / "checkpoints", config.checkpoint.keep) if leads else None
    loaded = _load(config, store, train_set.fingerprint) if store else None
    _tell_of_quarantine(config, loaded)
    run, state = _restored(config, task, group, train_set, test_set, loaded)
    recorder.plan(run.total_steps, run.steps_per_epoch)
    if run.step or start.reached_step:
        recorder.resumed(run.step, "disk" if loaded else "nothing", max(0, start.reached_step - run.step))
    recorder.phase("starting", "first step")
    engine.begin(run)
    group.share(state.shared())
    wall = _Wall(loaded.manifest.wall_seconds if loaded else 0.0)
    saver = Saver(
        store=store,
        state=state,
        due=Due(config.checkpoint, run.total_steps),
        describe=lambda step, files: _describe(run, start.attempt, wall.seconds(), step, files),
        saving=lambda: recorder.phase("saving"),
        saved=lambda manifest, seconds: recorder.checkpointed(manifest.step, manifest.total_bytes, seconds, seconds, verified=True),
        last_step=run.step,
    )
    evaluation = _Wall(0.0)

    def evaluating() -> None:
        evaluation.restart()
        recorder.phase("evaluating")

    hooks = engine.Hooks(
        stepped=lambda step, samples: recorder.step(step, samples // group.world_size),
        measured=recorder.train_metrics,
        evaluating=evaluating,
        evaluated=lambda step, metrics: recorder.evaluated(step, metrics, evaluation.seconds()),
        offer=saver.offer,
    )
    metrics = engine.train(run, hooks)
    if metrics:
        _keep_predictions(run, test_set)
    recorder.finished(run.step, metrics)
    recorder.close()
    group.leave()


class _Wall:
    """Seconds since it was made or restarted, on top of what was there before."""

    def __init__(self, before_seconds: float) -> None:
        self._before_seconds = before_seconds
        self.restart()

    def restart(self) -> None:
        self._started = time.monotonic()

    def seconds(self) -> float:
        return self._before_seconds + time.monotonic() - self._started


def _load(config: RunConfig, store: CheckpointStore, fingerprint: str) -> Loaded | None:
    """Rank 0: the newest checkpoint that verifies and belongs to this run."""
    store.prepare()
    if config.run.resume == "never":
        if store.steps():
            raise DataError(
                f"{store.root} holds checkpoints and run.resume is never; give an empty --run-dir, or resume with --set run.resume=auto"
            )
        return None
    loaded = store.load_newest()
    if loaded is None or config.run.resume == "force":
        return loaded
    changed = differences(config.identity(), loaded.manifest.identity)
    if loaded.manifest.data_fingerprint != fingerprint:
        changed.append(f"data content: {loaded.manifest.data_fingerprint[:12]} -> {fingerprint[:12]}")
    if changed:
        raise DataError(
            f"{config.run_dir} holds a run of another configuration ({'; '.join(changed)}); give another --run-dir, "
            f"or take the checkpoint over with --set run.resume=force"
        )
    return loaded


def _restored(
    config: RunConfig, task: Task, group: Group, train_set: Dataset, test_set: Dataset, loaded: Loaded | None
) -> tuple[engine.Training, RunState]:
    """The rank's training at the step where the run goes on; rank 0 has the state, the others its shape until `begin`."""
    plan: dict[str, Any] = {"step": 0, "micro_batches": config.micro_batches, "slots": {}}
    if loaded:
        slots = {name: list(tensor.shape) for name, tensor in loaded.tensors.items() if name.startswith("optimizer.")}
        plan = {"step": loaded.manifest.step, "micro_batches": _micro_batches(config, group.world_size, loaded.manifest), "slots": slots}
    plan = group.share_json(plan)
    run = engine.build(config, task, group, train_set, test_set, int(plan["micro_batches"]))
    run.step = int(plan["step"])
    state = RunState(run.model, run.optimizer, run.ema)
    try:
        state.make_slots(plan["slots"])
        if loaded:
            state.restore(loaded.tensors)
    except BadCheckpointError as error:
        raise DataError(f"the checkpoint of step {run.step} in {config.run_dir} does not fit this model: {error}") from None
    return run, state


def _micro_batches(config: RunConfig, world_size: int, saved: Manifest) -> int:
    """What the run was started with, if this world size can deal it; so that a changed world does the same arithmetic."""
    return saved.micro_batches if config.data.micro_batches is None and saved.micro_batches % world_size == 0 else config.micro_batches


def _tell_of_quarantine(config: RunConfig, loaded: Loaded | None) -> None:
    for step, reason in loaded.quarantined if loaded else ():
        _log.warning("the checkpoint of step %d does not verify (%s) and was set aside; going on from an older one", step, reason)
        path = str(config.run_dir / "checkpoints" / "quarantine")
        EventLog(config.run_dir / EVENTS_FILE).append("quarantine", step=step, path=path, message=reason)


def _describe(run: engine.Training, attempt: int, wall_seconds: float, step: int, files: dict[str, FileEntry]) -> Manifest:
    position = step * run.config.data.global_batch
    return Manifest(
        step=step,
        epoch=position // len(run.train_set),
        sample_offset=position % len(run.train_set),
        global_batch=run.config.data.global_batch,
        micro_batches=run.micro_batches,
        world_size=run.group.world_size,
        seed=run.config.run.seed,
        config_hash=run.config.digest(),
        identity=run.config.identity(),
        data_fingerprint=run.train_set.fingerprint,
        attempt=attempt,
        saved_at=time.time(),
        wall_seconds=wall_seconds,
        libraries={"torch": torch.__version__, "ddp-operator": version("ddp-operator")},
        files=files,
    )


def _keep_predictions(run: engine.Training, test_set: Dataset) -> None:
    """Bring all ranks' last predictions to rank 0, for the report; only where the task has classes."""
    if not run.task.classes or not run.predictions:
        return
    sizes = [len(evaluation_slice(rank, run.group.world_size, len(test_set))) for rank in range(run.group.world_size)]
    rows = run.group.gather_rows(torch.cat(run.predictions), sizes).cpu().numpy()
    if run.group.rank != 0:
        return
    try:
        write_evaluation(
            run.config.run_dir,
            step=run.step,
            classes=run.task.classes,
            targets=rows[:, 0].astype(int),
            predictions=rows[:, 1].astype(int),
            confidences=rows[:, 2],
            picture=test_set.picture,
        )
    except DataError as error:
        _log.warning("%s; the report will lack its predictions", error)  # a finished run must not fail for its report
