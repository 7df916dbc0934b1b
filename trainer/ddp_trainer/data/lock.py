"""One process at a time: a file lock that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ddp_trainer.data.source import Report
from ddp_trainer.errors import DataError

WAIT_SECONDS = 3600.0
"""Decoding a million photographs takes about this long on a small machine; nothing shorter tells slow from stuck."""
_POLL_SECONDS = 0.05
_REPORT_EVERY_POLLS = 20


@contextmanager
def exclusive(path: Path, holder: str, report: Report, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock `path` for the duration of the block.

    Waits up to `wait_seconds` for `holder`, telling `report` so that a watchdog sees life.

    Raises:
        DataError: the wait was in vain.
        OSError: the lock file cannot be made.
    """
    deadline = time.monotonic() + wait_seconds
    with path.open("ab") as file:
        for poll in count():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DataError(
                        f"waited {wait_seconds:.0f} s for {holder}, which holds {path}; end it, or set another data.cache_dir"
                    ) from None
                if poll % _REPORT_EVERY_POLLS == 0:
                    report(f"waiting for {holder}", 0, 0)
                time.sleep(_POLL_SECONDS)
        yield
