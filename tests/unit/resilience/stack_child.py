"""A program, not a test: a rank as far as stacks are concerned. Its arguments: what it does, and the path it is armed with.

It says "ready" when it is about to do it, and does it without end.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

from ddp_trainer.resilience import stacks


def say_ready():
    os.write(1, b"ready\n")


def sleeps():
    say_ready()
    time.sleep(3600)


def holds_the_lock():
    """In a C call that does not release the interpreter lock."""
    waiting = threading.Thread(target=wants_the_lock, daemon=True)
    waiting.start()
    call = ctypes.PyDLL(None).sleep
    say_ready()
    while True:
        call(3600)  # a signal ends it


def wants_the_lock():
    while True:
        time.sleep(0.001)


def computes():
    say_ready()
    while True:
        pass


def has_threads():
    started = threading.Barrier(4)
    for _ in range(3):
        threading.Thread(target=helps, args=(started,), daemon=True).start()
    started.wait()
    say_ready()
    time.sleep(3600)


def helps(started):
    started.wait()
    threading.Event().wait()


def is_in_the_kernel():
    """State D, for real: in vfork, whose child opens a named pipe that nobody writes to."""
    say_ready()
    os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, sys.argv[3], os.O_RDONLY, 0)])


def has_a_thread_in_the_kernel():
    threading.Thread(target=is_in_the_kernel_later, daemon=True).start()
    time.sleep(3600)


def is_in_the_kernel_later():
    """posix_spawn keeps the interpreter's lock: a main thread that is still on its way to its sleep would never come there."""
    main = threading.main_thread().ident
    while sys._current_frames()[main].f_code is not has_a_thread_in_the_kernel.__code__:
        time.sleep(0.001)
    is_in_the_kernel()


def goes_deep(depth=60):
    if depth:
        goes_deep(depth - 1)
    else:
        sleeps()


def heeds_the_user():
    say_ready()
    for line in sys.stdin:
        os.write(1, line.encode())


if sys.argv[1] == "unarmed":
    sleeps()
stacks.arm(Path(sys.argv[2]))
globals()[sys.argv[1]]()
