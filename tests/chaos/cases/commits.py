"""A kill in every window in which a state becomes durable, or is kept in memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from drill import STEPS, Drill
from faulty_system import WINDOWS
from outcome import lost_steps, recovery_seconds
from runs import Run, command, wait_until_gone
from table import Row, Sight

from cases.survival import ended, goes_on
from ddp_trainer.checkpoint.durable import TEMPORARY
from ddp_trainer.checkpoint.store import CheckpointStore

COMMITS_BEFORE = 3
"""So that there is something to fall back to."""
SKIPPED = {"fsync of data": 2 * COMMITS_BEFORE, "fsync after the rename": 2 * COMMITS_BEFORE, "retention": 0}
"""How often the writer passes a window unharmed: once a commit, or twice (two data files; a folder that `latest` is written to as well),
or, where it has to have something to remove, not at all."""
EVERY_STEPS = 10
STORE_KILLS, STORE_SEED = 200, 20261126
WRITER_KILLS = 20
MET_AT_LEAST = 15
"""Between the look and the signal a commit may end."""
STAGES = ("", "/model.safetensors", "/manifest.json", "/.tmp-manifest*")
"""How far a commit has come, by what lies in its folder, or that there is one."""
WRITER_STEP_SECONDS = 0.1
"""So that a new writer finds time for a commit, and to be killed in the next one, within three steps."""
GLANCE_SECONDS, GLANCE_PAUSE_SECONDS = 0.2, 0.0002
"""How often a folder is looked for that lives for milliseconds: a run's own wait looks every 20 ms."""
KILLED_WRITER = Path(__file__).resolve().parents[2] / "unit" / "checkpoint" / "killed_writer.py"


def windows(drill: Drill) -> Iterator[Row]:
    """The machine goes down in each window of a commit: a new start finds the checkpoint before it, or the new one, complete."""
    for name in WINDOWS:
        yield _window(drill, name)


def one_window(drill: Drill) -> Iterator[Row]:
    """The one in which a checkpoint's data are there, and nothing says what they are."""
    yield _window(drill, "write of the manifest")


def _window(drill: Drill, name: str) -> Row:
    reference, home, sight = drill.undisturbed(), drill.new_folder("run"), Sight()
    once = drill.new_folder("once")
    plan = {"kill_before": name, "kill_whole": True, "skip": SKIPPED.get(name, COMMITS_BEFORE), "once": str(once)}
    first = drill.start(run_dir=home, plan=plan)
    tree = first.until(lambda: first.of_kind("checkpoint") and list(first.processes()), "first checkpoint")
    first.wait()
    since = time.time()
    wait_until_gone(tree)
    sight.fact(f"killed ({first.code})", first.code == -signal.SIGKILL and once.exists())
    bad = [step for step, manifest, _ in CheckpointStore(home / "checkpoints").verified() if manifest is None]
    sight.fact(f"{len(bad)} incomplete folders", not bad)
    again = drill.start(run_dir=home)
    again.wait()
    ended(again, sight, reference)
    resumes, lost = again.of_kind("resume"), lost_steps(again)
    sight.fact(f"resumed at {', '.join(str(event['step']) for event in resumes)}", len(resumes) == 1)
    sight.fact(f"{len(again.of_kind('quarantine'))} set aside", not again.of_kind("quarantine"))
    left = [path.name for path in (home / "checkpoints").glob(".tmp-*")]
    sight.fact(f"{len(left)} leftovers", not left)
    if lost > 2 * EVERY_STEPS:
        sight.fact(f"{lost} steps lost", holds=False)
    expected = (
        f"a new start ends with the undisturbed bits; nothing incomplete, set aside or left over; at most {2 * EVERY_STEPS} steps lost"
    )
    return sight.row(f"whole gang killed before: {name}", expected, recovery_seconds(again, since), lost)


def in_a_snapshot(drill: Drill) -> Iterator[Row]:
    """A rank dies while its node's snapshot is half written: the one before it is taken."""
    for rank in (0, 2):
        once = drill.new_folder("once")
        plan = {"kill_in_snapshot": [rank, 8], "once": str(once)}

        def killed(run: Run, sight: Sight, once: Path = once) -> None:
            sight.fact("killed in its snapshot" if once.exists() else "not killed", once.exists())
            sight.fact(
                f"from {', '.join(event['source'] for event in run.of_kind('resume'))}", run.of_kind("resume")[0]["source"] == "memory"
            )

        yield goes_on(drill, f"SIGKILL of rank {rank} in a snapshot", lambda _: None, plan=plan, at_step=8, check=killed)


