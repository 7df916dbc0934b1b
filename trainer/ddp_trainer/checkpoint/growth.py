"""Whether a folder that is being filled still changes: a download's sign of life, whichever package makes it.

What is asked is the disk. fsspec has callbacks for this, but a copy from another volume (`file://`) calls none before its end. Work that
changes nothing on disk, such as hashing what has come, needs a fact of its own. Making it durable has none: fsync says nothing before it
returns, so while one lasts there is no sign of life.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK_SECONDS = 1.0
"""Between two looks: far below anybody's patience."""


@contextlib.contextmanager
def watched(folder: Path, changed: Callable[[], None], fact: Callable[[], float] = lambda: 0.0) -> Iterator[None]:
    """Meanwhile call `changed`, on a thread of its own, once per `LOOK_SECONDS` in which what lies below `folder` has changed in size.

    So it is where `fact`, which moves with work that changes no size, gives another value than at the look before. None of it is called
    after the block. `changed` raises nothing; a folder that cannot be looked at has not changed.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(folder, changed, fact, over), name="growth", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(folder: Path, changed: Callable[[], None], fact: Callable[[], float], over: threading.Event) -> None:
    known_sizes, known_fact = None, fact()
    while not over.wait(LOOK_SECONDS):  # before the first look: most blocks are over by then, and a network volume's folder is not walked
        sizes, moved = _sizes(folder) or known_sizes, fact()
        has_grown = known_sizes is not None and sizes != known_sizes
        if has_grown or moved != known_fact:
            changed()
        known_sizes, known_fact = sizes, moved


def _sizes(folder: Path) -> tuple[int, int] | None:
    """Bytes and blocks of all files below a folder; None where that cannot be said now, for instance since one has just gone."""
    try:
        found = [path.lstat() for path in folder.rglob("*")]
    except OSError:
        return None
    # blocks too: a package that writes the parts of a file out of order gives it its last size at once
    return sum(stat.st_size for stat in found), sum(stat.st_blocks for stat in found)
