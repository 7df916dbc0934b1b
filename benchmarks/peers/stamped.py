"""Our trainer, unchanged, as startup.py and recovery.py watch it: a task that notes when each part of a rank's start begins and ends.

`ddp local --set task.name=stamped:Stamped --set task.options.stamps=FILE`. One JSON line per mark, `{"what", "rank", "pid", "time"}`,
appended with one write, so several ranks may share the file. The first batches are noted, which is all that a start has.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddp_trainer.config import RunConfig
from ddp_trainer.data.source import Report
from ddp_trainer.tasks.blank import all_in_state
from ddp_trainer.tasks.cifar10 import Cifar10
from ddp_trainer.tasks.protocol import Dataset

NOTED_BATCHES = 4


@dataclass
class Stamps:
    """The file, and how many batches were noted in this process."""

    file: Path
    batches: int = field(default=0)

    def note(self, what: str) -> None:
        """A mark, now."""
        mark = {"what": what, "rank": int(os.environ["RANK"]), "pid": os.getpid(), "time": time.time()}
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(mark) + "\n")


@dataclass(frozen=True)
class StampedDataset:
    """The training set; its batches are asked for at the beginning of a step."""

    dataset: Dataset
    stamps: Stamps

    @property
    def fingerprint(self) -> str:
        """The content's."""
        return self.dataset.fingerprint

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def to(self, device: torch.device) -> StampedDataset:
        """The same on a device."""
        return StampedDataset(self.dataset.to(device), self.stamps)

    def batch(self, indices: Tensor, epochs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Note that a step begins. What settles DDP's buckets at a first start takes the first samples in their order, and is none."""
        is_thrown_away = torch.equal(indices, torch.arange(len(indices)))
        if self.stamps.batches < NOTED_BATCHES and not is_thrown_away:
            self.stamps.note("batch")
            self.stamps.batches += 1
        return self.dataset.batch(indices, epochs)

    def picture(self, index: int) -> NDArray[np.uint8] | None:
        """As the data set has it."""
        return self.dataset.picture(index)


class Stamped(Cifar10):
    """CIFAR-10 with a clock beside it."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._stamps = Stamps(Path(config.task.options["stamps"]))
        self._stamps.note("rank runs")

    def datasets(self, report: Report) -> tuple[Dataset, Dataset]:  # type: ignore[override]  # a wrapped data set is a data set
        """The usual ones, the training set watched."""
        train_set, test_set = super().datasets(report)
        self._stamps.note("data ready")
        return StampedDataset(train_set, self._stamps), test_set

    @all_in_state  # as the usual one is
    def build_model(self) -> nn.Module:
        """The usual one."""
        self._stamps.note("model begun")
        model = super().build_model()
        self._stamps.note("model built")
        return model
