"""The task `imagefolder`: classify the images of any source into its classes with a ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddp_trainer.config import RunConfig
from ddp_trainer.data.augment import Augmentation
from ddp_trainer.data.cache import Decoded, default_cache_dir, open_or_build
from ddp_trainer.data.images import ImageDataset
from ddp_trainer.data.source import Report
from ddp_trainer.data.sources import resolve
from ddp_trainer.errors import ConfigError
from ddp_trainer.tasks.blank import all_in_state
from ddp_trainer.tasks.resnet import build_resnet


class ImageFolder:
    """Images of any classes; to train another network on them, override `build_model`."""

    image_size = 64
    """Side in pixels where data.image_size is not set."""

    def __init__(self, config: RunConfig) -> None:
        """Check what can be checked without touching the data.

        Raises:
            ConfigError: the augmentation does not fit the image size.
        """
        self.config, self.size = config, config.data.image_size or self.image_size
        for key in ("crop_padding", "cutout"):
            value = getattr(config.data, key)
            if value >= self.size:
                raise ConfigError(
                    f"data.{key} is {value} but images have {self.size} x {self.size} pixels; use less than {self.size}, or 0 for none"
                )
        self._decoded: Decoded | None = None

    @property
    def classes(self) -> Sequence[str]:
        """Names of the class folders, sorted. Decodes the data at the first use."""
        return self._open(_silent).classes

    @all_in_state
    def build_model(self) -> nn.Module:
        """The ResNet that model.name and model.stem describe."""
        return build_resnet(self.config.model.name, self.config.model.stem, len(self.classes))

    def datasets(self, report: Report) -> tuple[ImageDataset, ImageDataset]:
        """Training and test images, decoded once and memory-mapped."""
        decoded, data = self._open(report), self.config.data
        augmentation = Augmentation(self.config.run.seed, self.size, flip=data.flip, crop_padding=data.crop_padding, cutout=data.cutout)
        return ImageDataset.of(decoded, decoded.train, augmentation), ImageDataset.of(decoded, decoded.test, augmentation)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with label smoothing, mean over the batch, in float32."""
        return functional.cross_entropy(outputs.float(), targets, label_smoothing=self.config.optim.label_smoothing)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Number of correct images, and cross-entropy without smoothing summed over the batch."""
        return {
            "accuracy": (outputs.argmax(1) == targets).sum(dtype=torch.float32),
            "loss": functional.cross_entropy(outputs.float(), targets, reduction="sum"),
        }

    def _open(self, report: Report) -> Decoded:
        if self._decoded is None:
            data = self.config.data
            cache_dir = Path(data.cache_dir).expanduser() if data.cache_dir else default_cache_dir()
            seed_dir = Path(data.seed_cache_dir).expanduser() if data.seed_cache_dir else None
            self._decoded = self._checked(open_or_build(resolve(data.source, cache_dir), self.size, cache_dir, report, seed_dir))
        return self._decoded

    def _checked(self, decoded: Decoded) -> Decoded:
        """Raises DataError where a task cannot use the classes that were found."""
        return decoded


def _silent(what: str, done: int, total: int) -> None:
    """For those who ask only for the classes."""
