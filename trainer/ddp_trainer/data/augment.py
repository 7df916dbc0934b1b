"""From sample numbers to a batch of float images: shifted crop, mirror, cutout and normalisation in a handful of tensor operations.

What is drawn depends only on (seed, epoch, sample index), never on the batch it is drawn in, the rank or the device. Crop and mirror
are not computed but looked up: they only change *which* pixel is read, so one gather of 3-byte pixels from the resident or
memory-mapped set does both. Borders are mirrored (reflect padding), which needs no mask and no extra memory. Multiplication and
addition stay two operations, so that rounding is the same on every device and for every batch size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddp_trainer.data.hashing import AUGMENT, Bits, random_bits

_FIELD_BITS = 15
"""Random bits per drawn offset: a 15-bit fraction picks among n values with a bias below n / 32768."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image of `size` x `size` pixels."""

    seed: int
    size: int
    flip: bool = True
    crop_padding: int = 0
    """Largest shift in pixels, below `size`."""
    cutout: int = 0
    """Side of the blanked square, at most `size`; 0 is off."""


@dataclass(frozen=True)
class Draws:
    """What is drawn for each sample of a batch: int64 [B] each."""

    row_shift: NDArray[np.int64]
    """0 ... 2 * crop_padding; crop_padding is no shift."""
    column_variant: NDArray[np.int64]
    """The same for columns, plus 2 * crop_padding + 1 if mirrored."""
    cutout_row: NDArray[np.int64]
    """Centre of the blanked square."""
    cutout_column: NDArray[np.int64]


def draw(augmentation: Augmentation, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> Draws:
    """The random choices for each (epoch, index): a pure function of these and the seed."""
    bits = random_bits(augmentation.seed, AUGMENT, epochs, indices)
    shifts = 2 * augmentation.crop_padding + 1
    mirrored = (bits >> np.uint64(63)).astype(np.int64) if augmentation.flip else np.zeros_like(indices)
    return Draws(
        row_shift=_pick(bits, 0, shifts),
        column_variant=_pick(bits, 1, shifts) + shifts * mirrored,
        cutout_row=_pick(bits, 2, augmentation.size),
        cutout_column=_pick(bits, 3, augmentation.size),
    )


def _pick(bits: Bits, field: int, count: int) -> NDArray[np.int64]:
    """An evenly drawn number below `count` from the field-th group of 15 bits."""
    fraction = (bits >> np.uint64(field * _FIELD_BITS)) & np.uint64((1 << _FIELD_BITS) - 1)
    return ((fraction * np.uint64(count)) >> np.uint64(_FIELD_BITS)).astype(np.int64)


class Augmenter:
    """The lookup tables of one Augmentation on one device, and the gather that uses them."""

    def __init__(self, augmentation: Augmentation, mean: NDArray[np.float64], std: NDArray[np.float64], device: torch.device) -> None:
        """Mean and std are per channel, in units of the raw 0 ... 255 values."""
        self._augmentation, self._device = augmentation, device
        size, padding = augmentation.size, augmentation.crop_padding
        source = torch.arange(2 * padding + 1).unsqueeze(1) - padding + torch.arange(size)  # [shifts, size], may lie outside
        inside = (size - 1) - ((size - 1) - source.abs()).abs()  # reflected at both borders
        self._rows = (inside * size).to(device)
        self._columns = torch.cat([inside, inside.flip(1)]).to(device)
        # one factor per float of an image row, so that the inner loop is a long one: three channels at a time cost ten times as much
        self._scale = torch.from_numpy(1 / std).float().repeat(size * size).to(device)
        self._shift = torch.from_numpy(-mean / std).float().repeat(size * size).to(device)

    def plain(self, images: Tensor, indices: Tensor) -> Tensor:
        """Images `indices` normalised only; shapes as in `augmented`."""
        return self._normalised(images.flatten(1).index_select(0, upload(indices, self._device)))

    def augmented(self, images: Tensor, indices: Tensor, epochs: Tensor) -> Tensor:
        """Images `indices` as they look in `epochs`.

        Args:
            images: uint8 [N, size, size, 3] on the device.
            indices: int64 [B] on the CPU.
            epochs: int64 [B] on the CPU.

        Returns:
            float32 [B, 3, size, size] on the device, in channels_last memory format.
        """
        size, count = self._augmentation.size, len(indices)
        draws = draw(self._augmentation, indices.numpy(), epochs.numpy())
        packed = np.stack([indices.numpy(), draws.row_shift, draws.column_variant, draws.cutout_row, draws.cutout_column])
        first, row_shift, column_variant, cutout_row, cutout_column = upload(torch.from_numpy(packed), self._device).unbind()
        rows = self._rows.index_select(0, row_shift).add_((first * (size * size)).unsqueeze(1))
        pixels = rows.unsqueeze(2) + self._columns.index_select(0, column_variant).unsqueeze(1)
        batch = self._normalised(images.view(-1, 3).index_select(0, pixels.view(-1)).view(count, -1))
        if self._augmentation.cutout:
            batch.masked_fill_(self._blanked(cutout_row, cutout_column).unsqueeze(1), 0.0)  # 0 is the mean colour
        return batch

    def _normalised(self, raw: Tensor) -> Tensor:
        size = self._augmentation.size
        return raw.float().mul_(self._scale).add_(self._shift).view(-1, size, size, 3).permute(0, 3, 1, 2)

    def _blanked(self, row: Tensor, column: Tensor) -> Tensor:
        """Which pixels cutout hides: bool [B, size, size]."""
        place = torch.arange(self._augmentation.size, device=self._device)
        low = self._augmentation.cutout // 2
        high = self._augmentation.cutout - low
        in_rows = (place >= (row - low).unsqueeze(1)) & (place < (row + high).unsqueeze(1))
        in_columns = (place >= (column - low).unsqueeze(1)) & (place < (column + high).unsqueeze(1))
        return in_rows.unsqueeze(2) & in_columns.unsqueeze(1)


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor to the device without making the host wait: from pinned memory, which a plain copy would first wait for."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
