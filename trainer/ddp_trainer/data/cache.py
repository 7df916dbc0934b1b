"""Decoded images on disk: built once, then memory-mapped by every rank of the host in a few milliseconds.

    <cache_dir>/decoded/<key>/   meta.json  train.pixels  test.pixels  train.labels  test.labels

The key is the source's identity with the image size, so a changed source gets a new folder. A folder is complete or absent: it is
written under a temporary name, synced, and renamed. Ranks that start together meet at a file lock; one decodes, the others wait.
Opening checks meta.json's own hash, every file's size, the labels and a few blocks of pixels spread over each file; `verify` reads
everything. What fails is rebuilt, and said. Old folders are not removed: the whole cache may be deleted at any time.
A seed is a cache that somebody else made, such as the builder of a container's image: it is looked into first, and only read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_trainer.data.decode import decode_all
from ddp_trainer.data.lock import exclusive
from ddp_trainer.data.source import SPLITS, Listing, Report, Source
from ddp_trainer.errors import DataError
from ddp_trainer.syncing import sync_file, sync_folder

FORMAT = 1
"""Part of the key: another layout, or another way of scaling images, never meets old files."""
CHANNELS = 3
_SPOTS, _SPOT_BYTES = 16, 4096
"""Blocks of each pixel file that are hashed at every opening: 64 KiB, a millisecond, and torn writes are rarely smaller than a block."""
_READ_BYTES = 8 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """One memory-mapped split."""

    pixels: NDArray[np.uint8]
    """[N, size, size, 3]; mapped copy-on-write, so all ranks share one copy and nobody can change the file."""
    labels: NDArray[np.int64]
    """[N]."""
    fingerprint: str
    """SHA-256 over class names, shape, labels and pixels, in short."""


@dataclass(frozen=True)
class Decoded:
    """Both splits, and what was measured on the training images: mean and std per channel in units of 0 ... 255."""

    folder: Path
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


class _UnusableError(Exception):
    """Why a cache folder must be rebuilt; never leaves this module."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/ddp-trainer`, by default `~/.cache/ddp-trainer`: the one variable that the data reads from the environment."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ddp-trainer"


def open_or_build(source: Source, size: int, cache_dir: Path, report: Report, seed_dir: Path | None = None) -> Decoded:
    """The decoded images of `source`, scaled to `size` x `size` pixels: from the seed if it has them, else from `cache_dir`.

    Blocks while images are decoded, by this process (which calls `report`) or by another one (see `lock.exclusive` for the bound).

    Raises:
        DataError: the source is unusable, or the cache directory cannot be written.
    """
    key = hashlib.sha256(f"{FORMAT} {size} {source.identity()}".encode()).hexdigest()[:20]
    if seed_dir is not None and (seeded := _open_seed(seed_dir / "decoded" / key)):
        return seeded
    folder = cache_dir / "decoded" / key
    with suppress(FileNotFoundError, _UnusableError):  # said and removed below, under the lock
        return _open(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.parent / f"{key}.lock", f"another process that decodes {source.title}", report):
            try:
                return _open(folder)  # another process was faster
            except FileNotFoundError:
                pass
            except _UnusableError as error:
                log.warning("decoded images in %s are damaged (%s); decoding %s again", folder, error, source.title)
                shutil.rmtree(folder)
            for abandoned in folder.parent.glob(f".tmp-{key}-*"):  # by a process that was killed while it held the lock
                shutil.rmtree(abandoned)
            _build(source, size, folder, report)
            return _open(folder)
    except OSError as error:
        raise DataError(
            f"cannot write decoded images to {folder.parent}: {error.strerror or error}; "
            f"set data.cache_dir to a writable folder with enough space"
        ) from None


def verify(folder: Path) -> list[str]:
    """Read every byte of a cache folder, and name what differs from when it was written; an empty list if nothing does."""
    try:
        meta = _meta(folder)
        return [name for name, facts in meta["files"].items() if _sha256(folder / name) != facts["sha256"]]
    except (_UnusableError, OSError) as error:
        return [str(error)]


def _build(source: Source, size: int, folder: Path, report: Report) -> None:
    listing = source.listing(report)
    scratch = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    try:
        image_bytes = size * size * CHANNELS
        counts = {split: len(listing.labels[split]) for split in SPLITS}
        with ExitStack() as opened:
            files = {split: opened.enter_context((scratch / f"{split}.pixels").open("wb")) for split in SPLITS}
            for split in SPLITS:
                files[split].truncate(counts[split] * image_bytes)
            decode_all(source.images(), size, {split: file.fileno() for split, file in files.items()}, sum(counts.values()), report)
        report("checksumming decoded images", 0, 0)
        meta = _describe(scratch, listing, size)
        meta["source"] = source.title
        body = json.dumps(meta, sort_keys=True)
        (scratch / "meta.json").write_text(
            json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}), encoding="utf-8"
        )
        for path in scratch.iterdir():
            sync_file(path)
        sync_folder(scratch)
        scratch.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # nothing there after the rename


