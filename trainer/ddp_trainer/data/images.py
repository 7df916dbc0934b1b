"""Decoded images as a dataset: batches by sample number, from the memory map or from the GPU's memory. No per-sample Python."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_trainer.data.augment import Augmentation, Augmenter, upload
from ddp_trainer.data.cache import Decoded, Split
from ddp_trainer.errors import DataError


@dataclass(frozen=True)
class ImageDataset:
    """One split of an image set on one device."""

    fingerprint: str
    host_pixels: NDArray[np.uint8]
    """[N, size, size, 3], the memory map: pictures for the report come from here."""
    pixels: Tensor
    """uint8 [N, size, size, 3] on the device; on the CPU it is the memory map itself."""
    labels: Tensor
    """int64 [N] on the device."""
    augmentation: Augmentation
    augmenter: Augmenter
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, decoded: Decoded, split: Split, augmentation: Augmentation) -> ImageDataset:
        """On the CPU, without copying anything."""
        augmenter = Augmenter(augmentation, decoded.mean, decoded.std, torch.device("cpu"))
        pixels, labels = torch.from_numpy(split.pixels), torch.from_numpy(split.labels)
        return cls(split.fingerprint, split.pixels, pixels, labels, augmentation, augmenter, decoded.mean, decoded.std)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.host_pixels)

    def to(self, device: torch.device) -> ImageDataset:
        """The same images in the memory of `device`; itself on the CPU.

        Raises:
            DataError: they do not fit.
        """
        if device == self.pixels.device:
            return self
        try:
            pixels = self.pixels.to(device)
        except torch.OutOfMemoryError:
            raise DataError(
                f"{len(self)} images of {self.augmentation.size} x {self.augmentation.size} pixels take "
                f"{self.pixels.nbytes / 2**30:.1f} GiB, more than {device} has free; "
                f"set a smaller data.image_size, or distributed.device=cpu"
            ) from None
        return replace(
            self, pixels=pixels, labels=self.labels.to(device), augmenter=Augmenter(self.augmentation, self.mean, self.std, device)
        )

    def batch(self, indices: Tensor, epochs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Normalised images, float32 [B, 3, size, size] channels_last, and labels, int64 [B], on the device; see tasks/protocol.py."""
        images = self.augmenter.plain(self.pixels, indices) if epochs is None else self.augmenter.augmented(self.pixels, indices, epochs)
        return images, self.labels.index_select(0, upload(indices, self.labels.device))

    def picture(self, index: int) -> NDArray[np.uint8]:
        """The image as it was decoded: uint8 [size, size, 3]."""
        return np.array(self.host_pixels[index])
