"""A real training small enough for a unit test: one rank, no process group, points in a plane as samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddp_trainer import engine
from ddp_trainer.config import RunConfig
from ddp_trainer.distributed import Group, Place
from ddp_trainer.exchange.piggyback import Words

ALONE = Place(rank=0, world_size=1, local_rank=0, ranks_on_machine=1, store_host="", store_port=0, store_prefix="")


class Points:
    """Points left and right of the axis. Remembers which samples were asked for."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(count, 2, generator=generator)
        self.targets = (self.inputs[:, 0] > 0).long()
        self.asked: list[list[tuple[int, int | None]]] = []

    fingerprint = "points"

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, _device: torch.device) -> Points:
        return self

    def batch(self, indices: Tensor, epochs: Tensor | None) -> tuple[Tensor, Tensor]:
        self.asked.append(list(zip(indices.tolist(), [None] * len(indices) if epochs is None else epochs.tolist(), strict=True)))
        return self.inputs[indices], self.targets[indices]

    def picture(self, _index: int) -> None:
        return None


class PointsTask:
    """Which side a point is on."""

    classes = ("left", "right")

    def __init__(self) -> None:
        self.train_set, self.test_set = Points(40, seed=1), Points(25, seed=2)

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    def datasets(self, _report: Any) -> tuple[Points, Points]:
        return self.train_set, self.test_set

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {
            "accuracy": (outputs.argmax(-1) == targets).sum(),
            "loss": nn.functional.cross_entropy(outputs, targets, reduction="sum"),
        }


def config(**values: Any) -> RunConfig:
    """Eight samples a step, fp32 on the CPU; `values` as `section__key`."""
    given = {
        "distributed.device": "cpu",
        "data.global_batch": 8,
        "precision.dtype": "fp32",
        "optim.epochs": 2,
        "telemetry.log_every_steps": 1,
    }
    return RunConfig().with_values(given | {key.replace("__", "."): value for key, value in values.items()})


def training(task: PointsTask | None = None, group: Group | None = None, **values: Any) -> engine.Training:
    """Built and begun, at step 0; one rank unless a group is given."""
    task, made = task or PointsTask(), config(**values)
    group = group or Group(ALONE, torch.device("cpu"), "gloo")
    run = engine.build(made, task, group, task.train_set, task.test_set, made.micro_batches)
    engine.begin(run)
    return run


class Diary:
    """Everything the loop tells the outside, in order."""

    def __init__(self, wish: Any = lambda _step: Words(keep=True)) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self.wish = wish

    def hooks(self) -> engine.Hooks:
        def write(kind: str) -> Any:
            return lambda *words: self.entries.append((kind, *words))

        return engine.Hooks(
            stepped=write("stepped"),
            measured=write("measured"),
            evaluating=write("evaluating"),
            evaluated=write("evaluated"),
            keep=lambda step, _seconds: self.entries.append(("keep", step)),
            secure=write("secure"),
            wish=self.wish,
        )

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [entry[1:] for entry in self.entries if entry[0] == kind]


def parameters(run: engine.Training) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}
