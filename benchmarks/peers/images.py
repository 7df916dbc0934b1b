"""The same real images for every peer: the package's sample as a folder of JPEG files, and a data loader over it.

The folder is extracted once, under a temporary name that is renamed when complete, so that peers may start at the same time. Two forms:
`jpeg` is torchvision's ImageFolder, which opens and decodes a file per sample and epoch; `memory` keeps the decoded images in an array,
as torchvision's own CIFAR10 class does. The augmentation is per sample, in the loader's processes, as these tools' users write it.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pace import Rank
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import datasets, transforms

SAMPLE = "cifar10-sample.tar.gz"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training images, per channel."""


class InMemory(Dataset[tuple[Tensor, int]]):
    """All images decoded in one uint8 array, transformed one by one when asked for."""

    def __init__(self, folder: datasets.ImageFolder, transform: Any) -> None:
        self._pixels = np.stack([np.asarray(folder.loader(path)) for path, _ in folder.samples])
        self._labels = [label for _, label in folder.samples]
        self._transform = transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One augmented image, float32 [3, 32, 32], and its class."""
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def train_loader(flags: argparse.Namespace, me: Rank, *, shard: bool) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled, augmented batches of `flags.batch`; with `shard`, of this rank's part only (Fabric and Accelerate shard by themselves)."""
    transform = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    files = datasets.ImageFolder(str((flags.data or sample_folder()) / "train"), transform)
    dataset: Dataset[tuple[Tensor, int]] = InMemory(files, transform) if flags.images == "memory" else files
    sampler: DistributedSampler[Any] | None = None
    if shard and me.world > 1:
        sampler = DistributedSampler(dataset, num_replicas=me.world, rank=me.rank, drop_last=True)
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # the collated batch holds a tensor of labels where the sample holds an int
        batch_size=flags.batch,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=flags.workers,
        persistent_workers=flags.persistent and flags.workers > 0,
        pin_memory=me.device.type == "cuda",
        drop_last=True,
        generator=torch.Generator().manual_seed(0),
    )


def sample_folder() -> Path:
    """Where the sample lies as files; extracted at the first call on a machine."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddp-trainer"
    folder = root / "bench-sample-files"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as draft:
            with resources.as_file(resources.files("ddp_trainer.data") / SAMPLE) as packed, tarfile.open(packed) as tar:
                tar.extractall(draft, filter="data")
            Path(draft, "complete").mkdir()
            for part in ("train", "test"):
                Path(draft, part).rename(Path(draft, "complete", part))
            try:
                Path(draft, "complete").rename(folder)
            except OSError:
                if not folder.is_dir():  # else another peer was first, with the same files
                    raise
    return folder
