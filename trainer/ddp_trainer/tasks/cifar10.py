"""The task `cifar10`: the ten classes of CIFAR-10 at 32 x 32 pixels, from any source that has them."""

from __future__ import annotations

from ddp_trainer.data.cache import Decoded
from ddp_trainer.errors import DataError
from ddp_trainer.tasks.imagefolder import ImageFolder

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar10(ImageFolder):
    """CIFAR-10, whole or in part; to train another network on it, override `build_model`."""

    image_size = 32
    classes = CLASSES

    def _checked(self, decoded: Decoded) -> Decoded:
        if tuple(name.lower() for name in decoded.classes) != CLASSES:
            raise DataError(
                f"data.source {self.config.data.source!r} has the classes {', '.join(decoded.classes[:12])}, not the ten of CIFAR-10; "
                f"set task.name=imagefolder for other images"
            )
        return decoded
