"""Freed memory stays with the process, where the host computes.

A training step frees most of what it has allocated, and the C library gives all of that but 64 MB back to the kernel: the next step takes
it again page by page, each of them filled with zeros first. What a process takes at most is the same either way, but kept, it has that
at all times.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""
_NEVER = -1
_LARGEST = 32 << 20
"""What glibc would at most choose by itself, had it not been told anything: larger blocks still go back at once."""


def keep_freed_memory() -> bool:
    """Tell the C library, for the life of this process; False where it is none that can be told (musl, for one)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # told of one of the two, it no longer adapts the other, which then is 128 KB: almost every tensor would be mapped anew
    return bool(mallopt and mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
