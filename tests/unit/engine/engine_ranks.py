"""What each rank of a gang does in the tests of words that ride on gradients, and of shared micro-batches."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

import torch
import torch.distributed as dist
from small_training import Diary, PointsTask, config, training
from torch import Tensor, nn

from ddp_trainer import engine
from ddp_trainer.distributed import Group
from ddp_trainer.exchange.gradient_sum import GradientSum
from ddp_trainer.exchange.piggyback import Piggyback, Words

MICRO_BATCHES = 3


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 50), nn.BatchNorm1d(50), nn.Linear(50, 7))


def _inputs(rank: int, step: int) -> Tensor:
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(100 * rank + step))


def _digest(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def hear(group: Group, said: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What this rank hears in each step; `said` is, per step, what each rank (by its number as text) says."""
    words = Piggyback(_model(), group.rank, group.world_size, group.device)
    wrapped, heard = group.wrap(words, GradientSum()), []
    for step, by_rank in enumerate(said):
        words.say(wrapped(_inputs(group.rank, step)).square().mean(), Words(**by_rank.get(str(group.rank), {}))).backward()
        heard.append(asdict(words.heard()))
    return heard


def gradients(group: Group, kind: str) -> list[dict[str, Any]]:
    """Digests of the summed gradients of some steps, with words and without, and what was heard.

    `kind`: "real", "accumulated" (several backward passes a step), or "whole" (whole numbers, whose sum is exact in any order).
    """
    plain = _model() if kind != "whole" else nn.Linear(20, 50)
    words = Piggyback(copy.deepcopy(plain), group.rank, group.world_size, group.device)
    wrapped = (group.wrap(plain, GradientSum()), group.wrap(words, GradientSum()))
    parts = MICRO_BATCHES if kind == "accumulated" else 1
    found = []
    for step in range(4):
        for part in range(parts):
            inputs = _inputs(group.rank, 10 * step + part)
            inputs = (inputs * 10).round() if kind == "whole" else inputs
            with contextlib.ExitStack() as unsynchronised:
                for module in wrapped if part < parts - 1 else ():
                    unsynchronised.enter_context(module.no_sync())
                losses = [module(inputs).sum() if kind == "whole" else module(inputs).square().mean() for module in wrapped]
                losses[0].backward()
                said = Words(keep=True, own_seconds=(0.5 + group.rank,))
                (losses[1] if part < parts - 1 else words.say(losses[1], said)).backward()
        without, with_words = ([p.grad for p in model.parameters()] for model in (plain, words.model))
        found.append({"without": _digest(without), "with": _digest(with_words), "heard": asdict(words.heard())})
        plain.zero_grad(set_to_none=True)
        words.model.zero_grad(set_to_none=True)
    return found


def everything(group: Group, said: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """All of the above, since a gang takes seconds to start."""
    return {"heard": hear(group, said)} | {kind: gradients(group, kind) for kind in ("real", "accumulated", "whole")}


def shared_training(group: Group, steps: int) -> dict[str, Any]:
    """Parameters and losses of a training of 4 micro-batches, after some steps."""
    torch.manual_seed(group.rank)  # nothing may depend on where a process is in its random numbers
    run, diary = training(PointsTask(), group, data__micro_batches=4, optim__max_steps=steps, optim__warmup_ratio=0.0), Diary()
    metrics = engine.train(run, diary.hooks())
    return {
        "parameters": {name: p.tolist() for name, p in run.model.named_parameters()},
        "asked": [[index for index, _ in batch] for batch in run.train_set.asked[int(group.world_size > 1) :]],
        "losses": [loss for _, loss, _, _ in diary.of("measured")],
        "metrics": metrics,
        "own_seconds": [list(own) for _, _, own in diary.of("stepped")],
    }


class _Branches(nn.Module):
    """Used in another order than defined, with a layer on the way that does not learn; 1.6 MB a layer, so that DDP has several buckets."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.fixed, self.first, self.middle = nn.Linear(640, 2), nn.Linear(640, 640), nn.Linear(2, 640), nn.Linear(640, 640)
        self.beside = nn.Linear(640, 640)
        self.fixed.requires_grad_(requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.fixed(self.first(inputs).relu())
        return cast("Tensor", self.last(self.beside(hidden) + self.middle(hidden).relu()))


class _BranchesTask(PointsTask):
    def build_model(self) -> nn.Module:
        return _Branches()


@contextlib.contextmanager
def _exchanges() -> Iterator[list[int]]:
    """A list that grows with every tensor that is summed over the ranks."""
    real, seen = dist.all_reduce, []

    def noted(tensor: Tensor, **options: Any) -> Any:
        seen.append(tensor.numel())
        return real(tensor, **options)

    dist.all_reduce = noted
    try:
        yield seen
    finally:
        dist.all_reduce = real


def begun_thrice(group: Group) -> list[dict[str, Any]]:
    """Begun with a real pass, rehearsed, and rehearsed badly: the order in which gradients arrived, batches and buckets that `begin` took
    for it, and the parameters after two steps.
    """
    wrap = group.wrap

    def wrap_as_for_a_gpu(model: nn.Module, exchange: GradientSum) -> nn.Module:
        wrapped = wrap(model, exchange)
        wrapped.device_ids, wrapped.device_type = [0], "cpu"  # so that DDP moves the inputs, as it does only where there is a GPU
        return wrapped

    group.wrap = wrap_as_for_a_gpu  # type: ignore[method-assign]
    seen: list[dict[str, Any]] = []
    for order in ((), "as seen", "reversed"):
        task, made = _BranchesTask(), config(data__micro_batches=4)
        run = engine.build(made, task, group, task.train_set, task.test_set, made.micro_batches)
        run.gradient_order = order and seen[0]["order"][:: 1 if order == "as seen" else -1]
        asked = len(task.train_set.asked)
        with _exchanges() as exchanged:
            engine.begin(run)
        passes = len(task.train_set.asked) - asked
        for _ in range(2):
            engine.one_step(run, lr=0.1)
            run.step += 1
        seen.append(
            {
                "order": list(run.gradient_order),
                "passes": passes,
                "exchanged": len(exchanged),
                "parameters": _digest(list(run.model.parameters())),
            }
        )
    return seen


def leave_together(group: Group, rank: int, step: int) -> dict[str, Any]:
    """`rank` asks to leave in `step`; which steps this one stepped and kept, and where it left."""
    run = training(PointsTask(), group, data__micro_batches=4)
    diary = Diary(lambda coming: Words(leave=group.rank == rank and coming == step))
    try:
        engine.train(run, diary.hooks())
    except engine.LeavingError:
        return {"left": run.step, "kept": diary.of("keep"), "stepped": [entry[0] for entry in diary.of("stepped")]}
    return {"left": None}


def sharing(group: Group, steps: int, leave_at: int) -> dict[str, Any]:
    """Both, since a gang takes seconds to start: the last rank is the one that asks to leave."""
    return shared_training(group, steps) | {"leaving": leave_together(group, group.world_size - 1, leave_at)}
