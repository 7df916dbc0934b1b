"""Our trainer, unchanged, as a contestant: a task whose training set tells the pacer that a new step begins.

`ddp local --set task.name=ours:Paced` runs it through everything a user's run has: agent, fork server, telemetry, metrics, DDP. Between two
bursts a rank waits inside `batch`, which is the first thing a step does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pace import Control, Pacer
from torch import Tensor

from ddp_trainer.config import RunConfig
from ddp_trainer.data.source import Report
from ddp_trainer.tasks.cifar10 import Cifar10
from ddp_trainer.tasks.protocol import Dataset


class ContestOverError(RuntimeError):
    """The benchmark has closed the line; it stops the run anyway."""


@dataclass(frozen=True)
class PacedDataset:
    """The training set, and a look at the pacer before each batch."""

    dataset: Dataset
    pacer: Pacer

    @property
    def fingerprint(self) -> str:
        """The content's, which pacing does not change."""
        return self.dataset.fingerprint

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def to(self, device: torch.device) -> PacedDataset:
        """The same on a device."""
        self.pacer.device = device
        return PacedDataset(self.dataset.to(device), self.pacer)

    def batch(self, indices: Tensor, epochs: Tensor | None) -> tuple[Tensor, Tensor]:
        """The step before this batch is over: say so, and wait if this contestant is to pause."""
        if epochs is not None and not self.pacer.stepped(len(indices)):
            raise ContestOverError("the benchmark has ended")
        return self.dataset.batch(indices, epochs)

    def picture(self, index: int) -> NDArray[np.uint8] | None:
        """As the data set has it."""
        return self.dataset.picture(index)


class Paced(Cifar10):
    """CIFAR-10, in bursts. `task.options.control` is the benchmark's port."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._port = int(config.task.options["control"])

    def datasets(self, report: Report) -> tuple[Dataset, Dataset]:  # type: ignore[override]  # a wrapped data set is a data set
        """The usual ones, the training set paced."""
        train_set, test_set = super().datasets(report)
        control = Control(self._port)
        return PacedDataset(train_set, Pacer(control.order, control.tell, torch.device("cpu"))), test_set
