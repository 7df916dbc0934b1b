"""Processes that a benchmark starts, and their end: whatever happens, nothing of what was started here is left running.

A process is asked to stop first and killed after a bound, with everything that it started in turn. Only these are ever signalled, by
psutil's handle, which compares start times, so a number that the kernel has given to somebody else meanwhile is left alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

from ddp_trainer.parentage import die_with

Found = TypeVar("Found")

STOP_SECONDS = 15.0
LOOK_SECONDS = 0.02
LOG_TAIL_LINES = 15


class BenchmarkError(RuntimeError):
    """Something that was to be measured did not run; with the end of its log."""


def end_in_order_when_told() -> None:
    """Make SIGTERM leave through the `finally` blocks, as Ctrl-C does; call it first in a benchmark."""
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))


@contextlib.contextmanager
def started(
    command: Sequence[str], log: Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command with its output in `log`; at the end of the block it and its descendants are stopped."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            # killed when the benchmark is, even where it had no time for a `finally`
            preexec_fn=functools.partial(die_with, os.getpid()),  # noqa: PLW1509  # a benchmark has no second thread
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started; blocks for `STOP_SECONDS` at most."""
    relatives = family(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for relative in relatives:
        with contextlib.suppress(psutil.Error):
            relative.kill()
    process.wait()


def family(pid: int) -> list[psutil.Process]:
    """The process and its descendants; empty once it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def wait_for(look: Callable[[], Found | None], process: subprocess.Popen[bytes], log: Path, bound_seconds: float, what: str) -> Found:
    """Look until something is there.

    Raises:
        BenchmarkError: it was not there within the bound, or the process ended without it.
    """
    deadline = time.monotonic() + bound_seconds
    while True:
        ended = process.poll() is not None  # asked first, so that what it did last is still seen
        found = look()
        if found is not None:
            return found
        if ended:
            raise BenchmarkError(f"waiting for {what}: the process left with {process.returncode}; its log ends:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"waiting for {what}: not there after {bound_seconds:.0f} s; the log ends:\n{tail(log)}")
        time.sleep(LOOK_SECONDS)


def tail(log: Path) -> str:
    """The end of a log, for an error."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])
