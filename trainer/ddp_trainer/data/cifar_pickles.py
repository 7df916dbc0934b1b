"""CIFAR-10 as torchvision stores it: the folder cifar-10-batches-py, given as a path or fetched by torchvision.

The batches are Python pickles, and a pickle can run any code, so they are read with an unpickler that knows NumPy arrays and nothing
else. Torchvision downloads, verifies the checksum and unpacks; the progress reported here is the size of its partial file.
"""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddp_trainer.data.source import Encoded, Listing, Report
from ddp_trainer.errors import DataError

FOLDER = "cifar-10-batches-py"
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_SIDE_PIXELS = 32
_ARCHIVE, ARCHIVE_BYTES = "cifar-10-python.tar.gz", 170_498_071
"""What torchvision downloads."""
_POLL_SECONDS = 0.5
_SILENCE_SECONDS = 30.0
"""A download that receives nothing for this long has failed; urllib alone would wait for ever."""


class CifarPickles:
    """The folder that torchvision's CIFAR10 reads."""

    def __init__(self, folder: Path) -> None:
        """`folder` is cifar-10-batches-py itself."""
        self.folder, self.title = folder.resolve(), f"the CIFAR-10 folder {folder}"

    def identity(self) -> str:
        """Path, and size and time of each file."""
        stats = [(name, (self.folder / name).stat()) for name in self._files()]
        return f"pickles {self.folder} " + " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)

    def listing(self, report: Report) -> Listing:
        """Class names and labels."""
        report("reading CIFAR-10 labels", 0, 0)
        names = _entry(self.folder / "batches.meta", "label_names")
        labels = {split: np.concatenate([_labels(self.folder / name) for name in files]) for split, files in _BATCHES.items()}
        for split, values in labels.items():
            if not len(values) or values.min() < 0 or values.max() >= len(names):
                raise DataError(
                    f"{self.title}: the {split} labels are not all in 0 ... {len(names) - 1}; copy or download the folder again"
                )
        return Listing(tuple(names), labels)

    def images(self) -> Iterator[Encoded]:
        """Pixels, batch after batch."""
        for split, files in _BATCHES.items():
            position = 0
            for name in files:
                for pixels in _pixels(self.folder / name):
                    yield Encoded(split, position, f"{self.folder / name} image {position}", pixels)
                    position += 1

    def _files(self) -> list[str]:
        names = ["batches.meta", *_BATCHES["train"], *_BATCHES["test"]]
        for name in names:
            if not (self.folder / name).is_file():
                raise DataError(f"{self.title} has no file {name!r}; copy or download the folder again")
        return names


class CifarDownload:
    """The same, fetched into a folder first. Needs the network once; the decoded cache does without."""

    def __init__(self, into: Path) -> None:
        """`into` will hold the archive and the unpacked folder."""
        self.title = "the download of CIFAR-10"
        self._into, self._pickles = into, CifarPickles(into / FOLDER)

    def identity(self) -> str:
        """There is only one CIFAR-10, and torchvision verifies its checksum."""
        return f"download {ARCHIVE_BYTES}"

    def listing(self, report: Report) -> Listing:
        """Download if need be; blocks as long as that takes, but never longer than 30 s without a byte."""
        from torchvision.datasets import CIFAR10  # importing torchvision costs a second, and only this needs it

        try:
            self._into.mkdir(parents=True, exist_ok=True)
            _watched(lambda: CIFAR10(str(self._into), download=True), self._into / _ARCHIVE, report)
        except (OSError, RuntimeError, EOFError) as error:
            raise DataError(
                f"downloading CIFAR-10 into {self._into} failed: {error}; try again, or without a network use data.source=sample, "
                f"or fetch {_ARCHIVE} elsewhere, unpack it and give data.source=<path of {FOLDER}>"
            ) from None
        return self._pickles.listing(report)

    def images(self) -> Iterator[Encoded]:
        """Pixels, batch after batch."""
        return self._pickles.images()


def _watched(download: Callable[[], Any], partial: Path, report: Report) -> None:
    """Run `download`, reporting how large its file has become."""
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_POLL_SECONDS):
            report("downloading CIFAR-10 (bytes)", partial.stat().st_size if partial.exists() else 0, ARCHIVE_BYTES)

    watcher = threading.Thread(target=watch, name="download-progress", daemon=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_SECONDS)
    watcher.start()
    try:
        download()
    finally:
        socket.setdefaulttimeout(before)
        finished.set()
        watcher.join()


class _ArraysOnly(pickle.Unpickler):
    """Knows what CIFAR's pickles, written by Python 2 or 3, consist of."""

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined] # noqa: SLF001 - named in every array pickle
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined] # noqa: SLF001 - named in every array pickle
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module, name) in self._KNOWN:
            return self._KNOWN[module, name]
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no CIFAR-10 batch does")


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def _entry(path: Path, key: str) -> Any:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
        return content[key]
    except (OSError, EOFError, pickle.UnpicklingError, ValueError, KeyError, TypeError, AttributeError, IndexError, MemoryError) as error:
        reason = f"no entry {key!r}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} is not a CIFAR-10 batch, or is truncated: {reason}; copy or download the folder again") from None


def _labels(path: Path) -> NDArray[np.int64]:
    return np.asarray(_entry(path, "labels"), np.int64)


def _pixels(path: Path) -> NDArray[np.uint8]:
    """uint8 [n, 32, 32, 3]; stored as rows of all red, all green, all blue values."""
    data = np.asarray(_entry(path, "data"))
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * _SIDE_PIXELS**2 or len(data) != len(_labels(path)):  # noqa: PLR2004 - images x bytes
        raise DataError(f"{path}: data is {data.dtype} {list(data.shape)}, not uint8 [labels, 3072]; copy or download the folder again")
    return np.ascontiguousarray(data.reshape(-1, 3, _SIDE_PIXELS, _SIDE_PIXELS).transpose(0, 2, 3, 1))
