"""No process outlives its parent: the kernel ends it, whatever ended the parent. What it leaves behind has a new one."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; ends it now if the parent is gone already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Be the parent of all that processes below this one leave behind when they end: it must wait for them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def children(pid: int) -> set[int]:
    """Those of its main thread, and those that it has adopted; ended ones that nobody has waited for among them.

    None where the kernel does not tell (it is built without CONFIG_PROC_CHILDREN).
    """
    try:
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()}
    except OSError:
        return set()
