"""The training loop: step, evaluate, keep the state. It knows steps, not files, pods or signals.

Side work (telemetry, checkpoints) is one call that decides for itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ddp_trainer.engine.divergence import diverged
from ddp_trainer.engine.evaluation import evaluate
from ddp_trainer.engine.schedule import evaluation_is_due, learning_rate
from ddp_trainer.engine.step import one_step, timer_on
from ddp_trainer.engine.training import Training
from ddp_trainer.exchange.piggyback import Words


@dataclass(frozen=True)
class Hooks:
    """What the loop asks and tells the outside; each call decides for itself whether anything is to be done."""

    wish: Callable[[int], Words]
    """(step): what this rank has to say to the others with the step that comes, which will be `step`."""
    stepped: Callable[[int, int, tuple[float, ...]], None]
    """(step, samples of all ranks, own seconds of each rank if known) after every step; 0 samples where it was passed over."""
    measured: Callable[[int, float, float | None, float], None]
    """(step, loss, accuracy if the task has one, lr) every `telemetry.log_every_steps`."""
    evaluating: Callable[[], None]
    """An evaluation begins, or is a batch further."""
    evaluated: Callable[[int, dict[str, float]], None]
    keep: Callable[[int, float], None]
    """(step, seconds): the state after `step` is complete, the same on all ranks, and shall be kept. Making it the same took so long."""
    secure: Callable[[int], None]
    """(step): it is complete but for the evaluation that begins now, which may take longer than a node that is told to stop has left."""


class LeavingError(Exception):
    """Some rank asked all of them to leave: the state has been kept, and training ends here for now."""


def train(run: Training, hooks: Hooks) -> dict[str, float]:
    """Run from `run.step` to the end; returns the last evaluation's metrics.

    Raises:
        DivergedError: the loss is not finite. The parameters are those before the bad step.
        LeavingError: asked to leave, by any rank; all ranks raise it after the same step.
    """
    every, timer = run.config.telemetry.log_every_steps, timer_on(run.group.device)
    if run.step > run.evaluated_step and evaluation_is_due(run.config, run.step, run.total_steps, run.steps_per_epoch):
        _evaluate(run, hooks)  # the ranks before were asked to leave right before it
    while run.step < run.total_steps:
        lr = learning_rate(run.config, run.step, run.total_steps)
        wish = hooks.wish(run.step + 1)
        is_skipped = any(first <= run.step < end for first, end in run.skipped)
        run.data_seconds = 0.0
        heard = Words() if is_skipped else one_step(run, lr, wish, timer)
        run.step += 1
        hooks.stepped(run.step, 0 if is_skipped else run.config.data.global_batch, heard.own_seconds)
        is_last = run.step == run.total_steps
        if (run.step % every == 0 or is_last) and not is_skipped:
            loss, accuracy = _take_means(run)
            hooks.measured(run.step, loss, accuracy, lr)
        if heard.leave and not is_last:
            _keep(run, hooks)
            # nobody leaves before all have kept it: the first to end makes the agents stop the others. The sum is read, since on a GPU
            # the collective has only been enqueued when the call returns
            run.group.sum(torch.zeros(1, device=run.group.device)).item()
            raise LeavingError
        if evaluation_is_due(run.config, run.step, run.total_steps, run.steps_per_epoch):
            _evaluate(run, hooks)
        if heard.keep or is_last:
            _keep(run, hooks)
    return run.metrics


def _evaluate(run: Training, hooks: Hooks) -> None:
    _catch_up(run)
    run.group.share_buffers(run.model)
    hooks.secure(run.step)  # who goes on from it begins with the evaluation
    hooks.evaluating()
    run.metrics, run.evaluated_step = evaluate(run, hooks.evaluating), run.step
    hooks.evaluated(run.step, run.metrics)


def _keep(run: Training, hooks: Hooks) -> None:
    _catch_up(run)
    started = time.perf_counter()
    run.group.share_buffers(run.model)  # parameters agree anyway; norm statistics are rank 0's
    hooks.keep(run.step, time.perf_counter() - started)


def _catch_up(run: Training) -> None:
    """Wait for the steps that a GPU has only been given: it is training for which the host waits, and no stall of the copy that follows."""
    if run.group.device.type == "cuda":
        torch.cuda.current_stream(run.group.device).synchronize()


def _take_means(run: Training) -> tuple[float, float | None]:
    loss, accuracy, bad_steps, samples = run.group.sum(run.sums).tolist()  # the one device sync of an interval
    run.sums.zero_()
    if bad_steps or not math.isfinite(loss):
        window = (max(0, run.step - run.config.telemetry.log_every_steps), run.step)
        raise diverged(run.config, f"at or before step {run.step}", window)
    return loss / samples, None if math.isnan(accuracy) else accuracy / samples
