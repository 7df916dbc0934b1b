"""Checkpoints that are not what they were: the gang is lost, so that the disk has to be read, and the newest on it is bad."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from drill import Drill
from outcome import lost_steps, recovery_seconds
from runs import Run
from table import Row, Sight

from cases.survival import EVERY_STEPS, ended, goes_on, kill, lost_gang

DATA_ERROR = 3
Damage = Callable[[Path], object]


def flip(folder: Path) -> None:
    """One bit in the middle of the largest file."""
    file = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(folder: Path) -> None:
    """Half of a file."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove(folder: Path) -> None:
    """A file that the manifest names is not there."""
    (folder / "optimizer.safetensors").unlink()


def no_manifest(folder: Path) -> None:
    """The manifest is there, and empty."""
    (folder / "manifest.json").write_bytes(b"")


def damaged(drill: Drill) -> Iterator[Row]:
    """The newest checkpoint is set aside, with a word, and the one before it taken."""
    for what, damage in (
        ("one bit flipped", flip),
        ("a file truncated", truncate),
        ("a file deleted", remove),
        ("an empty manifest", no_manifest),
    ):
        yield _damaged(drill, f"{what} in the newest checkpoint", damage)


def flipped(drill: Drill) -> Iterator[Row]:
    """One bit."""
    yield _damaged(drill, "one bit flipped in the newest checkpoint", flip)


def _damaged(drill: Drill, fault: str, damage: Damage) -> Row:
    reference, sight = drill.undisturbed(), Sight()
    home, newest = lost_gang(drill)
    damage(home / "checkpoints" / f"step-{newest:09d}")
    since = time.time()
    again = drill.start(run_dir=home)
    again.wait()
    ended(again, sight, reference)
    aside = [event["step"] for event in again.of_kind("quarantine")]
    sight.fact(f"step {', '.join(map(str, aside)) or 'none'} set aside", aside == [newest])
    resumes, lost = [event["step"] for event in again.of_kind("resume")], lost_steps(again)
    sight.fact(f"resumed at {resumes}", resumes == [newest - EVERY_STEPS])
    expected = "set aside with an event; a new start goes on from the one before, to the undisturbed bits"
    return sight.row(fault, expected, recovery_seconds(again, since), lost)


def no_latest(drill: Drill) -> Iterator[Row]:
    """`latest` is a hint for people."""
    sight = Sight()
    home, newest = lost_gang(drill)
    (home / "checkpoints" / "latest").write_bytes(b"")
    seconds, lost = _goes_on(drill, home, newest, sight)
    yield sight.row("`latest` emptied", "the newest is found all the same", seconds, lost)


def all_bad(drill: Drill) -> Iterator[Row]:
    """Nothing that verifies is left: beginning anew in silence would be worse than ending."""
    sight = Sight()
    home, _ = lost_gang(drill)
    for folder in (home / "checkpoints").glob("step-*"):
        flip(folder)
    for start in ("first", "second"):  # which finds no checkpoint any more
        again = drill.start(run_dir=home)
        code = again.wait()
        sight.fact(f"{start} start: exit {code}", code == DATA_ERROR)
    line = again.output.strip().splitlines()[-1]
    sight.fact(line[-300:], "verif" in again.output and "quarantine" in again.output)
    kept = list((home / "checkpoints" / "quarantine").glob("step-*"))
    sight.fact(f"{len(kept)} kept for post-mortem", kept)
    yield sight.row("one bit flipped in every checkpoint", f"exit {DATA_ERROR} at every start, with a sentence that says what to do")


def unreadable(drill: Drill) -> Iterator[Row]:
    """A volume that cannot be listed says nothing about what lies there: nothing is moved, and nobody begins anew."""
    sight = Sight()
    home, newest = lost_gang(drill)
    fails = drill.new_folder("fails")
    fails.touch()
    refused = drill.start(run_dir=home, plan={"listing_fails": errno.EIO, "fault_while": str(fails)})
    code = refused.wait()
    sight.fact(f"first start: exit {code}", code == DATA_ERROR)
    sight.fact(refused.output.strip().splitlines()[-1][-300:], "cannot be read" in refused.output)
    fails.unlink()
    seconds, lost = _goes_on(drill, home, newest, sight)
    expected = f"exit {DATA_ERROR} after some tries; the next start goes on to the undisturbed bits"
    yield sight.row("listing the checkpoints fails (EIO)", expected, seconds, lost)


def _goes_on(drill: Drill, home: Path, step: int, sight: Sight) -> tuple[float | None, int | None]:
    """Start it again: it goes on at this step, to the undisturbed bits. Seconds to training, and steps lost."""
    since = time.time()
    again = drill.start(run_dir=home)
    again.wait()
    ended(again, sight, drill.undisturbed())
    resumes = [event["step"] for event in again.of_kind("resume")]
    sight.fact(f"resumed at {resumes}", resumes == [step])
    return recovery_seconds(again, since), lost_steps(again)


def taken_over(drill: Drill) -> Iterator[Row]:
    """Another start of this run draws its number while this one goes on, as on a volume that has lost its locks."""
    yield _taken_over(drill, "the run directory taken over by another start")
    # before the next commit meets the fence: this one has to form anew, and must not draw a number beyond the other's
    yield _taken_over(drill, "the run directory taken over by another start, then SIGKILL of rank 1", kill("ddp-rank-1"), ("crash",))


def _taken_over(drill: Drill, fault: str, and_then: Callable[[Run], object] = lambda _: None, causes: tuple[str, ...] = ()) -> Row:
    drawn: list[int] = []

    def disturb(run: Run) -> None:
        counter = run.run_dir / "attempt"
        drawn.append(int(counter.read_text()) + 1)
        counter.write_text(f"{drawn[0]}\n")
        and_then(run)
        run.until(lambda: "agent 0 left with 162" in run.output, "its end")

    def left(run: Run, sight: Sight) -> None:
        log = (run.run_dir / "logs" / "agent-0.log").read_text()
        sight.fact("said why", "has been taken over by another start of this run" in log)
        sight.fact("wrote nothing on its way out", "could not be written" not in log and not run.of_kind("stop"))
        formed = [int(event["attempt"]) for event in run.of_kind("form")]
        sight.fact(f"formed as {', '.join(map(str, formed))}", formed == [drawn[0] - 1, drawn[0] + 1])

    return goes_on(drill, fault, disturb, causes=("peer_loss", *causes), plan={"step_seconds": 0.1}, check=left)


CASES = (damaged, flipped, no_latest, all_bad, unreadable, taken_over)
