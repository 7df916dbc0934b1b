"""Volumes that are full, failing or read-only: training goes on as long as it can, and says so."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from drill import Drill
from runs import Run
from table import LeftOutError, Row, Sight

from cases.survival import ended, goes_on, kill

DATA_ERROR = 3
VOLUME_MEGABYTES = 24
FULL_FROM, FULL_UNTIL = 15, 40
SAVE_LIMIT_SECONDS, GRACE_SECONDS = 5, 2
"""For a disk that stays as it is: in place of the 10 minutes for the last checkpoint, and of what the agent then has left for it."""
LAST_TRIES = 6
"""Failures of the last checkpoint before a disk is freed: 10 s of them."""
READ_ONLY_STEP_SECONDS = 0.08
"""So that the writer, which tries again every 2 s, meets it more than once."""


def full_for_a_while(drill: Drill) -> Iterator[Row]:
    """A small volume fills while training goes on, and is freed again."""
    reference, sight = drill.undisturbed(), Sight()
    with _volume(drill) as volume:
        samples = drill.new_folder("samples")
        samples.mkdir()
        run = drill.start(run_dir=volume / "run", plan={"samples": str(samples)})
        run.trained_to(FULL_FROM)
        filler = _fill(volume)
        run.until(lambda: _computed(samples) >= FULL_UNTIL, f"step {FULL_UNTIL} with a full disk")
        alarms = _alarms(run)
        sight.fact("alarm given" if alarms else "no alarm", alarms)
        filler.unlink()
        run.wait()
        ended(run, sight, reference)
        sight.fact(f"{len(run.of_kind('fault'))} faults", not run.of_kind("fault"))
    yield sight.row(f"volume full from step {FULL_FROM} to {FULL_UNTIL}", "training goes on with an alarm; ends with the undisturbed bits")


def full_to_the_end(drill: Drill) -> Iterator[Row]:
    """It stays full: what was trained cannot be kept, and that is an error."""
    sight = Sight()
    with _volume(drill) as volume:
        limits = {"save_limit_seconds": SAVE_LIMIT_SECONDS, "preemption_grace_seconds": GRACE_SECONDS}
        run = drill.start(run_dir=volume / "run", settings={f"fault_tolerance.{name}": value for name, value in limits.items()})
        run.trained_to(FULL_FROM)
        _fill(volume)
        code = run.wait()
        sight.fact(f"exit {code}", code == DATA_ERROR)
        last = run.output.strip().splitlines()[-1]
        sight.fact(last[-260:], "ended with 3 (data_error)" in last and "free space" in last)
        sight.fact("checkpoint of step 10 intact", (volume / "run" / "checkpoints" / "step-000000010" / "manifest.json").exists())
    yield sight.row(f"volume full from step {FULL_FROM} to the end", f"exit {DATA_ERROR} with a sentence; the last checkpoint stays")


def freed_at_the_end(drill: Drill) -> Iterator[Row]:
    """It is full when training is done, and is freed a while later: the last checkpoint was worth the wait."""
    while_there, shown = drill.new_folder("full"), set[str]()

    def disturb(run: Run) -> None:
        while_there.touch()
        run.until(lambda: run.progress["phase"] == "saving" and run.progress["note_done"] >= LAST_TRIES, f"try {LAST_TRIES}")
        shown.add(run.progress["note"])
        while_there.unlink()

    def alarmed(run: Run, sight: Sight) -> None:
        notes = [event["message"] for event in run.of_kind("note") if "it is tried until" in event["message"]]
        sight.fact(f"{len(notes)} alarm of the last checkpoint", len(notes) == 1)
        note = shown.pop()
        sight.fact(note, "free space" in note and "tried until" in note and note in run.output)

    plan = {"write_fails": errno.ENOSPC, "fault_while": str(while_there)}
    fault = f"disk full from step {FULL_FROM} until the last checkpoint has failed {LAST_TRIES} times"
    yield goes_on(drill, fault, disturb, causes=(), lost_at_most=0, plan=plan, at_step=FULL_FROM, check=alarmed)


def read_only(drill: Drill) -> Iterator[Row]:
    """Nothing can be written from the start."""
    sight = Sight()
    with _volume(drill, "ro") as volume:
        run = drill.start(run_dir=volume / "run")
        code = run.wait()
        sight.fact(f"exit {code}", code == DATA_ERROR)
        sight.fact(run.output.strip().splitlines()[-1][-260:], "Read-only file system" in run.output and "Traceback" not in run.output)
    yield sight.row("read-only volume", f"exit {DATA_ERROR} with a sentence")


def read_only_for_a_while(drill: Drill) -> Iterator[Row]:
    """The file system becomes read-only in mid-training, as a kernel makes it after an error, and is made writable again."""

    def disturb(run: Run) -> None:
        with _read_only(drill, run.run_dir):
            run.trained_to(FULL_UNTIL)
        written.append(time.time())

    def alarmed(run: Run, sight: Sight) -> None:
        notes = [event["message"] for event in run.of_kind("note") if os.strerror(errno.EROFS) in event["message"]]
        sight.fact(f"{len(notes)} alarms", notes)
        later = [event["step"] for event in run.of_kind("checkpoint") if event["time"] > written[0]]
        sight.fact(f"{len(later)} checkpoints afterwards", later)

    written: list[float] = []
    fault = f"file system read-only for {FULL_UNTIL - FULL_FROM} steps"
    plan = {"step_seconds": READ_ONLY_STEP_SECONDS}
    yield goes_on(drill, fault, disturb, causes=(), lost_at_most=0, plan=plan, at_step=FULL_FROM, check=alarmed)


def failing(drill: Drill) -> Iterator[Row]:
    """Every write of data, or every fsync, of the writer fails for a while, as on a volume that is full or dying."""
    for call, number in itertools.product(("write", "fsync"), (errno.ENOSPC, errno.EIO)):
        while_there = drill.new_folder("failing")

        def disturb(run: Run, flag: Path = while_there) -> None:
            flag.touch()
            run.trained_to(FULL_UNTIL)
            flag.unlink()

        def alarmed(run: Run, sight: Sight) -> None:
            notes = [event["message"] for event in run.of_kind("note") if "could not be written" in event["message"]]
            sight.fact(f"{len(notes)} alarms", notes)

        plan = {f"{call}_fails": int(number), "fault_while": str(while_there)}
        fault = f"every {call} fails with {errno.errorcode[number]} for {FULL_UNTIL - FULL_FROM} steps"
        yield goes_on(drill, fault, disturb, causes=(), lost_at_most=0, plan=plan, at_step=FULL_FROM, check=alarmed)


@contextlib.contextmanager
def _volume(drill: Drill, mode: str = "rw") -> Iterator[Path]:
    folder = drill.new_folder("volume")
    folder.mkdir()
    options = f"{mode},size={VOLUME_MEGABYTES}m"
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield folder
    finally:
        drill.clear(keep=True)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def _read_only(drill: Drill, folder: Path) -> Iterator[None]:
    """Nothing can be opened for writing, made, renamed or removed in `folder`, as its own path shows it.

    A volume with files open for writing cannot be remounted: a read-only view of it is laid over it, in one step. Files that are open
    already stay writable, which lets the diary tell of it.
    """
    view = drill.new_folder("view")
    view.mkdir()
    with contextlib.ExitStack() as mounted:
        for words in (("--bind", str(folder), str(view)), ("-o", "remount,bind,ro", str(view)), ("--bind", str(view), str(folder))):
            _mount(*words)
            if "--bind" in words:
                mounted.callback(subprocess.run, ["umount", "--lazy", words[-1]], check=True)
        yield


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeftOutError(f"a volume of its own cannot be mounted here: {done.stderr.strip()}; run as root")


def _fill(volume: Path) -> Path:
    filler = volume / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(os.urandom(4096))
    return filler


def _computed(samples: Path) -> int:
    """The newest step of which a sample was computed, by the task's own account on another volume."""
    newest = [log.read_text().splitlines()[-1:] for log in samples.glob("*.jsonl")]
    return max((json.loads(line)["first"] // 32 for lines in newest for line in lines if line.endswith("}")), default=0)


def _alarms(run: Run) -> list[str]:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        said = [event["message"] for event in run.of_kind("note")] + run.output.splitlines()
        log = run.run_dir / "logs" / "writer.log"
        said += log.read_text().splitlines() if log.exists() else []
        if found := [line for line in said if "written" in line and "cannot" in line]:
            return found
        time.sleep(0.1)
    return []


def blocked(drill: Drill) -> Iterator[Row]:
    """The volume answers no more when ranks are to start again: node 0's agent stands still in it, and the others do not wait for ever."""

    def disturb(run: Run) -> None:
        counter, pipe = run.run_dir / "attempt", run.run_dir / "pipe"
        number = counter.read_text()
        os.mkfifo(pipe)
        pipe.replace(counter)  # whoever reads it waits for a writer
        kill("ddp-rank-2")(run)
        run.until(lambda: all(f"agent {node} left with 162" in run.output for node in (1, 2, 3)), "the others to leave")
        counter.write_text(number)

    fault = "volume that blocks while ranks start again"
    yield goes_on(drill, fault, disturb, causes=None, settings={"distributed.peer_timeout_seconds": 5})


CASES = (full_for_a_while, full_to_the_end, freed_at_the_end, read_only, read_only_for_a_while, failing, blocked)
