"""Keeps freed memory in the process: a training step frees and takes the same hundreds of megabytes again and again.

glibc gives a large block back to the kernel when it is freed, and the next step pays for every page of it anew, which on a CPU is a tenth
of the time of a step of ResNet-50. The peak is what it was: only the valleys between steps are filled.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""
_NEVER_BYTES = 2**31 - 1
_LARGEST_BYTES = 32 * 1024 * 1024
"""The largest that glibc takes; blocks above it come from the kernel and go back to it."""


def keep_freed_memory() -> None:
    """From now on in this process and its forks. Nothing where there is no glibc, or another allocator in its place."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _NEVER_BYTES)
