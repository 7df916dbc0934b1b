"""Writing so that a crash leaves the old content or the new, never a mixture; and the one pass that writes and hashes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ddp_trainer.syncing import sync_folder

TEMPORARY = ".tmp-"
"""Names that begin so are nobody's yet, and are cleared by the next writer."""
BLOCK_BYTES = 4 * 1024 * 1024
"""Written and hashed at a time: large beside a call's cost, small beside the caches."""


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()  # fsync of an unflushed file makes nothing durable
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_hashed(path: Path, buffers: Iterable[memoryview | bytes], pace: Callable[[int], None]) -> tuple[int, str]:
    """Write a new file and make it durable, hashing on the way.

    Args:
        path: of the file.
        buffers: its content, in order.
        pace: called with the size of each block after it was written.

    Returns:
        Bytes, and SHA-256 in hex.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for buffer in buffers:
            content = memoryview(buffer).cast("B")
            for start in range(0, len(content), BLOCK_BYTES):
                block = content[start : start + BLOCK_BYTES]
                file.write(block)
                digest.update(block)
                size += len(block)
                pace(len(block))
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


class Pace:
    """Bounds the speed of several threads together by letting each pause after a block."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self._bytes_per_second = bytes_per_second
        self._started = time.monotonic()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, size: int) -> None:
        """`size` bytes more have been written."""
        if self._bytes_per_second:
            with self._lock:
                self._bytes += size
                ahead_seconds = self._bytes / self._bytes_per_second - (time.monotonic() - self._started)
            time.sleep(max(0.0, ahead_seconds))
