"""The training loop: step, evaluate, keep the state. It knows steps, not files, pods or signals.

Per step, every rank computes its share of the micro-batches of one global batch; the last backward all-reduces the gradients. The
result is a function of the configuration alone: whatever the world size, the same samples meet the same parameters in the same
micro-batches. Side work (telemetry, checkpoints) is one call that decides for itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ddp_trainer.config import RunConfig
from ddp_trainer.data.order import evaluation_slice, global_batch, micro_batch, micro_batches_of
from ddp_trainer.distributed import Group
from ddp_trainer.errors import ConfigError, DivergedError
from ddp_trainer.piggyback import Piggyback, Words
from ddp_trainer.tasks.protocol import Dataset, Task

_log = logging.getLogger(__name__)

_SEED_STRIDE = 1_000_003
"""Separates the seeds of neighbouring steps; any number larger than the micro-batches of a step does."""
_SLACK = 1e-9
"""What a quotient of steps and samples may be off by, so that 0.1 x 50,000 / 50 is 100 and a third of an epoch ends three times in it."""
WARM_UP_SAMPLES = 2
"""Samples of the throw-away backward: the fewest with which a norm layer over 1 x 1 pixels has a variance."""


@dataclass
class Training:
    """Everything that a step touches. Built by `build`, advanced by `train`."""

    config: RunConfig
    task: Task
    group: Group
    model: nn.Module
    """The bare model; `ranks_model` is the same, wrapped for gradient averaging."""
    ranks_model: nn.Module
    optimizer: Optimizer
    ema: dict[str, Tensor]
    train_set: Dataset
    test_set: Dataset
    dtype: torch.dtype
    micro_batches: int
    total_steps: int
    step: int = 0
    predictions: list[Tensor] = field(default_factory=list)
    """float32 [n, 3] per batch of the last evaluation: target, predicted class, confidence. Empty if the task has no classes."""
    sums: Tensor = field(init=False)
    """float64 [4] on the device, since the last report: loss and accuracy summed over this rank's samples, steps that were not finite,
    and the number of samples."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation, which was after `evaluated_step`."""
    evaluated_step: int = 0
    skipped: Sequence[tuple[int, int]] = ()
    """Windows of 0-based steps that are passed over, because the loss was not finite there: (first, one after the last)."""
    words: Piggyback | None = None
    """What ranks tell each other; None where there is one rank. Set by `begin`."""
    own_seconds: float = 0.0
    """This rank's own part of the last step: data and forward passes, without waiting for others."""
    probes: list[Tensor] = field(init=False)
    """Parameters whose gradients are looked at in every step: see `_finite_gradients`."""

    def __post_init__(self) -> None:
        """Sums start at zero."""
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.group.device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.probes = [p for i, p in enumerate(trained) if p.ndim <= 1 or i in {0, len(trained) - 1}]

    @property
    def steps_per_epoch(self) -> float:
        """Not whole in general: a global batch may straddle two epochs, so that every sample is used exactly once in each."""
        return len(self.train_set) / self.config.data.global_batch

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The mixed precision of forward passes."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.group.device.type, dtype=self.dtype)

    @property
    def evaluated_parameters(self) -> contextlib.AbstractContextManager[object]:
        """Swaps the average in for evaluation, where one is kept."""
        return _swapped(dict(self.model.named_parameters()), self.ema) if self.ema else contextlib.nullcontext()


@dataclass(frozen=True)
class Hooks:
    """What the loop asks and tells the outside; each call decides for itself whether anything is to be done."""

    wish: Callable[[int], Words]
    """(step): what this rank has to say to the others with the step that comes, which will be `step`."""
    stepped: Callable[[int, int, tuple[float, ...]], None]
    """(step, samples of all ranks, own seconds of each rank if known) after every step."""
    measured: Callable[[int, float, float, float], None]
    """(step, loss, accuracy, lr) every `telemetry.log_every_steps`."""
    evaluating: Callable[[], None]
    """An evaluation begins, or is a batch further."""
    evaluated: Callable[[int, dict[str, float]], None]
    keep: Callable[[int], None]
    """(step): the state after `step` is complete, the same on all ranks, and shall be kept."""
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
    every = run.config.telemetry.log_every_steps
    if run.step > run.evaluated_step and evaluation_is_due(run.config, run.step, run.total_steps, run.steps_per_epoch):
        _evaluate(run, hooks)  # the ranks before were asked to leave right before it
    while run.step < run.total_steps:
        lr = learning_rate(run.config, run.step, run.total_steps)
        wish = hooks.wish(run.step + 1)
        is_skipped = any(first <= run.step < end for first, end in run.skipped)
        heard = Words() if is_skipped else one_step(run, lr, wish)
        run.step += 1
        hooks.stepped(run.step, run.config.data.global_batch, heard.own_seconds)
        is_last = run.step == run.total_steps
        if (run.step % every == 0 or is_last) and not is_skipped:
            loss, accuracy = _take_means(run)
            hooks.measured(run.step, loss, accuracy, lr)
        if heard.leave and not is_last:
            _keep(run, hooks)
            # nobody leaves before all have kept it: the first to end makes the agents stop the others
            run.group.sum(torch.zeros(1, device=run.group.device))
            raise LeavingError
        if evaluation_is_due(run.config, run.step, run.total_steps, run.steps_per_epoch):
            _evaluate(run, hooks)
        if heard.keep or is_last:
            _keep(run, hooks)
    return run.metrics


