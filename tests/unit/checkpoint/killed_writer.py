"""A program, not a test: a writer that is killed by SIGKILL between any two operations of a commit.

Usage: killed_writer.py FOLDER KILLS SEED. Both kinds of kills, since torch takes longer to import than most of them.

At each place: in each scenario it copies the starting state, forks a writer that kills itself before its n-th operation (after the one
before it), and prints one JSON line: {"scenario", "place", "killed", "root"}; n grows until a writer lives.

By chance: one run that never ends well. Each writer starts as a start of a run does (clear, load the newest), then commits step after step
until it is killed at an operation drawn by lot, in whichever thread; after each, one JSON line: {"before", "acknowledged", "found",
"good"}: the newest step at its start, the newest whose commit returned, and what loads afterwards.

The operations are what the writer calls in the operating system (open, write, fsync, rename, ...), seen through the interpreter's own
profiling hook in all its threads: the store is not patched, and an operation that is added later is found by itself.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import threading
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import torch as saved_tensors
from small_checkpoints import commit, is_state_of, tensors_of

from ddp_trainer.checkpoint import replacing
from ddp_trainer.checkpoint.store import CheckpointStore

KEEP = 2
SCENARIOS = {
    "next": ([1, 2], 3, {}),
    "first": ([], 1, {}),
    "again": ([1], 1, {}),
    "evaluated": ([1], 1, {"loss": 0.5}),
    "evaluated, no exchange": ([1], 1, {"loss": 0.5}),
}
"""Steps that are there already, the step that is committed, and its metrics; those that are there have none."""
OPERATIONS_UP_TO = 260
"""Two commits and a start, so that a kill may hit anything in them."""
OPERATIONS = {"open", "write", "flush", "fsync", "close", "rename", "replace", "mkdir", "rmdir", "unlink", "listdir", "scandir", "read"}


def kill_at(n: int, place: int) -> None:
    """Have this process kill itself at its n-th operation from now on, having written the operation's name to `place`."""
    seen = count()

    def look(frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in OPERATIONS and next(seen) == n:
            os.pwrite(place, f"{function.__name__} in {frame.f_code.co_name}".encode(), 0)
            os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(look)  # for the threads that the commit will start
    sys.setprofile(look)


def play(scenario: str, folder: Path) -> None:
    there, step, metrics = SCENARIOS[scenario]
    start = folder / "start"
    CheckpointStore(start, KEEP).prepare()
    for earlier in there:
        commit(CheckpointStore(start, KEEP), earlier)
    for n in count():
        root = folder / f"killed-{n}"
        shutil.copytree(start, root)
        place = os.open(folder / f"place-{n}", os.O_RDWR | os.O_CREAT)
        pid = os.fork()
        if pid == 0:
            if scenario.endswith("no exchange"):
                replacing._exchange = lambda *_: False  # as on NFS
            kill_at(n, place)
            commit(CheckpointStore(root, KEEP), step, metrics)
            os._exit(0)
        killed = is_killed(pid)
        say(scenario=scenario, place=os.pread(place, 200, 0).decode(), killed=killed, root=str(root))
        os.close(place)
        if not killed:
            return


def play_chance(root: Path, kills: int, seed: int) -> None:
    lots = random.Random(seed)
    root.parent.mkdir()
    place = os.open(root.with_name("place"), os.O_RDWR | os.O_CREAT)
    newest = None
    for _ in range(kills):
        ours, theirs = os.pipe()
        n = lots.randrange(OPERATIONS_UP_TO)
        pid = os.fork()
        if pid == 0:
            kill_at(n, place)
            store = CheckpointStore(root, KEEP)
            store.prepare()
            loaded = store.load_newest()
            for step in count(loaded.manifest.step + 1 if loaded else 1):
                commit(store, step)
                os.write(theirs, f"{step}\n".encode())
        os.close(theirs)
        assert is_killed(pid)
        with os.fdopen(ours) as lines:
            acknowledged = [int(line) for line in lines]
        found = CheckpointStore(root, KEEP).load_newest()
        step = found.manifest.step if found else None
        good = found is None or (is_state_of(found, step) and not found.quarantined)
        say(before=newest, acknowledged=acknowledged[-1] if acknowledged else newest, found=step, good=good)
        newest = step


def is_killed(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    saved_tensors.load(saved_tensors.save(tensors_of(0)))  # whatever is imported at the first use is imported before the forks
    gc.collect()
    gc.freeze()  # a collection in a writer would copy all of torch's pages
    where = Path(sys.argv[1])
    for name in SCENARIOS:
        play(name, where / name)
    play_chance(where / "chance" / "checkpoints", int(sys.argv[2]), int(sys.argv[3]))
