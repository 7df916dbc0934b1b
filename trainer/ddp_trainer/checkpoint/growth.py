"""Whether a folder that is being filled still changes: a download's sign of life, whichever package makes it.

What is asked is the disk. fsspec has callbacks for this, but a copy from another volume (`file://`) calls none before its end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK_SECONDS = 1.0
"""Between two looks: far below anybody's patience."""


@contextlib.contextmanager
def watched(folder: Path, changed: Callable[[], None]) -> Iterator[None]:
    """Meanwhile call `changed`, on a thread of its own, once per `LOOK_SECONDS` in which what lies below `folder` has changed in size.

    None of it is called after the block. `changed` raises nothing; a folder that cannot be looked at has not changed.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(folder, changed, over), name="growth", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(folder: Path, changed: Callable[[], None], over: threading.Event) -> None:
    known = _sizes(folder)
    while not over.wait(LOOK_SECONDS):
        sizes = _sizes(folder)
        if sizes is not None and sizes != known:
            known = sizes
            changed()


def _sizes(folder: Path) -> tuple[int, int] | None:
    """Bytes and blocks of all files below a folder; None where that cannot be said now, for instance since one has just gone."""
    try:
        found = [path.lstat() for path in folder.rglob("*")]
    except OSError:
        return None
    # blocks too: a package that writes the parts of a file out of order gives it its last size at once
    return sum(stat.st_size for stat in found), sum(stat.st_blocks for stat in found)
