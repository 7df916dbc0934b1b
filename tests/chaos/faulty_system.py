"""Faults of the operating system, for all processes of a run: they are forked from the one in which `install` was called.

The plan stands in $CHAOS (JSON), all of it optional:
    kill_before            a window of a commit (`WINDOWS`): whoever comes there in the writer is killed by SIGKILL, once
    kill_whole             ... and with it the whole gang, as a lost machine would end it
    skip                   it is passed so many times before that
    fsync_fails            errno: in the writer every fsync fails with it as long as the file `fault_while` exists
    write_fails            errno: ... so long every write to a file of tensors stops half-way, and fails with it
    listing_fails          errno: in ranks listing the checkpoints fails with it as long as the file `fault_while` exists
    kill_in_snapshot       [rank, n]: that rank is killed when its n-th snapshot in memory is half written, once
    once                   a file that exists once the kill has happened
    clock_back             a file: while it exists, time.time() says an hour less
    network                name of the network namespace in which all of it runs

Only this program's own view is changed: never the machine's clock, files or limits.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WINDOWS = {
    "fsync of data": ("fsync", ".safetensors"),
    "write of the manifest": ("fsync", ".tmp-manifest"),
    "rename": ("rename", "step-"),
    "fsync after the rename": ("fsync", "checkpoints"),
    "latest": ("replace", "latest"),
    "retention": ("rename", ".tmp-step-"),
}
"""Windows of a commit, by the operation before which the kill comes: function, and what the file's name contains or begins with."""
HOUR_SECONDS = 3600.0
_CLONE_NEWNET = 0x40000000
_real_time = time.time
_clock_back: str | None = None


def _time() -> float:
    return _real_time() - (HOUR_SECONDS if _clock_back and os.path.exists(_clock_back) else 0.0)  # noqa: PTH110  # called thousands of times


def watch_clock() -> None:
    """Must come before the program is imported: default arguments hold on to the clock that they find."""
    time.time = _time


def install(plan: dict[str, Any], supervisor: int) -> None:
    """Called in a run's first process; `supervisor` is its number, whose end is the end of all."""
    global _clock_back  # noqa: PLW0603  # what is replaced is a module's, too
    _clock_back = plan.get("clock_back")
    if "network" in plan:
        _enter(plan["network"])
    if "kill_before" in plan:
        _kill_before(plan, supervisor)
    if "fsync_fails" in plan:
        _fail_fsync(plan["fsync_fails"], plan["fault_while"])
    if "write_fails" in plan:
        _fail_write(plan["write_fails"], plan["fault_while"])
    if "listing_fails" in plan:
        _fail_listing(plan["listing_fails"], plan["fault_while"])
    if "kill_in_snapshot" in plan:
        _kill_in_snapshot(*plan["kill_in_snapshot"], Path(plan["once"]))


def command() -> str:
    """The name of this process, as `ps` shows it."""
    return Path("/proc/self/comm").read_text().strip()


def _enter(network: str) -> None:
    with Path("/run/netns", network).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def _kill_before(plan: dict[str, Any], supervisor: int) -> None:
    function, mark = WINDOWS[plan["kill_before"]]
    left, has_renamed = [plan.get("skip", 0)], [False]

    def is_it(path: str) -> bool:
        name = Path(path).name
        return name.endswith(mark) if mark in {".safetensors", "checkpoints"} else name.startswith(mark)

    def look(called: str, path: str) -> None:
        if called != function or not is_it(path) or Path(plan["once"]).exists() or command() != "ddp-writer":
            return
        if mark == "checkpoints" and not has_renamed[0]:
            return
        left[0] -= 1
        if left[0] >= 0:
            return
        Path(plan["once"]).touch()
        if plan.get("kill_whole"):
            os.kill(supervisor, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    fsync, rename, replace = os.fsync, os.rename, os.replace

    def faulty_fsync(descriptor: int) -> None:
        look("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def faulty_rename(source: Any, target: Any) -> None:
        look("rename", str(target))
        rename(source, target)
        has_renamed[0] = True

    def faulty_replace(source: Any, target: Any) -> None:
        look("replace", str(target))
        replace(source, target)

    os.fsync, os.rename, os.replace = faulty_fsync, faulty_rename, faulty_replace  # type: ignore[assignment]


def _fail_fsync(number: int, while_there: str) -> None:
    fsync: Callable[[int], None] = os.fsync

    def faulty(descriptor: int) -> None:
        if Path(while_there).exists() and command() == "ddp-writer":
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    os.fsync = faulty  # type: ignore[assignment]


def _fail_write(number: int, while_there: str) -> None:
    class FullFile(io.FileIO):
        def write(self, data: Any, /) -> int:
            super().write(memoryview(data)[: len(data) // 2])  # a volume that fills takes the first part
            raise OSError(number, os.strerror(number))

    path_open: Callable[..., Any] = Path.open

    def faulty(self: Path, mode: str = "r", *arguments: Any, **words: Any) -> Any:
        if mode == "wb" and self.suffix == ".safetensors" and Path(while_there).exists() and command() == "ddp-writer":
            return io.BufferedWriter(FullFile(self, "w"))
        return path_open(self, mode, *arguments, **words)

    Path.open = faulty  # type: ignore[method-assign,assignment]


def _fail_listing(number: int, while_there: str) -> None:
    scandir = os.scandir

    def faulty(path: Any = ".") -> Any:
        if str(path).endswith("checkpoints") and Path(while_there).exists() and command().startswith("ddp-rank-"):
            raise OSError(number, os.strerror(number))
        return scandir(path)

    os.scandir = faulty  # type: ignore[assignment]


def _kill_in_snapshot(rank: int, n: int, once: Path) -> None:
    from ddp_trainer.checkpoint.snapshot import SnapshotMemory

    write, seen = SnapshotMemory.write, [0]

    def faulty(self: SnapshotMemory, fill: Callable[[int], None], describe: Any, *, durable: bool) -> Any:
        def torn(slot: int) -> None:
            seen[0] += 1
            if seen[0] == n and command() == f"ddp-rank-{rank}" and not once.exists():
                once.touch()
                block = self.block(slot)
                block[: len(block) // 2] = os.urandom(len(block) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            fill(slot)

        return write(self, torn, describe, durable=durable)

    SnapshotMemory.write = faulty  # type: ignore[method-assign]


def plan() -> dict[str, Any]:
    """This run's."""
    found: dict[str, Any] = json.loads(os.environ.get("CHAOS", "{}"))
    return found
