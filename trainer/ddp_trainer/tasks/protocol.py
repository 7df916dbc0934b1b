"""What the engine asks of a task: a network, two datasets, a loss and metrics. Nothing else about the task is known outside it.

Everything here is structural: a class with these members is a task, whatever it inherits from. `registry.load_task` checks the
members by name; shapes and devices are promised below and not checked in the training path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddp_trainer.data.source import Report

TASK_MEMBERS = ("classes", "build_model", "datasets", "loss", "metrics")
"""What `load_task` looks for, in this order, so that the first missing one can be named."""


class Dataset(Protocol):
    """Samples that can be fetched by number, a batch at a time, already augmented."""

    @property
    def fingerprint(self) -> str:
        """Hash of the content: the same content gives the same string on any machine. A plain attribute will do."""

    def __len__(self) -> int:
        """Number of samples."""

    def to(self, device: torch.device) -> Dataset:
        """The same samples ready for batches on `device`; on a GPU they are copied into its memory once."""

    def batch(self, indices: Tensor, epochs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fetch samples by number.

        Args:
            indices: int64 [B] on the CPU, each in [0, len).
            epochs: int64 [B] on the CPU, the epoch of each sample: with the seed and the index it is the key of the augmentation.
                None means evaluation: no augmentation.

        Returns:
            Inputs, float32 [B, ...] on the device (images normalised, [B, 3, H, W] in channels_last memory format), and targets [B, ...].
        """

    def picture(self, index: int) -> NDArray[np.uint8] | None:
        """One sample as uint8 [H, W, 3] for the report; None where a sample is not a picture."""


class Task(Protocol):
    """What is trained."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes in the order of the targets; empty if this is not classification. A plain attribute will do."""

    def build_model(self) -> nn.Module:
        """A freshly initialised network on the CPU. The engine has seeded torch's generator before.

        Marked with `blank.all_in_state`, nothing is drawn where a saved state is about to give all values.
        """

    def datasets(self, report: Report) -> tuple[Dataset, Dataset]:
        """The training and the test set. May download and decode, telling `report` how far it is, and may raise DataError."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scalar: the mean over the batch that training minimises, label smoothing included."""

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Scalars by name, each a SUM over the batch (number correct, summed loss without smoothing); the engine divides by the count."""