def _evaluate(run: Training, hooks: Hooks) -> None:
    run.group.share_buffers(run.model)
    hooks.secure(run.step)  # who goes on from it begins with the evaluation
    hooks.evaluating()
    run.metrics, run.evaluated_step = evaluate(run, hooks.evaluating), run.step
    hooks.evaluated(run.step, run.metrics)


def _keep(run: Training, hooks: Hooks) -> None:
    run.group.share_buffers(run.model)  # parameters agree anyway; norm statistics are rank 0's
    hooks.keep(run.step)


def one_step(run: Training, lr: float, wish: Words | None = None) -> Words:
    """Forward and backward of this rank's micro-batches, gradients averaged in the last backward, one optimizer step.

    Returns:
        What all ranks wish; `wish` is this one's.
    """
    wish = replace(wish or Words(), own_seconds=(run.own_seconds,))
    started = time.perf_counter()
    seed, batch = run.config.run.seed, run.config.data.global_batch
    indices, epochs = global_batch(seed, len(run.train_set), batch, run.step)
    mine = micro_batches_of(run.group.rank, run.group.world_size, run.micro_batches)
    share = run.group.world_size / run.micro_batches
    finite = True
    run.ranks_model.train()
    for number in mine:
        part = micro_batch(number, run.micro_batches, batch)
        _seed_generators((seed * _SEED_STRIDE + run.step) * _SEED_STRIDE + number)
        inputs, targets = run.train_set.batch(indices[part], epochs[part])
        is_last = number == mine[-1]
        with contextlib.nullcontext() if is_last else _no_sync(run.ranks_model):
            loss, outputs = _forward(run, inputs, targets)
            if is_last:
                run.own_seconds = time.perf_counter() - started
            _backward(run, loss * share, wish if is_last else None)
        counted = run.task.metrics(outputs.detach(), targets)
        accuracy = counted.get("accuracy")
        run.sums[0] += loss.detach() * len(targets)
        if accuracy is not None:
            run.sums[1] += accuracy
        run.sums[3] += len(targets)
        if run.group.device.type == "cpu":
            finite = finite and math.isfinite(loss.item())
    heard = run.words.heard() if run.words else wish
    _step_if_finite(run, lr, finite=finite)
    return heard


def _seed_generators(key: int) -> None:
    """Whatever a user's code draws (dropout, its own noise) is a function of seed, step and place in the global batch: nothing to save."""
    torch.manual_seed(key % 2**64)
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002  # the global generator is what other people's code uses


