"""Two tensors as a dataset: the shortest way to bring data of your own that fits in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ddp_trainer.data.augment import upload


@dataclass(frozen=True)
class TensorDataset:
    """Sample i is `inputs[i]` with target `targets[i]`. No augmentation, no pictures."""

    inputs: Tensor
    """float32 [N, ...]."""
    targets: Tensor
    """[N, ...]."""

    def __post_init__(self) -> None:
        """Raises ValueError where the two do not pair up."""
        if len(self.inputs) != len(self.targets) or not len(self.inputs):
            raise ValueError(
                f"{len(self.inputs)} inputs and {len(self.targets)} targets; give one target for each input, and at least one of both"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shapes, types and values, in short."""
        content = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            content.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return content.hexdigest()[:32]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.inputs)

    def to(self, device: torch.device) -> TensorDataset:
        """The same samples in the memory of `device`."""
        return TensorDataset(self.inputs.to(device), self.targets.to(device))

    def batch(self, indices: Tensor, epochs: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - nothing is augmented
        """Inputs and targets of `indices`, int64 [B] on the CPU."""
        chosen = upload(indices, self.inputs.device)
        return self.inputs.index_select(0, chosen), self.targets.index_select(0, chosen)

    def picture(self, index: int) -> None:
        """None: these samples are not pictures."""
