"""What a source of labelled images is, and the checks that hold for every kind of source before anything is decoded.

A source lists its images first (cheap), then hands them out encoded, in whatever order it reads fastest. The position of an image in
its split is fixed by the listing, sorted by class and then by file name, so that a folder and a tar of the same files decode to the
same arrays. No decoding and no caching here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ddp_trainer.errors import DataError

Report = Callable[[str, int, int], None]
"""`report(what, done, total)`, called now and then while something long runs; total is 0 while it is not known."""

SPLITS = ("train", "test")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Files with other suffixes, and those whose names start with a dot, lie beside the images and are passed over."""
SHAPE = "train/<class>/<image> and test/<class>/<image>"


@dataclass(frozen=True)
class Encoded:
    """One image on its way to the decoder."""

    split: str
    position: int
    """Its place in the decoded array of the split."""
    name: str
    """What an error calls it."""
    content: bytes | NDArray[np.uint8]
    """The bytes of an image file, or pixels [H, W, 3] that need no decoding."""


@dataclass(frozen=True)
class Listing:
    """All images of a source by name only."""

    classes: tuple[str, ...]
    labels: Mapping[str, NDArray[np.int64]]
    """Per split: int64 [N], the class number of each position."""


class Source(Protocol):
    """Where images come from."""

    title: str
    """What an error calls the source."""

    def identity(self) -> str:
        """Changes when the content does, as far as can be told in milliseconds; the key of the cache."""

    def listing(self, report: Report) -> Listing:
        """Read names only. Raises DataError for anything that makes the set unusable. A download happens here."""

    def images(self) -> Iterator[Encoded]:
        """All images that `listing`, called before, has counted. Raises DataError for what cannot be read."""


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def arrange(
    title: str, folders: Iterable[tuple[str, str]], files: Iterable[tuple[str, str, str]]
) -> tuple[Listing, dict[tuple[str, str, str], int]]:
    """Give each file its position.

    Args:
        title: what errors call the source.
        folders: (split, class) of every class folder seen, including those without files.
        files: (split, class, file name) of every image, in any order.

    Returns:
        The listing, and the position of each file in its split.

    Raises:
        DataError: no images, an empty class folder, or classes that differ between the splits.
    """
    ordered = sorted(files)
    filled = {(split, label) for split, label, _ in ordered}
    if not filled:
        raise DataError(f"{title} holds no images; expected {SHAPE}, with suffixes {' '.join(sorted(IMAGE_SUFFIXES))}")
    empty = sorted({*folders} - filled)
    if empty:
        raise DataError(f"{title}: the class folder {'/'.join(empty[0])} holds no images; put images in, or remove the folder")
    by_split = {split: {label for s, label in filled if s == split} for split in SPLITS}
    for split in SPLITS:
        if not by_split[split]:
            raise DataError(f"{title} has no {split} images; expected {SHAPE}")
    train, test = by_split["train"], by_split["test"]
    if train != test:
        raise DataError(f"{title}: train and test must have the same classes, but {_difference(train, test)}; add or remove those folders")
    classes = tuple(sorted(train))
    number = {label: i for i, label in enumerate(classes)}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    positions: dict[tuple[str, str, str], int] = {}
    for split, label, file in ordered:
        positions[split, label, file] = len(labels[split])
        labels[split].append(number[label])
    return Listing(classes, {split: np.array(values, np.int64) for split, values in labels.items()}), positions


def _difference(train: set[str], test: set[str]) -> str:
    parts = [f"only {name} has {', '.join(sorted(only)[:5])}" for name, only in (("train", train - test), ("test", test - train)) if only]
    return " and ".join(parts)
