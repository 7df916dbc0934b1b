"""A program, not a test: a writer that is killed by SIGKILL between any two operations of a commit, one process per place.

Usage: killed_writer.py FOLDER. In each scenario it copies the starting state, forks a writer that kills itself before its n-th operation
(which is after the one before it), and prints one JSON line: {"scenario", "place", "killed", "root"}; n grows until a writer lives.

The operations are what the writer calls in the operating system (open, write, fsync, rename, ...), seen through the interpreter's own
profiling hook: the store is not patched, and an operation that is added later is found by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import torch as saved_tensors
from small_checkpoints import manifest_of, tensors_of

from ddp_trainer.checkpoint.store import CheckpointStore

KEEP = 2
SCENARIOS = {"next": ([1, 2], 3), "first": ([], 1), "again": ([1], 1)}
"""Steps that are there already, and the step that is committed."""
OPERATIONS = {
    "open",
    "write",
    "flush",
    "fsync",
    "close",
    "rename",
    "replace",
    "mkdir",
    "rmdir",
    "unlink",
    "serialize_file",
    "listdir",
    "scandir",
}


def kill_at(n: int, place: int) -> None:
    """Have this process kill itself at its n-th operation from now on, having written the operation's name to `place`."""
    seen = count()

    def look(frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in OPERATIONS and next(seen) == n:
            sys.setprofile(None)
            os.pwrite(place, f"{function.__name__} in {frame.f_code.co_name}".encode(), 0)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)


def commit(root: Path, step: int) -> None:
    CheckpointStore(root, KEEP).commit(tensors_of(step), lambda files: manifest_of(step, files))


def play(scenario: str, folder: Path) -> None:
    there, step = SCENARIOS[scenario]
    start = folder / "start"
    CheckpointStore(start, KEEP).prepare()
    for earlier in there:
        commit(start, earlier)
    for n in count():
        root = folder / f"killed-{n}"
        shutil.copytree(start, root)
        place = os.open(folder / f"place-{n}", os.O_RDWR | os.O_CREAT)
        pid = os.fork()
        if pid == 0:
            kill_at(n, place)
            commit(root, step)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        killed = status == -signal.SIGKILL
        print(
            json.dumps({"scenario": scenario, "place": os.pread(place, 200, 0).decode(), "killed": killed, "root": str(root)}), flush=True
        )
        os.close(place)
        if not killed:
            return


if __name__ == "__main__":
    saved_tensors.save(tensors_of(0))  # whatever is imported at the first use is imported before the forks
    for name in SCENARIOS:
        play(name, Path(sys.argv[1]) / name)
