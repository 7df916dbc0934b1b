"""Images in folders: `train/<class>/<image>` and `test/<class>/<image>`.

The identity is the folders' names and modification times, which change when an image is added, removed or replaced by renaming. An
image overwritten in place goes unnoticed; reading the times of a million files at each start would cost more than training's first step.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ddp_trainer.data.source import SHAPE, SPLITS, Encoded, Listing, Report, arrange, is_image
from ddp_trainer.errors import DataError


class ImageTree:
    """A folder of class folders."""

    def __init__(self, root: Path) -> None:
        """Nothing is read yet."""
        self.root, self.title = root.resolve(), f"the image folder {root}"
        self._positions: dict[tuple[str, str, str], int] = {}

    def identity(self) -> str:
        """Path, and name and time of each class folder."""
        seen = hashlib.sha256()
        for split, label, folder in self._class_folders():
            seen.update(f"{split}/{label} {folder.stat().st_mtime_ns}\n".encode())
        return f"tree {self.root} {seen.hexdigest()}"

    def listing(self, report: Report) -> Listing:
        """Names of all image files."""
        folders: list[tuple[str, str]] = []
        files: list[tuple[str, str, str]] = []
        for split, label, folder in self._class_folders():
            report("listing images", len(files), 0)
            folders.append((split, label))
            files += [(split, label, name) for name in _names(folder) if is_image(name)]
        listing, self._positions = arrange(self.title, folders, files)
        return listing

    def images(self) -> Iterator[Encoded]:
        """Files in sorted order."""
        for (split, label, name), position in self._positions.items():
            path = self.root / split / label / name
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"cannot read the image {path}: {error.strerror}; make it readable, or remove it") from None
            yield Encoded(split, position, str(path), content)

    def _class_folders(self) -> Iterator[tuple[str, str, Path]]:
        for split in SPLITS:
            if not (self.root / split).is_dir():
                raise DataError(f"{self.title} has no folder {split!r}; expected {SHAPE}")
            for label in sorted(_names(self.root / split)):
                folder = self.root / split / label
                if not label.startswith(".") and folder.is_dir():
                    yield split, label, folder


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names only, and a tenth of the time of Path objects for a million files
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}; make it readable") from None
