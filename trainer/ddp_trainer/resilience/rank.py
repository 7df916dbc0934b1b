"""One rank, from the fork to its last step: joins its group, gets its state, trains, and says why when it fails.

It handles no signal that asks it to stop: only the agent does, and asks all ranks to leave together through the node's memory. Whoever
stops a single rank kills it; snapshots and commits are safe against that.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from ddp_trainer import engine
from ddp_trainer.checkpoint.growth import watched
from ddp_trainer.checkpoint.keeper import Keeper
from ddp_trainer.checkpoint.schedule import Schedule
from ddp_trainer.checkpoint.snapshot import SnapshotMemory
from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.checkpoint.store import CheckpointStore, Loaded
from ddp_trainer.config import RunConfig
from ddp_trainer.data.order import evaluation_slice
from ddp_trainer.distributed import Group, Meeting, Place, is_echo, words_of_echo
from ddp_trainer.errors import PEER_LOST, USER_ERROR, DataError, DdpError
from ddp_trainer.exchange.piggyback import Words
from ddp_trainer.resilience import restore, stacks
from ddp_trainer.resilience.admission import assert_own
from ddp_trainer.resilience.fault import ECHO, LEFT_EXIT, leave_note
from ddp_trainer.resilience.last_save import await_durable
from ddp_trainer.tasks.protocol import Dataset
from ddp_trainer.tasks.registry import load_task
from ddp_trainer.telemetry.evaluation import write_evaluation
from ddp_trainer.telemetry.facts import FactsPage
from ddp_trainer.telemetry.recorder import Recorder

_log = logging.getLogger(__name__)
HISTORY = 500
"""Evaluations that a checkpoint remembers: 30 KB; the whole curve is in metrics.jsonl."""
HISTORY_BYTES = 40_000
GRADIENT_ORDER = 2_000
"""Parameters whose order a checkpoint remembers: 12 KB. A model of more tensors makes its restarts with a pass over two samples."""


@dataclass(frozen=True)
class Start:
    """What the agent knows of the run's past when it starts a rank."""

    attempt: int
    reached_step: int
    """The last step that was done and not yet counted as lost; 0 at a fresh start."""
    memory: int
    """Descriptor of the node's snapshot memory."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Windows of steps to pass over."""


def main(config: dict[str, Any], place: dict[str, Any], start: dict[str, Any], page: str, note: str, trace: str) -> int:
    """Be a rank: the target of the agent's fork. Returns the exit code; a failure's words go to the file `note`, stacks to `trace`."""
    stacks.arm(Path(trace))
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s rank {place['rank']} %(message)s", force=True)
    try:
        _run(RunConfig.model_validate(config), Place(**place), Start(**start), FactsPage.open(Path(page)))
    except engine.LeavingError:
        return LEFT_EXIT
    except DdpError as error:
        _log.error("%s", error)  # a sentence for the user; a traceback would hide it
        leave_note(Path(note), error.exit.cause, str(error), getattr(error, "window", None))
        return error.exit.code
    except BaseException as error:  # the process's edge: whatever it is, it is reported and ends the rank
        if is_echo(error):  # no traceback: it would point at the one line that is not to blame; the agent looks for the real cause
            _log.warning("lost its peers: %s", words_of_echo(error))
            leave_note(Path(note), ECHO, f"a collective failed: {words_of_echo(error)}")
            return PEER_LOST.code
        traceback.print_exc()
        leave_note(Path(note), "user_error", f"{type(error).__name__}: {error}".strip())
        return USER_ERROR.code
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
    engine.assert_machine(config, place.local_rank)  # before the data, which may take an hour to come
    meeting = Meeting(config, place)

    def opening(what: str, done: int, total: int) -> None:
        recorder.phase("starting", what, done, total)
        meeting.beat()

    train_set, test_set = task.datasets(opening)
    recorder.phase("starting", "meeting the other ranks")
    group = Group.join(config, place, meeting, lambda signs: recorder.phase("starting", "meeting the other ranks", signs))
    if group.device.type == "cuda":
        recorder.on_gpu(str(torch.cuda.get_device_properties(group.device).uuid))
    memory = SnapshotMemory(start.memory)
    # only the writer writes there
    store = CheckpointStore(config.run_dir / "checkpoints", tell=partial(restore.tell_of_bad, config.run_dir)) if leads else None
    origin = _find(config, recorder, meeting, group, memory, store, train_set.fingerprint)
    on_disk = max(store.steps(), default=restore.NOTHING) if store else restore.NOTHING  # what was set aside is not there any more
    recorder.phase("starting", "building the model")
    micro_batches = _micro_batches(config, group.world_size, origin)
    run = engine.build(config, task, group, train_set, test_set, micro_batches, is_blank=origin.source != "nothing")
    state = RunState(run.model, run.optimizer, run.ema)
    restore.put(origin, state, group)
    history = _take_over(run, origin, start)
    recorder.plan(run.total_steps, run.steps_per_epoch, run.step)
    if run.step or start.reached_step:
        recorder.resumed(run.step, origin.source, max(0, start.reached_step - run.step))
    recorder.phase("starting", "first step")
    engine.begin(run)
    found = (run.step, run.evaluated_step) if origin.source == "disk" else None
    wall = _Wall(float(origin.meta.get("wall_seconds", 0.0)))
    schedule = Schedule(config.checkpoint, run.total_steps, steps_to_keep=3 if group.hears_late else 2)
    keeper = Keeper(
        memory=memory if place.local_rank == 0 else None,
        state=state,
        schedule=schedule,
        describe=lambda step, stall_seconds: {
            **_describe(run, step, start.attempt, wall.seconds(), history),
            "stall_seconds": stall_seconds,
            "stall_seconds_so_far": recorder.stalled_seconds + stall_seconds,
        },
        kept=partial(_kept, recorder, schedule, partial(_writers_words, page, config)),
        leads=leads,
        last_step=run.step,
        last_durable_step=run.step if origin.source == "disk" else max(0, on_disk),
    )
    if leads and origin.source == "memory" and run.step > on_disk:
        _ask_for_disk(memory, keeper)
    try:
        metrics = engine.train(run, _hooks(run, recorder, keeper, memory, start.attempt, history))
    except BaseException:
        recorder.close()  # says how far this rank came: what the page has may be a step old
        raise
    _keep_predictions(run, test_set)
    # nothing has come to what was found there; with a second home it is written again, for the copy may be missing
    is_on_disk = (run.step, run.evaluated_step) == found and not config.checkpoint.mirror_url
    if leads and not is_on_disk:
        recorder.phase("saving")
        _make_last_durable(run.step, keeper, memory, page, config, recorder)
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


