"""Making durable what has been written: the content of a file, and the names in a folder, which are a matter of their own."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Make the content of a file durable that somebody else has written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems refuse to sync a folder, and then need not
            raise
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
