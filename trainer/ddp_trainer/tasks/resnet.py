"""Any ResNet of torchvision's (resnet, resnext, wide_resnet) with one of two stems.

The `imagenet` stem (7x7, stride 2, then a max-pool) shrinks a 32-pixel image to 8 pixels before the first block; the `cifar` stem (3x3,
stride 1, no pool) keeps all 32, for 15.6 times the arithmetic and a better accuracy.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from ddp_trainer.errors import ConfigError


def resnet_names() -> list[str]:
    """What `model.name` may be."""
    from torchvision import models  # a second of import, so not before a model is asked for

    return [str(name) for name in models.list_models(include=("resnet*", "resnext*", "wide_resnet*"))]


def assert_resnet(name: str) -> None:
    """Refuse a `model.name` that torchvision does not have.

    Raises:
        ConfigError: and the names that there are.
    """
    names = resnet_names()
    if name not in names:
        raise ConfigError(f"model.name is {name!r}; known are {', '.join(names)}, or write a task of your own (docs/your-own-model.md)")


def build_resnet(name: str, stem: Literal["imagenet", "cifar"], classes: int) -> nn.Module:
    """A freshly initialised network for images [B, 3, H, W] with `classes` outputs.

    Raises:
        ConfigError: as `assert_resnet`.
    """
    from torchvision import models

    assert_resnet(name)
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, zero_init_residual=True)
    if stem == "cifar":
        first = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as torchvision initialises the one it replaces
        model.conv1, model.maxpool = first, nn.Identity()
    return model
