"""A folder takes another's place: a writer that is killed at any moment leaves one of the two under the name.

Linux exchanges two names in one step. Where the file system cannot (NFS, some FUSE ones), the old folder is moved aside first; a writer
that is killed before the new one has the name leaves it there, and `give_back` undoes that at the next start.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from ddp_trainer.checkpoint.durable import TEMPORARY
from ddp_trainer.syncing import sync_folder

ASIDE = f"{TEMPORARY}aside-"
"""What begins so was moved aside; the rest is the name it had."""
_HERE = -100
"""AT_FDCWD of <fcntl.h>: paths are as for any other call."""
_EXCHANGE = 2
"""RENAME_EXCHANGE of <linux/fs.h>."""


def replace_folder(old: Path, new: Path) -> None:
    """Give `new` the name of `old`, which is beside it. What `new` names afterwards, if anything, is the old one: the caller removes it.

    Raises:
        OSError: it could not be moved; then the old one has its name.
    """
    if _exchange(old, new):
        return
    aside = old.with_name(f"{ASIDE}{old.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed writer, and there is one with the name again
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    sync_folder(old.parent)  # before the only other one goes
    shutil.rmtree(aside, ignore_errors=True)


def give_back(root: Path) -> None:
    """Folders that were moved aside, and whose place nothing has taken, get their names again. Only while nobody writes."""
    for aside in root.glob(f"{ASIDE}*"):
        home = root / aside.name.removeprefix(ASIDE)
        if not home.exists():
            aside.rename(home)


def _exchange(one: Path, other: Path) -> bool:
    """In one step; False if that cannot be done here, whatever the reason: the way without it has the words for real errors."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # not glibc 2.28 or newer
        return False
    return bool(renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
