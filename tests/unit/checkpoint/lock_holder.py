"""A program, not a test: holds the lock of the run directory given, prints "held", and stays until its input ends or it is killed."""

from __future__ import annotations

import sys
from pathlib import Path

from ddp_trainer.checkpoint.lock import RunLock

lock = RunLock.acquire(Path(sys.argv[1]), 0)
print("held", flush=True)
sys.stdin.read()
lock.release()