def store_two_hundred_times(drill: Drill) -> Iterator[Row]:
    """A process that only commits and loads, killed at operations drawn by lot."""
    folder = drill.new_folder("store")
    folder.mkdir()
    command_line = [sys.executable, str(KILLED_WRITER), str(folder), str(STORE_KILLS), str(STORE_SEED)]
    program = subprocess.run(command_line, capture_output=True, text=True, timeout=300, check=False)
    told = [json.loads(line) for line in program.stdout.splitlines()]
    lines = [line for line in told if "scenario" not in line]  # the others are killed once at each place: see tests/unit/checkpoint
    sight = Sight()
    sight.fact(f"{len(lines)} kills", len(lines) == STORE_KILLS)
    lost = [line for line in lines if line["found"] not in {line["acknowledged"], (line["acknowledged"] or 0) + 1}]
    sight.fact(f"{len(lost)} acknowledged commits lost", not lost)
    bad = [line for line in lines if not line["good"]]
    sight.fact(f"{len(bad)} loads of another content", not bad)
    newest = lines[-1]["found"] if lines else 0
    sight.fact(f"{newest} commits lived", newest and newest > STORE_KILLS / 4)
    yield sight.row(f"SIGKILL of a store's process, {STORE_KILLS} times", "no acknowledged commit lost, none that loads another content")


def writer_twenty_times(drill: Drill) -> Iterator[Row]:
    """The writer of a whole training, killed inside a commit whenever a new one has shown that it can finish one."""
    met: list[bool] = []
    lost: list[int] = []

    def disturb(run: Run) -> None:
        known: set[int] = set()
        while len(known) < WRITER_KILLS:
            # a writer that dies without having written anything is replaced after ever longer pauses: so each must have written something
            written = len(run.of_kind("checkpoint"))
            pid = run.until(lambda: next((p for p in run.processes() if command(p) == "ddp-writer" and p not in known), 0), "a writer")
            run.until(lambda n=written: len(run.of_kind("checkpoint")) > n, "a checkpoint")
            known.add(pid)
            met.append(_killed_in_commit(run, pid, STAGES[len(known) % len(STAGES)]))
            acknowledged = max(event["step"] for event in run.of_kind("checkpoint"))
            newest, manifest, _ = next(CheckpointStore(run.run_dir / "checkpoints").verified())
            lost.extend([acknowledged] if manifest is None or newest < acknowledged else [])

    def whole(run: Run, sight: Sight) -> None:
        sight.fact(f"{sum(met)} of {len(met)} kills met an unfinished commit", sum(met) >= MET_AT_LEAST)
        sight.fact(f"{len(lost)} acknowledged commits lost", not lost)
        bad = [step for step, manifest, _ in CheckpointStore(run.run_dir / "checkpoints").verified() if manifest is None]
        sight.fact(f"{len(bad)} bad checkpoints", not bad)

    settings = {"checkpoint.every_steps": 1}
    fault = f"SIGKILL of the writer, {WRITER_KILLS} times in {STEPS} steps, at least {MET_AT_LEAST} of them inside a commit"
    plan = {"step_seconds": WRITER_STEP_SECONDS}
    yield goes_on(drill, fault, disturb, causes=(), lost_at_most=0, settings=settings, plan=plan, at_step=4, check=whole)


def _killed_in_commit(run: Run, pid: int, stage: str) -> bool:
    """Kill a writer when its next commit has come to `stage`; whether it left that commit without the rename."""
    folder = run.run_dir / "checkpoints"

    def has_come() -> bool:
        deadline = time.monotonic() + GLANCE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):  # renamed while it was listed
                if any(folder.glob(f"{TEMPORARY}*-{pid}{stage}")):
                    return True
            time.sleep(GLANCE_PAUSE_SECONDS)
        return False

    run.until(has_come, "a commit")
    os.kill(pid, signal.SIGKILL)
    wait_until_gone([pid])
    return any(path.is_dir() for path in folder.glob(f"{TEMPORARY}*-{pid}"))  # the rename takes the folder away under this name


CASES = (windows, one_window, in_a_snapshot, store_two_hundred_times, writer_twenty_times)
