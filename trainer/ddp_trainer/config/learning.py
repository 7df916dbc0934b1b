"""What is learned, from which samples, how, and in which number formats."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import to_json

from ddp_trainer.config.section import NonNegative, Positive, Section

MOST_LEVELS = 100
"""Of lists and mappings within each other: every manifest repeats the options, and pydantic reads JSON of at most 200 levels."""


class TaskSection(Section):
    """What is trained."""

    name: str = "cifar10"
    """A built-in task (cifar10, imagefolder) or your own as `package.module:name`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to your own task unchanged; the built-in tasks take none."""

    @field_validator("options")
    @classmethod
    def _can_be_read_again(cls, options: dict[str, Any]) -> dict[str, Any]:
        if _is_deeper(options, MOST_LEVELS):
            raise ValueError(f"more than {MOST_LEVELS} lists and mappings lie within each other, or one within itself; make them flatter")
        to_json(options)  # raises a ValueError where it cannot
        return options


def _is_deeper(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return parts is not None and (levels == 0 or any(_is_deeper(part, levels - 1) for part in parts))


class DataSection(Section):
    """Where samples come from and how a batch is made of them."""

    source: str = "sample"
    """sample (5,000 + 1,000 real CIFAR-10 images in the package), download (all of CIFAR-10 by torchvision), or a path.

    A path is torchvision's CIFAR-10 folder, an image tree (`train/<class>/*`, `test/<class>/*`), or a tar of one."""
    cache_dir: str | None = None
    """Where decoded arrays are kept; None means `$XDG_CACHE_HOME/ddp-trainer` (`~/.cache/ddp-trainer`)."""
    seed_cache_dir: str | None = None
    """A second such folder that is looked into first and never written, such as one baked into a container's image; None: there is none."""
    global_batch: Positive = 128
    """Samples per optimizer step over all ranks. Does not change when the world size does."""
    micro_batches: Positive | None = None
    """Into how many micro-batches the global batch is cut; None means one per rank of the configured world.

    Any world size that divides it does the same arithmetic."""
    eval_batch: Positive = 250
    """Samples per forward pass and rank in evaluation."""
    image_size: Positive | None = None
    """imagefolder: images are resized to this square; None means 32 for cifar10 and 64 for imagefolder."""
    flip: bool = True
    """Augmentation: mirror half of the training images."""
    crop_padding: NonNegative = 4
    """Augmentation: pad by this many pixels and crop back at a random offset; 0 switches it off."""
    cutout: NonNegative = 0
    """Augmentation: blank a random square of this side; 0 switches it off."""


class ModelSection(Section):
    """The built-in tasks' network."""

    name: str = "resnet50"
    """Any torchvision ResNet: resnet18, resnet34, resnet50, resnet101, resnet152, resnext..., wide_resnet..."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1, no pool (15.6 times the arithmetic at 32 pixels, and better accuracy)."""


class OptimSection(Section):
    """The optimizer, and its rate: linear warm-up and cosine decay; no weight decay on norms and biases."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum, for the best accuracy of long runs. adamw: learns more in the first few hundred steps, for twice the state."""

    epochs: Annotated[float, Field(gt=0)] = 8.0
    """Length of the run, and of the schedule, in passes over the training set."""
    max_steps: Positive | None = None
    """Ends the run (and the schedule) at this step instead, where given."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum; AdamW's first beta."""
    nesterov: bool = True
    """Nesterov momentum; sgd only."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's second beta; adamw only."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """On weights of two or more dimensions: an L2 penalty with sgd, decoupled with adamw (where 0.05 is usual)."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Part of the steps in which the learning rate climbs from zero to `lr`."""
    final_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The cosine ends at `lr` times this."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target spread over all classes."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the parameters and evaluate with it; None: off."""


class PrecisionSection(Section):
    """Number formats and compilation: speed, not meaning."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware has it."""
    channels_last: bool = True
    """Memory layout of images and convolution weights."""
    compile: Literal["off", "auto", "on"] = "off"
    """torch.compile; auto declines with a sentence where there is no compiler, on refuses."""
    compile_cache_dir: str | None = None
    """Kept across restarts, so that only the first start compiles; None means the folder `compile` below `data.cache_dir`."""
    threads_per_rank: Positive | None = None
    """CPU threads of a rank; None means cores / ranks on this machine."""
