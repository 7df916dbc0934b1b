"""The suite's task: real images, a network of two layers, steps of a known length, and faults of its own at a known step.

The plan stands in $CHAOS (JSON), all of it optional:
    step_seconds           how long the forward pass of a micro-batch takes at least
    slow                   [step, factor]: from this step on it takes `factor` times as long, on all ranks
    slow_rank              only on this one
    nan_at                 the loss is not finite in this step
    raise_at, die_at       rank 1 raises, or is killed by SIGKILL, in this step, every time that it comes there
    eat                    [step, MB, file]: rank 1 takes that much memory in this step, unless the file exists, which it then makes
    poison                 [step, file]: the norm statistics are not finite after this step, unless the file exists, which rank 0 then makes
    evaluation_waits       a file: an evaluation does not get on while it exists
    samples                folder: each process writes which samples it computed, a line per micro-batch

Steps are counted from 0. A task is not told its step; the samples of a batch say it, since each occurs once an epoch.
"""

from __future__ import annotations

import json
import os
import signal
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ddp_trainer.config import RunConfig
from ddp_trainer.data.order import order
from ddp_trainer.data.source import Report
from ddp_trainer.tasks.cifar10 import Cifar10
from ddp_trainer.tasks.protocol import Dataset


class Small(Cifar10):
    """A hundredth of a ResNet's work, with a norm layer whose statistics differ on every rank."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.plan: dict[str, Any] = json.loads(os.environ.get("CHAOS", "{}"))
        self.rank = int(os.environ["RANK"])
        self.place: Places | None = None

    def build_model(self) -> nn.Module:
        self.norm = nn.BatchNorm2d(8)
        return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), self.norm, nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, 10))

    def datasets(self, report: Report) -> tuple[Dataset, Dataset]:
        train_set, test_set = super().datasets(report)
        folder = self.plan.get("samples")
        log = Path(folder, f"{os.getpid()}.jsonl") if folder else None
        self.place = Places(train_set, self.config, log)
        waits = self.plan.get("evaluation_waits")
        return self.place, Held(test_set, Path(waits)) if waits else test_set

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = super().loss(outputs, targets)
        step = self.place.step if self.place else None
        if step is None:  # the throw-away backward at the start
            return loss
        plan, seconds = self.plan, self.plan.get("step_seconds", 0.0)
        if "slow" in plan and step >= plan["slow"][0] and self.rank == plan.get("slow_rank", self.rank):
            seconds *= plan["slow"][1]
        time.sleep(seconds)
        if self.rank == 1 and step == plan.get("raise_at"):
            raise ZeroDivisionError("my own mistake")
        if self.rank == 1 and step == plan.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.rank == 1 and step == plan.get("eat", [None])[0]:
            self._eat(plan["eat"][1], Path(plan["eat"][2]))
        if self.rank == 0 and step == plan.get("poison", [None])[0]:
            self._poison(Path(plan["poison"][1]))
        return loss * float("nan") if step == plan.get("nan_at") else loss

    def _eat(self, megabytes: int, once: Path) -> None:
        if not once.exists():
            once.touch()
            self.eaten = bytearray(os.urandom(1024) * 1024 * megabytes)

    def _poison(self, once: Path) -> None:
        if not once.exists():
            once.touch()
            self.norm.running_var.data[0] = float("nan")  # unseen by autograd, which would refuse the backward pass


class Held:
    """A dataset whose batches do not come while a file exists."""

    def __init__(self, samples: Any, while_there: Path) -> None:
        self._samples = samples
        self._while_there = while_there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._samples, name)

    def __len__(self) -> int:
        return len(self._samples)

    def to(self, device: torch.device) -> Held:
        self._samples = self._samples.to(device)
        return self

    def batch(self, indices: torch.Tensor, epochs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        while self._while_there.exists():
            time.sleep(0.02)
        batch: tuple[torch.Tensor, torch.Tensor] = self._samples.batch(indices, epochs)
        return batch


class Places:
    """A dataset that knows where in the stream of samples a batch lies."""

    def __init__(self, samples: Any, config: RunConfig, log: Path | None) -> None:
        self._samples = samples
        self._config = config
        self._log = log.open("a", buffering=1) if log else None
        self.step: int | None = None

    @property
    def fingerprint(self) -> str:
        return str(self._samples.fingerprint)

    def __len__(self) -> int:
        return len(self._samples)

    def to(self, device: torch.device) -> Places:
        self._samples = self._samples.to(device)
        return self

    def picture(self, index: int) -> Any:
        return self._samples.picture(index)

    def batch(self, indices: torch.Tensor, epochs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        # a gang that does not know its gradients' order begins with a batch that is thrown away: the first samples, in no random order
        if epochs is not None and indices.tolist() != list(range(len(indices))):
            size, seed = len(self._samples), self._config.run.seed
            stream = [e * size + int(_places(seed, e, size)[i]) for e, i in zip(epochs.tolist(), indices.tolist(), strict=True)]
            self.step = stream[0] // self._config.data.global_batch
            if self._log:
                print(json.dumps({"time": time.time(), "first": stream[0], "last": stream[-1], "count": len(set(stream))}), file=self._log)
        batch: tuple[torch.Tensor, torch.Tensor] = self._samples.batch(indices, epochs)
        return batch


@lru_cache(maxsize=4)
def _places(seed: int, epoch: int, size: int) -> np.ndarray[Any, Any]:
    """Where in its epoch each sample comes: int64 [size]."""
    places = np.empty(size, np.int64)
    places[order(seed, epoch, size)] = np.arange(size)
    return places
