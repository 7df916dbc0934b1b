"""What the training loop tells the world: one Recorder per rank, one call per thing that happened.

Every rank publishes its facts into the node's facts page (at most every `PUBLISH_SECONDS`, so a step pays a few microseconds); rank 0,
which alone is given the run directory, also writes `metrics.jsonl`, `events.jsonl` and TensorBoard. Nothing here touches the device: the
caller hands over Python numbers, and decides how often it can afford to have them.

A recorder never fails a run: what cannot be written is warned of and lost. It does not serve anything; the agent does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from ddp_trainer.config import RunConfig
from ddp_trainer.telemetry.document import MAX_RANKS
from ddp_trainer.telemetry.events import EVENTS_FILE, METRICS_FILE, EventLog
from ddp_trainer.telemetry.facts import FactsPage
from ddp_trainer.telemetry.hardware import bare_uuid
from ddp_trainer.telemetry.jsonl import JsonLines, finite
from ddp_trainer.telemetry.pace import Pace
from ddp_trainer.telemetry.tensorboard import TensorBoard

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 0.2
"""Two agent ticks: what people and probes see is never older, and a rank with 1 ms steps pays for one publication in 200."""
NOTE_CHARS = 200
"""A note is one line on a terminal."""

Phase = Literal["starting", "training", "evaluating", "saving", "finished", "failed"]


class Recorder:
    """One rank's voice. `page` None: nothing is published; `run_dir` None (all ranks but 0): nothing is written."""

    def __init__(
        self,
        *,
        config: RunConfig,
        rank: int,
        local_rank: int,
        world_size: int,
        page: FactsPage | None,
        run_dir: Path | None,
        attempt: int,
        total_steps: int = 0,
        steps_per_epoch: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._page = page
        self._slot = local_rank
        self._attempt = attempt
        self._eval_every_epochs = config.telemetry.eval_every_epochs
        self._global_batch = config.data.global_batch
        self._started = clock()
        self._published = float("-inf")
        self._pace = Pace()
        self._events = EventLog(run_dir / EVENTS_FILE, clock) if run_dir else None
        self._metrics = JsonLines(run_dir / METRICS_FILE) if run_dir else None
        self._tensorboard = TensorBoard(run_dir / "tensorboard") if run_dir and config.telemetry.tensorboard else None
        self._has_stepped = False
        self._phase: Phase = "starting"
        self._facts: dict[str, Any] = {
            "run": config.run.name,
            "rank": rank,
            "local_rank": local_rank,
            "pid": os.getpid(),
            "attempt": attempt,
            "world_size": world_size,
            "started_at": self._started,
            "samples_total": 0,
        }
        self.plan(total_steps, steps_per_epoch)

    def plan(self, total_steps: int, steps_per_epoch: float, step: int = 0) -> None:
        """The length of the run, as soon as it is known (which needs the data; 0 steps: not yet), and the step at which this start is."""
        self._step = step
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._facts.update(total_steps=total_steps, epochs=self._epoch(total_steps))
        self._publish(self._clock())

    def on_gpu(self, uuid: str) -> None:
        """Which GPU is this rank's, as torch or NVML names it (`str(torch.cuda.get_device_properties(device).uuid)`), for its readings."""
        self._facts["gpu_uuid"] = bare_uuid(uuid)
        self._publish(self._clock())

    def phase(self, name: Phase, note: str = "", done: int = 0, total: int = 0) -> None:
        """The rank begins, or is `done` of `total` into, another kind of work; `note` says what in a few words ("decoding images")."""
        now = self._clock()
        changed = name != self._phase or note != self._facts.get("note", "")
        if name != self._phase:
            self._enter(name, now)
        self._facts.update(note=note[:NOTE_CHARS], note_done=done, note_total=total)
        if changed or done >= total > 0 or now - self._published >= PUBLISH_SECONDS:
            self._publish(now)

    def resumed(self, step: int, source: str, lost_steps: int | None = None) -> None:
        """Training goes on from the state of `step`, found in `source`; `lost_steps` were done before and have to be done again.

        Step 0 is the beginning, where a fault met a run that had saved nothing yet: what was written of the lost steps is void then, too.
        """
        self._step = step
        self._facts.update(resumed_step=step, resumed_from=source)
        self._event("resume", step=step, source=source, lost_steps=lost_steps, attempt=self._attempt)
        self._line("resume", step, source=source, lost_steps=lost_steps)
        if self._tensorboard:
            self._tensorboard.purge(step + 1)  # TensorBoard hides this step and later ones of earlier files
        if step:
            logger.info("resumed at step %d from %s", step, source)
        else:
            logger.info("started again from the beginning")
        self._publish(self._clock())

    def step(self, step: int, samples: int, own_seconds: Sequence[float] = (), data_seconds: float = 0.0) -> None:
        """An optimizer step is done, in which this rank had `samples` samples. Call it after every step; it costs microseconds.

        Args:
            step: its number.
            samples: of this rank; 0 for a step that is passed over, whose time is no step's.
            own_seconds: each rank's own part of it, where known, for finding a slow one.
            data_seconds: for how long this rank's host was busy with the samples.
        """
        now = self._clock()
        if self._phase != "training":
            self._enter("training", now)
            self._facts.update(note="", note_done=0, note_total=0)
            self._published = float("-inf")
        if not self._has_stepped:
            self._has_stepped = True
            self._event("first_step", step=step, attempt=self._attempt)
        self._step = step
        facts = self._facts
        if samples:
            self._pace.stepped(now)
            facts["samples"] = samples
        else:
            self._pace.paused(now)
        facts["samples_total"] += samples
        facts["data_seconds_total"] = facts.get("data_seconds_total", 0.0) + data_seconds
        if own_seconds:
            facts["own_seconds"] = [round(seconds, 5) for seconds in own_seconds[:MAX_RANKS]]
        if now - self._published >= PUBLISH_SECONDS:
            self._publish(now)

    def train_metrics(self, step: int, loss: float, accuracy: float | None, lr: float) -> None:
        """The training loss and accuracy (ratio 0-1; None: the task has none) over the last steps, and the learning rate, at `step`."""
        rate = self._run_rate()
        self._facts.update(loss=loss, accuracy=accuracy, lr=lr)
        self._line("train", step, loss=loss, accuracy=accuracy, lr=lr, samples_per_second=rate)
        self._curves(step, {"train/loss": loss, "train/accuracy": accuracy, "train/lr": lr, "train/samples_per_second": rate})
        logger.info(
            "step %d/%d  epoch %.2f  loss %.4f%s  lr %.4g  %s samples/s",
            step,
            self._total_steps,
            self._epoch(step),
            loss,
            "" if accuracy is None else f"  accuracy {accuracy:.1%}",
            lr,
            "?" if rate is None else f"{rate:.0f}",
        )

    def evaluated(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """The test set was evaluated at `step` in `seconds`; `metrics` as the task names them (accuracy as a ratio 0-1)."""
        self._pace.evaluated(seconds)
        self._keep_test(metrics)
        self._line("eval", step, seconds=seconds, **metrics)
        self._event("evaluate", step=step, metrics=metrics, seconds=seconds, attempt=self._attempt)
        self._curves(step, {f"test/{name}": value for name, value in metrics.items()})
        logger.info("step %d evaluated in %.1f s: %s", step, seconds, _readable(metrics))
        self._publish(self._clock())

    def kept(self, step: int, stall_seconds: float, every_steps: int) -> None:
        """The state of `step` is in the node's memory, for which training stood still for `stall_seconds`; so often from there on."""
        facts = self._facts
        facts["snapshot_every_steps"] = every_steps
        facts["snapshot_step"] = step
        facts["snapshot_count_total"] = facts.get("snapshot_count_total", 0) + 1
        facts["snapshot_stall_seconds_total"] = self.stalled_seconds + stall_seconds

    @property
    def stalled_seconds(self) -> float:
        """Training has stood still for snapshots so long since the rank's start, those that stay in memory included."""
        return float(self._facts.get("snapshot_stall_seconds_total", 0.0))

    @property
    def usual_step_seconds(self) -> float | None:
        """What a step takes now, whatever has held up one of them.

        On a GPU the average: the host sees when a step is enqueued, not when it ends, and runs ahead of it until something makes it wait.
        """
        return self._pace.step_seconds if "gpu_uuid" in self._facts else self._pace.usual_step_seconds

    def alarm(self, message: str) -> None:
        """Somebody may have to do something: a sentence in the log and in the diary."""
        logger.warning("%s", message)
        self._event("note", message=message)

    def finished(self, step: int, metrics: dict[str, float]) -> None:
        """The last step is done, and its final `metrics` are these."""
        now = self._clock()
        self._step = step
        self._enter("finished", now)
        self._keep_test(metrics)
        self._facts.update(note="", note_done=0, note_total=0)
        took = {"seconds": now - self._started, "stall_seconds_so_far": round(self.stalled_seconds, 6)}
        self._event("finish", step=step, metrics=metrics, **took, attempt=self._attempt)
        logger.info("finished at step %d: %s", step, _readable(metrics))
        self._publish(now)

    def close(self) -> None:
        """Say the last facts once more and close the files; the page belongs to the agent and stays."""
        self._publish(self._clock())
        for sink in (self._events, self._metrics, self._tensorboard):
            if sink:
                sink.close()

    def _enter(self, name: Phase, now: float) -> None:
        self._phase = name
        self._pace.paused(now)  # the time of evaluations, saves and waits is not step time

    def _epoch(self, step: int) -> float:
        return step / self._steps_per_epoch if self._steps_per_epoch else 0.0

    def _run_rate(self) -> float | None:
        """Samples per second of the whole run: ranks go in lockstep, so one rank's pace is everybody's."""
        return None if self._pace.step_seconds is None else self._global_batch / self._pace.step_seconds

    def _keep_test(self, metrics: dict[str, float]) -> None:
        for ours, names in (("test_accuracy", ("accuracy", "test_accuracy")), ("test_loss", ("loss", "test_loss"))):
            for name in names:
                if name in metrics:
                    self._facts[ours] = metrics[name]

    def _publish(self, now: float) -> None:
        if self._page is None:
            return
        self._published = now
        pace, facts = self._pace, self._facts
        facts["phase"] = self._phase
        facts["step"] = self._step
        facts["epoch"] = self._epoch(self._step)
        facts["samples_per_second"] = None if pace.step_seconds is None else facts.get("samples", 0) / pace.step_seconds
        facts["run_samples_per_second"] = self._run_rate()
        facts["eta_seconds"] = pace.eta_seconds(self._step, self._total_steps, self._eval_every_epochs * self._steps_per_epoch)
        facts["step_seconds"] = pace.step_seconds
        facts["step_histogram"] = pace.histogram()
        facts["updated_at"] = now
        self._page.write(self._slot, finite(facts))

    def _event(self, kind: Literal["resume", "first_step", "evaluate", "note", "finish"], **fields: Any) -> None:
        if self._events:
            self._events.append(kind, **fields)

    def _line(self, kind: str, step: int, **fields: Any) -> None:
        if self._metrics:
            head = {"kind": kind, "step": step, "epoch": self._epoch(step), "time": round(self._clock(), 3), "attempt": self._attempt}
            self._metrics.append({**head, **fields})

    def _curves(self, step: int, values: dict[str, float | None]) -> None:
        if self._tensorboard:
            self._tensorboard.scalars(step, {name: value for name, value in values.items() if value is not None}, self._clock())


def _readable(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
