"""From `data.source` in the configuration to the source it means.

sample     5,000 + 1,000 CIFAR-10 images that ship with this package
download   all of CIFAR-10, by torchvision
a path     torchvision's cifar-10-batches-py (or the folder it lies in), an image tree, or a tar of one
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ddp_trainer.data.archive import ImageTar
from ddp_trainer.data.cifar_pickles import FOLDER, CifarDownload, CifarPickles
from ddp_trainer.data.source import SHAPE, SPLITS, Source
from ddp_trainer.data.tree import ImageTree
from ddp_trainer.errors import DataError

SAMPLE = Path(__file__).with_name("cifar10-sample.tar.gz")


def resolve(source: str, cache_dir: Path) -> Source:
    """Find out which kind of source this is, by looking at it.

    Args:
        source: `data.source`.
        cache_dir: where a download goes.

    Raises:
        DataError: there is nothing at the path, or nothing that is understood.
    """
    if source == "sample":
        return ImageTar(SAMPLE, content_hash=hashlib.sha256(SAMPLE.read_bytes()).hexdigest())
    if source == "download":
        return CifarDownload(cache_dir / "downloads")
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            if path.stat().st_size == 0:
                raise DataError(f"data.source {source!r} is an empty file; copy or download it again")
            return ImageTar(path)
    except OSError as error:
        raise DataError(f"cannot read data.source {source!r}: {error.strerror}; make it readable") from None
    raise DataError(
        f"data.source {source!r} does not exist (looked at {path.absolute()}); "
        f"give sample, download, or the path of a folder or tar of images"
    )


def _folder(path: Path) -> Source:
    for candidate in (path, path / FOLDER):
        if (candidate / "batches.meta").exists() or (candidate.name == FOLDER and candidate.is_dir()):
            return CifarPickles(candidate)
    if any((path / split).is_dir() for split in SPLITS):
        return ImageTree(path)
    raise DataError(
        f"data.source {str(path)!r} is a folder but holds neither {FOLDER} nor images as {SHAPE}; give the folder above train and test"
    )