def _forward(run: Training, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    with run.autocast():
        outputs = run.ranks_model(inputs)
        return run.task.loss(outputs, targets), outputs


def _backward(run: Training, loss: Tensor, wish: Words | None) -> None:
    """`wish` is said where gradients are averaged; None where they are only added up."""
    (run.words.say(loss, wish) if run.words and wish else loss).backward()


def _no_sync(ranks_model: nn.Module) -> contextlib.AbstractContextManager[object]:
    no_sync = getattr(ranks_model, "no_sync", None)
    return no_sync() if no_sync else contextlib.nullcontext()


def _step_if_finite(run: Training, lr: float, *, finite: bool) -> None:
    """Step, unless the loss or the averaged gradient is not finite anywhere: the average carries one rank's NaN to all of them."""
    good = _finite_gradients(run)
    if run.group.device.type == "cpu":
        if not (finite and bool(good)):
            raise DivergedError(
                f"the loss or its gradient is not finite at step {run.step + 1} on rank {run.group.rank}; "
                f"lower optim.lr (now {run.config.optim.lr}) or lengthen optim.warmup_ratio; the last checkpoint is good",
                window=(run.step, run.step + 1),
            )
    else:
        # no device sync here: the fused kernel skips the update while found_inf is set, and `assert_finite` raises at the next report
        bad = (~good).float()
        found = getattr(run.optimizer, "found_inf", None)
        run.optimizer.found_inf = bad if found is None else torch.maximum(found, bad)  # type: ignore[attr-defined]  # torch's fused kernels read it
        run.sums[2] += bad.squeeze()
    for settings in run.optimizer.param_groups:
        settings["lr"] = lr
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema:
        _average(run)


def _finite_gradients(run: Training) -> Tensor:
    """Whether all gradients are finite: bool [] on the device.

    Looked at are those of the first and the last parameter and of every norm and bias: whatever is not finite in a backward pass reaches
    the layers before it, and so one of these. All 24 million of a ResNet-50's would cost a twentieth of a step.
    """
    gradients = [p.grad for p in run.probes if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).isfinite().all()  # noqa: SLF001  # public in spirit: torch.nn.utils' clipping


def evaluate(run: Training, beat: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Metrics over the whole test set, every sample counted once, with rank 0's norm statistics. `beat` is called for each batch."""
    run.group.share_buffers(run.model)
    sums: dict[str, Tensor] = {}
    run.predictions.clear()
    with run.evaluated_parameters:
        for outputs, targets in _forward_test_set(run):
            beat()
            if run.task.classes:
                confidence, predicted = outputs.softmax(-1).max(-1)
                run.predictions.append(torch.stack([targets.float(), predicted.float(), confidence], dim=1))
            for name, value in run.task.metrics(outputs, targets).items():
                sums[name] = sums.get(name, value.new_zeros((), dtype=torch.float64)) + value.double()
    names = sorted(run.group.share_json(sorted(sums)))  # a rank without samples of its own has no names
    totals = torch.stack([sums.get(name, torch.zeros((), dtype=torch.float64, device=run.group.device)) for name in names])
    return dict(zip(names, (run.group.sum(totals) / len(run.test_set)).tolist(), strict=True))


def _forward_test_set(run: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """(outputs, targets) per batch of this rank's part of the test set, in order."""
    mine = evaluation_slice(run.group.rank, run.group.world_size, len(run.test_set))
    run.model.eval()
    with torch.inference_mode(), run.autocast():
        for start in range(mine.start, mine.stop, run.config.data.eval_batch):
            indices = torch.arange(start, min(start + run.config.data.eval_batch, mine.stop))
            inputs, targets = run.test_set.batch(indices, None)
            yield run.model(inputs).float(), targets


def learning_rate(config: RunConfig, step: int, total_steps: int) -> float:
    """The rate for the step after `step` done ones: linear warm-up, then a cosine to `final_lr_ratio`."""
    optim = config.optim
    warmup_steps = math.floor(optim.warmup_ratio * total_steps)
    if step < warmup_steps:
        return optim.lr * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    floor = optim.final_lr_ratio
    return optim.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def evaluation_is_due(config: RunConfig, step: int, total_steps: int, steps_per_epoch: float) -> bool:
    """Whether `step` completed an evaluation interval, or the run."""
    interval = config.telemetry.eval_every_epochs * steps_per_epoch
    return step == total_steps or math.floor(step / interval + _SLACK) > math.floor((step - 1) / interval + _SLACK)


def count_steps(config: RunConfig, samples: int) -> int:
    """Optimizer steps of the whole run: the last global batch is filled up from the order of the epoch after the last."""
    steps = max(1, math.ceil(config.optim.epochs * samples / config.data.global_batch - _SLACK))
    return min(steps, config.optim.max_steps or steps)


def build(config: RunConfig, task: Task, group: Group, train_set: Dataset, test_set: Dataset, micro_batches: int) -> Training:
    """Model, optimizer and wrapping for one rank, at step 0. `begin` must be called once the state is what it should be.

    Raises:
        ConfigError: compilation or bf16 was asked for and is not to be had.
    """
    torch.manual_seed(config.run.seed)
    layout = torch.channels_last if config.precision.channels_last else torch.contiguous_format
    model = task.build_model().to(group.device)
    model = model.to(memory_format=layout)
    if compiles(config, group.device):
        model.compile()
    if group.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return Training(
        config=config,
        task=task,
        group=group,
        model=model,
        ranks_model=model,
        optimizer=build_optimizer(config, model),
        ema={n: p.detach().clone() for n, p in model.named_parameters()} if config.optim.ema_decay else {},
        train_set=train_set.to(group.device),
        test_set=test_set.to(group.device),
        dtype=choose_dtype(config, group.device),
        micro_batches=micro_batches,
        total_steps=count_steps(config, len(train_set)),
    )


def build_optimizer(config: RunConfig, model: nn.Module) -> Optimizer:
    """The configured optimizer, fused; weights of two or more dimensions decay, norms and biases do not."""
    optim, trained = config.optim, [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if optim.name == "adamw":
        return AdamW(groups, lr=optim.lr, betas=(optim.momentum, optim.beta2), fused=True)
    return SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)


def begin(run: Training) -> None:
    """Wrap the model, which is the same on all ranks, and run one throw-away backward, leaving the state as it was.

    DDP orders its buckets anew after the first backward, which changes the order of summation. Without this, a resumed run would
    differ in the last bits from the undisturbed one, at more than two ranks.
    """
    if run.group.world_size == 1:
        return
    run.words = Piggyback(run.model, run.group.rank, run.group.world_size, run.group.device)
    run.ranks_model = run.group.wrap(run.words)
    size = run.config.data.global_batch // run.micro_batches
    size = size if run.config.precision.compile != "off" else min(size, WARM_UP_SAMPLES)  # another shape would compile again
    buffers = [buffer.clone() for buffer in run.model.buffers()]
    indices = torch.arange(size) % len(run.train_set)
    run.ranks_model.train()
    inputs, targets = run.train_set.batch(indices, torch.zeros_like(indices))
    loss, _ = _forward(run, inputs, targets)
    _backward(run, loss, Words())
    run.ranks_model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, saved in zip(run.model.buffers(), buffers, strict=True):
            buffer.copy_(saved)


def choose_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """bf16 where asked for, or where `auto` finds it in the hardware.

    Raises:
        ConfigError: bf16 asked for, and torch cannot do it on this device.
    """
    if config.precision.dtype == "fp32":
        return torch.float32
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  # the only way to ask
    if config.precision.dtype == "bf16" and not has:
        raise ConfigError(f"precision.dtype is bf16 but this {device.type} has no bf16 arithmetic; use precision.dtype=auto or fp32")
    return torch.bfloat16 if has else torch.float32


def compiles(config: RunConfig, device: torch.device) -> bool:
    """Whether the model is compiled; `auto` declines with a sentence where there is no compiler.

    Raises:
        ConfigError: `on`, and there is none.
    """
    if config.precision.compile == "off":
        return False
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if device.type == "cuda":
        found = "triton" if torch.utils._triton.has_triton() else None  # noqa: SLF001  # inductor's own test
    if found:
        return True
    sentence = f"torch.compile needs {'triton' if device.type == 'cuda' else 'a C++ compiler (g++ or clang++)'} and none is installed"
    if config.precision.compile == "on":
        raise ConfigError(f"{sentence}; install one, or use precision.compile=off")
    _log.warning("precision.compile=auto: %s, so the model runs eagerly", sentence)
    return False


def _take_means(run: Training) -> tuple[float, float]:
    loss, accuracy, bad_steps, samples = run.group.sum(run.sums).tolist()  # the one device sync of an interval
    run.sums.zero_()
    if bad_steps or not math.isfinite(loss):
        raise DivergedError(
            f"the loss or its gradient is not finite at or before step {run.step}; lower optim.lr (now {run.config.optim.lr}) "
            f"or lengthen optim.warmup_ratio; the last checkpoint is good",
            window=(max(0, run.step - run.config.telemetry.log_every_steps), run.step),
        )
    return loss / samples, accuracy / samples


def _average(run: Training) -> None:
    decay = run.config.optim.ema_decay or 0.0
    live = dict(run.model.named_parameters())
    with torch.no_grad():
        torch._foreach_lerp_(list(run.ema.values()), [live[n].detach() for n in run.ema], 1 - decay)  # public in spirit: torch.optim's


@contextlib.contextmanager
def _swapped(live: dict[str, nn.Parameter], other: dict[str, Tensor]) -> Iterator[None]:
    """The live parameters hold the other values inside the block."""
    kept = {name: p.detach().clone() for name, p in live.items()}
    with torch.no_grad():
        for name, p in live.items():
            p.copy_(other[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in live.items():
                p.copy_(kept[name])
