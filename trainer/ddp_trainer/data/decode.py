"""From encoded images to raw pixels in one file per split: in parallel, each image once.

Threads are enough, because Pillow decodes outside Python's lock. Pixels are written at their position with `pwrite`, so the order in
which images arrive does not matter, memory stays small, and a full disk is an error instead of the SIGBUS that a memory map would get.
"""

from __future__ import annotations

import io
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ddp_trainer.cores import cores
from ddp_trainer.data.source import Encoded, Report
from ddp_trainer.errors import DataError

CHUNK_IMAGES = 128
"""Images handed to a thread at once: with one at a time the hand-over would cost as much as decoding a 32-pixel image."""
CHUNKS_AHEAD = 4
"""Chunks in flight for each thread; bounds the memory held by encoded images."""
MAX_THREADS = 16
_UNDECODABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are cut short, damaged or of no known format."""


def decode(encoded: Encoded, size: int) -> NDArray[np.uint8]:
    """One image as uint8 [size, size, 3]: the largest centred square, scaled, in RGB.

    Raises:
        DataError: naming the file that cannot be decoded.
    """
    try:
        if isinstance(encoded.content, bytes):
            with Image.open(io.BytesIO(encoded.content)) as image:
                if min(image.size) > size:
                    image.draft("RGB", (size, size))  # lets JPEG scale down by a power of two while it decodes
                return _square(image if image.mode == "RGB" else image.convert("RGB"), size)
        if encoded.content.shape[:2] == (size, size):
            return encoded.content
        return _square(Image.fromarray(encoded.content), size)
    except _UNDECODABLE as error:
        reason = "it is of no image format known here" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"cannot decode the image {encoded.name}: {reason}; replace it, or remove it") from None


def _square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)


def decode_all(images: Iterable[Encoded], size: int, files: Mapping[str, int], total: int, report: Report) -> None:
    """Decode `images` into open files, each at its position.

    Args:
        images: in any order; read by this thread.
        size: side of the square, in pixels.
        files: file descriptor of each split.
        total: how many images there are, for `report`.
        report: called in this thread after each chunk.

    Raises:
        DataError: an image cannot be decoded; the first such is named.
        OSError: the disk is full or fails.
    """
    threads = min(MAX_THREADS, cores())
    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        pending: deque[Future[int]] = deque()
        try:
            for chunk in _chunks(images):
                pending.append(pool.submit(_decode_chunk, chunk, size, files))
                while len(pending) > threads * CHUNKS_AHEAD:
                    done += pending.popleft().result()
                    report("decoding images", done, total)
            while pending:
                done += pending.popleft().result()
                report("decoding images", done, total)
        finally:
            for future in pending:
                future.cancel()


def _decode_chunk(chunk: list[Encoded], size: int, files: Mapping[str, int]) -> int:
    for encoded in chunk:
        pixels = decode(encoded, size)
        _write_at(files[encoded.split], encoded.position * pixels.nbytes, pixels.tobytes())
    return len(chunk)


def _write_at(file: int, offset: int, content: bytes) -> None:
    while content:  # a nearly full disk takes a part first, and fails at the next call
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _chunks(images: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, CHUNK_IMAGES)):
        yield chunk