def _describe(scratch: Path, listing: Listing, size: int) -> dict[str, Any]:
    """Write the labels, read the pixels once, and gather all that meta.json says."""
    meta: dict[str, Any] = {"format": FORMAT, "size": size, "classes": list(listing.classes), "files": {}, "fingerprints": {}}
    for split in SPLITS:
        labels = listing.labels[split].astype("<i8").tobytes()
        (scratch / f"{split}.labels").write_bytes(labels)
        pixels = scratch / f"{split}.pixels"
        histogram = np.zeros((CHANNELS, 256), np.int64)
        content = hashlib.sha256()
        fingerprint = hashlib.sha256(json.dumps([listing.classes, size, len(listing.labels[split])]).encode() + labels)
        for block in _blocks(pixels, size * size * CHANNELS):
            content.update(block)
            fingerprint.update(block)
            values = np.frombuffer(block, np.uint8)
            for channel in range(CHANNELS):
                histogram[channel] += np.bincount(values[channel::CHANNELS], minlength=256)
        if split == "train":
            meta["mean"], meta["std"] = _moments(histogram)
        meta["fingerprints"][split] = fingerprint.hexdigest()[:32]
        meta["files"][pixels.name] = {"bytes": pixels.stat().st_size, "sha256": content.hexdigest(), "spots": _spots(pixels)}
        label_hash = hashlib.sha256(labels).hexdigest()
        meta["files"][f"{split}.labels"] = {"bytes": len(labels), "sha256": label_hash, "spots": label_hash}
    return meta


def _moments(histogram: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Mean and std of each channel, from counts: exact sums, so the same on every machine."""
    values = np.arange(256)
    count = histogram.sum(axis=1)
    mean = (histogram * values).sum(axis=1) / count
    variance = (histogram * values**2).sum(axis=1) / count - mean**2
    return mean.tolist(), np.sqrt(np.maximum(variance, 1.0)).tolist()  # at least one grey level, for a set of one flat colour


def _open_seed(folder: Path) -> Decoded | None:
    try:
        return _open(folder)
    except FileNotFoundError:  # other images, or another size: nothing is wrong with the seed
        return None
    except (_UnusableError, OSError) as error:
        log.warning("decoded images in %s cannot be used (%s); going on without them", folder, error)
        return None


def _open(folder: Path) -> Decoded:
    meta = _meta(folder)
    for name, facts in meta["files"].items():
        path = folder / name
        if not path.exists() or path.stat().st_size != facts["bytes"]:
            raise _UnusableError(f"{name} does not have its {facts['bytes']} bytes")
        if (_spots(path) if name.endswith(".pixels") else _sha256(path)) != facts["spots"]:
            raise _UnusableError(f"{name} does not match its checksum")
    size, splits = meta["size"], []
    for split in SPLITS:
        labels = np.frombuffer((folder / f"{split}.labels").read_bytes(), "<i8").astype(np.int64)
        pixels = np.memmap(folder / f"{split}.pixels", np.uint8, mode="c", shape=(len(labels), size, size, CHANNELS))
        splits.append(Split(np.asarray(pixels), labels, meta["fingerprints"][split]))
    train, test = splits
    return Decoded(folder, tuple(meta["classes"]), train, test, np.array(meta["mean"]), np.array(meta["std"]))


def _meta(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        envelope = json.loads((folder / "meta.json").read_bytes())
        if hashlib.sha256(envelope["body"].encode()).hexdigest() != envelope["sha256"]:
            raise _UnusableError("meta.json does not match its checksum")
        body: dict[str, Any] = json.loads(envelope["body"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _UnusableError("meta.json is not readable") from None
    return body


def _blocks(path: Path, image_bytes: int) -> Iterator[bytes]:
    """The file in pieces of whole images."""
    piece = max(1, _READ_BYTES // image_bytes) * image_bytes
    with path.open("rb") as file:
        while block := file.read(piece):
            yield block


def _spots(path: Path) -> str:
    seen = hashlib.sha256()
    with path.open("rb") as file:
        last = max(0, path.stat().st_size - _SPOT_BYTES)
        for spot in range(_SPOTS):
            file.seek(last * spot // (_SPOTS - 1))
            seen.update(file.read(_SPOT_BYTES))
    return seen.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
