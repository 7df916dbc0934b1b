"""One optimizer step: this rank's micro-batches of the global batch, forward and backward, and the update.

The last backward all-reduces the gradients, and carries what ranks tell each other. The result is a function of the configuration alone:
whatever the world size, the same samples meet the same parameters in the same micro-batches.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddp_trainer.data.order import global_batch, micro_batch, micro_batches_of
from ddp_trainer.engine.average import follow
from ddp_trainer.engine.divergence import diverged, finite_gradients
from ddp_trainer.engine.randomness import seed_generators
from ddp_trainer.engine.training import Training
from ddp_trainer.exchange.piggyback import Words


class HostTimer:
    """Times a rank's own part of each step: data and forward passes. By the host's clock, where the host computes."""

    def start(self) -> None:
        """The step begins."""
        self._started = time.perf_counter()

    def stop(self) -> float:
        """The last forward pass is done; returns the seconds since `start`."""
        return time.perf_counter() - self._started


class DeviceTimer(HostTimer):
    """The same by the GPU's clock: the host only enqueues the work, and its clock would show how long that takes.

    Events are read when the GPU has passed them, a step or more later, and never waited for.
    """

    def __init__(self, new_event: Callable[[], Any]) -> None:
        self._new_event = new_event
        self._open: deque[tuple[Any, Any]] = deque()
        self._seconds = 0.0

    def start(self) -> None:
        """The step begins, once the GPU gets there: after the update before it, and so after the exchange with the others."""
        self._start = self._new_event()
        self._start.record()

    def stop(self) -> float:
        """The last forward pass is enqueued; returns the seconds of the newest step that the GPU is known to have done, 0 before any."""
        end = self._new_event()
        end.record()
        self._open.append((self._start, end))
        while self._open and self._open[0][1].query():
            begun, ended = self._open.popleft()
            self._seconds = begun.elapsed_time(ended) / 1000.0  # from ms
        return self._seconds


def timer_on(device: torch.device) -> HostTimer:
    """The timer for what is computed there."""
    return DeviceTimer(partial(torch.cuda.Event, enable_timing=True)) if device.type == "cuda" else HostTimer()


def one_step(run: Training, lr: float, wish: Words | None = None, timer: HostTimer | None = None) -> Words:
    """Forward and backward of this rank's micro-batches, gradients summed over ranks in the last backward, one optimizer step.

    Args:
        run: is advanced, but for its step number.
        lr: of this step.
        wish: what this rank has to say.
        timer: the one of the steps before; a new one knows nothing yet on a GPU.

    Returns:
        What all ranks wish; `wish` is this one's.
    """
    wish = replace(wish or Words(), own_seconds=(run.own_seconds,))
    timer = timer or timer_on(run.group.device)
    timer.start()
    seed, batch = run.config.run.seed, run.config.data.global_batch
    indices, epochs = global_batch(seed, len(run.train_set), batch, run.step)
    mine = micro_batches_of(run.group.rank, run.group.world_size, run.micro_batches)
    finite = True
    run.ranks_model.train()
    for number in mine:
        part = micro_batch(number, run.micro_batches, batch)
        seed_generators(seed, run.step, number)
        asked_at = time.perf_counter()
        inputs, targets = run.train_set.batch(indices[part], epochs[part])
        run.data_seconds += time.perf_counter() - asked_at
        is_last = number == mine[-1]
        with contextlib.nullcontext() if is_last else _no_sync(run.ranks_model):
            loss, outputs = forward(run, inputs, targets)
            if is_last:
                run.own_seconds = timer.stop()
            backward(run, loss / run.micro_batches, wish if is_last else None)
        counted = run.task.metrics(outputs.detach(), targets)
        accuracy = counted.get("accuracy")
        run.sums[0] += loss.detach() * len(targets)
        run.sums[1] += math.nan if accuracy is None else accuracy
        run.sums[3] += len(targets)
        if run.group.device.type == "cpu":
            finite = finite and math.isfinite(loss.item())
    heard = run.words.heard() if run.words else wish
    _step_if_finite(run, lr, finite=finite)
    return heard


def forward(run: Training, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, outputs) of one micro-batch, in the run's precision."""
    with run.autocast():
        outputs = run.ranks_model(inputs)
        return run.task.loss(outputs, targets), outputs


def backward(run: Training, loss: Tensor, wish: Words | None) -> None:
    """`wish` is said where gradients are summed over ranks; None where this rank only adds up its own."""
    (run.words.say(loss, wish) if run.words and wish else loss).backward()


def _no_sync(ranks_model: nn.Module) -> contextlib.AbstractContextManager[object]:
    no_sync = getattr(ranks_model, "no_sync", None)
    return no_sync() if no_sync else contextlib.nullcontext()


def _step_if_finite(run: Training, lr: float, *, finite: bool) -> None:
    """Step, unless the loss or the summed gradient is not finite anywhere: the sum carries one rank's NaN to all of them."""
    good = finite_gradients(run.probes)
    if run.group.device.type == "cpu":
        if not (finite and bool(good)):
            raise diverged(run.config, f"at step {run.step + 1} on rank {run.group.rank}", window=(run.step, run.step + 1))
    else:
        # no device sync here: the fused kernel skips the update while found_inf is set, and the loop raises at the next report
        bad = (~good).float()
        found = getattr(run.optimizer, "found_inf", None)
        run.optimizer.found_inf = bad if found is None else torch.maximum(found, bad)  # type: ignore[attr-defined]  # torch's fused kernels read it
        run.sums[2] += bad.squeeze()
    for settings in run.optimizer.param_groups:
        settings["lr"] = lr
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema:
        follow(run.ema, run.model, run.config.optim.ema_decay or 0.0)
