"""The least that a durable checkpoint can cost: one pass over the bytes that writes and hashes them, and one fsync.

A process of its own, so that it shares no interpreter with training. Each line on its input is a path; it writes the bytes there and
answers with the seconds that took. `python write_floor.py BYTES`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from pathlib import Path

BLOCK_BYTES = 4 * 1024 * 1024


def write_once(path: Path, data: memoryview) -> float:
    """Seconds to write, hash and sync `data` in a new file."""
    path.unlink(missing_ok=True)
    started, digest = time.perf_counter(), hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, len(data), BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES]
            file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


def main() -> None:
    """Serve until the input ends."""
    data = memoryview(os.urandom(int(sys.argv[1])))
    with contextlib.suppress(BrokenPipeError):  # whoever asked has ended
        for line in sys.stdin:
            print(write_once(Path(line.strip()), data), flush=True)


if __name__ == "__main__":
    main()