def _hooks(
    run: engine.Training, recorder: Recorder, keeper: Keeper, memory: SnapshotMemory, attempt: int, history: list[Any]
) -> engine.Hooks:
    leads, evaluation, batches = run.group.rank == 0, _Wall(0.0), 0
    asked = 0

    def wish(step: int) -> Words:
        nonlocal asked
        # what is heard a step late is under way: said again, it would be kept twice
        keep = leads and keeper.is_due(step) and not (run.group.hears_late and asked == step - 1)
        asked = step if keep else asked
        return Words(keep=keep, leave=memory.leave_asked(attempt))

    def stepped(step: int, samples: int, own_seconds: tuple[float, ...]) -> None:
        recorder.step(step, samples // run.group.world_size, own_seconds, run.data_seconds)
        if usual := recorder.usual_step_seconds:  # a step that was held up would else bring a snapshot after each of the next ones
            keeper.schedule.step_seconds = usual

    def evaluating() -> None:
        nonlocal batches
        if not batches:
            evaluation.restart()
        batches += 1
        recorder.phase("evaluating", done=batches)  # a number that changes is a sign of life

    def evaluated(step: int, metrics: dict[str, float]) -> None:
        nonlocal batches
        batches = 0
        history.append([step, metrics])
        del history[:-HISTORY]
        recorder.evaluated(step, metrics, evaluation.seconds())
        recorder.phase("training")  # a hang in the next step has a step's limit

    return engine.Hooks(
        wish=wish,
        stepped=stepped,
        measured=recorder.train_metrics,
        evaluating=evaluating,
        evaluated=evaluated,
        keep=keeper.keep,
        secure=keeper.secure,
    )


def _kept(
    recorder: Recorder, schedule: Schedule, writers_words: Callable[[], dict[str, Any]], step: int, stall_seconds: float, every_steps: int
) -> None:
    """A snapshot was taken; a good moment to hear how long the last one that went to disk took."""
    recorder.kept(step, stall_seconds, every_steps)
    schedule.persist_seconds = float((writers_words().get("checkpoint") or {}).get("persist_seconds", 0.0))


def _ask_for_disk(memory: SnapshotMemory, keeper: Keeper) -> None:
    """What was only in memory goes to disk at once: faults closer together than the interval must not keep it from there for ever."""
    newest = memory.newest()
    if newest is not None and newest.step == keeper.last_step:
        memory.want_durable(newest)
    else:  # this node has just been sent the state
        keeper.hurry()


def _find(
    config: RunConfig,
    recorder: Recorder,
    meeting: Meeting,
    group: Group,
    memory: SnapshotMemory,
    store: CheckpointStore | None,
    fingerprint: str,
) -> restore.Origin:
    """The newest state, wherever it is. Rank 0 may read for longer than a collective waits: the others hear that it gets on."""

    def finding(signs: int = 0) -> None:
        recorder.phase("starting", "finding the newest state", signs)

    blocks = itertools.count(1)

    def gets_on() -> None:  # on a thread of its own, while this one reads
        with contextlib.suppress(dist.DistError):  # where the store is lost, the agent ends this generation
            meeting.beat()
        finding(next(blocks))

    finding()
    return restore.find(
        group,
        memory,
        newest_on_disk=max(store.steps(), default=restore.NOTHING) if store else restore.NOTHING,
        load=lambda above: _load(config, store, fingerprint, above, gets_on),
        await_loaded=lambda: meeting.await_all(finding, "loaded"),
    )


def _load(config: RunConfig, store: CheckpointStore | None, fingerprint: str, above: int, gets_on: Callable[[], None]) -> Loaded | None:
    """Rank 0: the newest checkpoint above a step that verifies and belongs to this run. `gets_on` is called while files are hashed."""
    if store is None or (config.run.resume == "never" and not store.steps()):
        return None  # "never" is how one begins anew where all checkpoints were set aside
    with watched(store.root, gets_on, lambda: store.hashed_at):
        loaded = store.load_newest(newer_than=above)
    if loaded is not None:
        assert_own(config, loaded.manifest, str(config.run_dir), fingerprint)
    return loaded


def _micro_batches(config: RunConfig, world_size: int, origin: restore.Origin) -> int:
    """What the run was started with, if this world and batch can be shared so; a changed world then does the same arithmetic."""
    saved, configured = int(origin.meta.get("micro_batches", 0)), config.micro_batches
    if config.data.micro_batches is None and saved >= world_size and config.data.global_batch % saved == 0:
        return saved
    if saved not in {0, configured}:
        _log.warning("the run began with %d micro-batches and goes on with %d: sums are rounded in another order", saved, configured)
    return configured


def _take_over(run: engine.Training, origin: restore.Origin, start: Start) -> list[Any]:
    """Go on where the state was left; returns the evaluations until then."""
    run.step = int(origin.meta["step"])
    before = [(int(first), int(end)) for first, end in origin.meta.get("skipped", [])]
    run.skipped = sorted({*before, *((int(first), int(end)) for first, end in start.skipped)})
    run.gradient_order = [int(place) for place in origin.meta.get("gradient_order", [])]
    history = list(origin.meta.get("history", []))
    if history:
        run.evaluated_step, run.metrics = int(history[-1][0]), dict(history[-1][1])
    return history


def _describe(run: engine.Training, step: int, attempt: int, wall_seconds: float, history: list[Any]) -> dict[str, Any]:
    """What the manifest says, and what `state.json` does beside it."""
    position = step * run.config.data.global_batch
    return {
        "step": step,
        "epoch": position // len(run.train_set),
        "sample_offset": position % len(run.train_set),
        "global_batch": run.config.data.global_batch,
        "micro_batches": run.micro_batches,
        "world_size": run.group.world_size,
        "seed": run.config.run.seed,
        "config_hash": run.config.digest(),
        "identity": run.config.identity(),
        "data_fingerprint": run.train_set.fingerprint,
        "attempt": attempt,
        "wall_seconds": wall_seconds,
        "libraries": {"torch": torch.__version__, "ddp-operator": version("ddp-operator")},
        "metrics": run.metrics,
        "skipped": list(run.skipped),
        "history": _fitting(history),
        "gradient_order": run.gradient_order if len(run.gradient_order) <= GRADIENT_ORDER else [],
    }


def _fitting(history: list[Any]) -> list[Any]:
    """The newest evaluations that fit beside the rest of a snapshot's description, however many metrics a task has."""
    while len(json.dumps(history)) > HISTORY_BYTES:
        history = history[len(history) // 2 + 1 :]
    return history


def _make_last_durable(step: int, keeper: Keeper, memory: SnapshotMemory, page: FactsPage, config: RunConfig, recorder: Recorder) -> None:
    """Wait until the writer has the final state on disk; raises as `await_durable` does."""
    if keeper.last_asked != step:
        keeper.keep(step, durable=True)
    heard = partial(_writers_words, page, config)
    await_durable(memory.wanted_number(), step, heard, recorder, config.fault_tolerance.save_limit_seconds)


def _writers_words(page: FactsPage, config: RunConfig) -> dict[str, Any]:
    """What the background writer said last; only node 0 has one."""
    return page.read(config.distributed.procs_per_node) or {}


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
