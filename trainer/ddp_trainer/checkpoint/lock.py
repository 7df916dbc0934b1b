"""The run directory's lock: one writer at a time, and every start of its ranks has a higher attempt number than the one before.

The lock is the kernel's (`flock`), so it goes with its holder, however that ends. The attempt number is the fencing token: it names
temporary folders and stands in manifests and events.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import Self

from ddp_trainer.checkpoint.durable import write_durably
from ddp_trainer.checkpoint.loading import patiently
from ddp_trainer.errors import DataError, PeerLostError

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


class TakenOverError(PeerLostError):
    """Another start of this run has the run directory: nothing there belongs to this one any more."""


class RunLock:
    """Held by node 0's agent for as long as it lives."""

    def __init__(self, descriptor: int, counter: Path) -> None:
        self._descriptor = descriptor
        self._counter = counter
        self._drawn = 0

    @classmethod
    def acquire(cls, run_dir: Path, wait_seconds: float) -> Self:
        """Take the lock, waiting at most `wait_seconds` for its holder to end.

        Raises:
            DataError: held by another run (and no wait was configured), or the directory cannot be written.
            PeerLostError: still held after the wait; trying again later is right.
        """
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataError(
                f"the run directory {run_dir} cannot be written: {error.strerror}; give another with --run-dir, or fix its owner and mode"
            ) from None
        _wait(descriptor, run_dir, wait_seconds)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(descriptor, run_dir / "attempt")

    def next_attempt(self) -> int:
        """Draw a number higher than any before it in this run; durable before it is used, unless the volume does not take it.

        Blocks for some seconds where the counter cannot be read at once.

        Raises:
            DataError: the counter is damaged; or it cannot be read, and this start has not begun to train.
            PeerLostError: it cannot be read any more; trying again later is right.
            TakenOverError: somebody else has drawn since, as on a volume that has lost its locks.
        """
        try:
            before = patiently(self._counter, _number_in)
        except DataError as error:
            if not self._drawn:
                raise
            # counted on unseen, it might be another start's number by now, and the fence would let both write
            raise PeerLostError(f"{error}; the state stays in the nodes' memory, for the start that can read it") from None
        except ValueError:
            raise DataError(
                f"{self._counter} holds no number; write one into it that is higher than every attempt in events.jsonl"
            ) from None
        if self._drawn and before > self._drawn:  # a higher number of ours would turn the fence against the rightful one
            raise TakenOverError(
                f"{self._counter.parent} has been taken over by another start of this run (attempt {before}, ours is {self._drawn}); "
                f"nothing more is written here; see who runs it"
            )
        self._drawn = max(before, self._drawn) + 1
        try:
            write_durably(self._counter, f"{self._drawn}\n".encode())
        except OSError as error:  # a full disk must not end a run that can still train
            _log.warning("%s cannot be written: %s; free space before the next start", self._counter, error.strerror)
        return self._drawn

    def release(self) -> None:
        """Let the next run in."""
        os.close(self._descriptor)


def _number_in(counter: Path) -> int:
    try:
        return int(counter.read_text())
    except FileNotFoundError:  # not asked for beforehand: an answer that fails would pass for a run that has drawn none
        return 0


def _wait(descriptor: int, run_dir: Path, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    is_told = not wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                os.close(descriptor)
                raise DataError(f"{run_dir / 'lock'} cannot be locked: {error.strerror}; the volume must support flock") from None
        else:
            return
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        if not is_told:
            _log.info("%s is in use (process %s); waiting up to %.0f s for it to end", run_dir, holder, wait_seconds)
            is_told = True
        if time.monotonic() >= deadline:
            os.close(descriptor)
            if wait_seconds:
                raise PeerLostError(f"{run_dir} is still in use (process {holder}) after {wait_seconds:.0f} s; its holder must end first")
            raise DataError(f"{run_dir} is in use by another run (process {holder}); wait for it, stop it, or give another --run-dir")
        time.sleep(_POLL_SECONDS)
