"""Another number of ranks goes on; another run, or a writer of the past, wants the same directory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drill import SETTINGS, STEPS, Drill
from outcome import lost_steps, recovery_seconds, wrong_samples
from runs import Run
from table import Row, Sight

from cases.survival import DISTURBED_AT, ended, goes_on, kill, lost_gang

DATA_ERROR, PREEMPTED, PEER_LOST = 3, 143, 162
OTHER_WORLDS = (1, 2, 8)
FROM_MEMORY = ((1, 1), (2, 1))
FROM_DISK = ((1, 1), (2, 1), (2, 2))
"""Agents and ranks of each, beside those of other cases: 4 x 1 is everywhere, and 2 x 2 from memory is `one_of_a_pair`."""
BATCH = int(SETTINGS["data.global_batch"])
ROUNDING = 1e-3
"""Relative, 5e-8 when measured: the order of summation differs, and that grows over the steps."""
LOCK_WAIT_SECONDS = 3.0
ALONE = {"PET_NNODES": "1", "PET_NODE_RANK": "0"}


def other_worlds(drill: Drill) -> Iterator[Row]:
    """4 ranks, then 1, 2 or 8 from where they were: the same samples in the same batches, along the same curve."""
    for world_size in OTHER_WORLDS:
        yield _other_world(drill, world_size)


def half_the_world(drill: Drill) -> Iterator[Row]:
    """4 ranks, then 2."""
    yield _other_world(drill, 2)


def _other_world(drill: Drill, world_size: int) -> Row:
    home, samples, sight = drill.new_folder("run"), drill.new_folder("samples"), Sight()
    samples.mkdir()
    first = drill.start(run_dir=home, plan={"samples": str(samples)})
    first.trained_to(DISTURBED_AT)
    os.kill(first.pid, signal.SIGTERM)
    sight.fact(f"4 ranks left with {first.wait()}", first.code == PREEMPTED)
    since = time.time()
    again = drill.start(workers=world_size, run_dir=home, plan={"samples": str(samples), "step_seconds": 0.0})
    sight.fact(f"exit {again.wait()}", again.code == 0)
    used_once(again, samples, sight)
    along_the_curve(drill, again, sight)
    lost = lost_steps(again)
    sight.fact(f"{lost} steps lost", lost == 0)
    expected = "every sample once, in its batch; the same curve up to rounding; no step lost"
    return sight.row(f"4 ranks stopped, {world_size} go on", expected, recovery_seconds(again, since), lost)


def same_world(drill: Drill) -> Iterator[Row]:
    """The same number of ranks goes on with the same bits, from memory and from disk, whatever the number."""
    for workers, procs in FROM_MEMORY:
        last = f"ddp-rank-{workers * procs - 1}"
        fault = f"SIGKILL of the last rank ({workers} x {procs})"
        yield goes_on(drill, fault, kill(last), workers=workers, procs=procs, check=lambda run, sight: came_from(run, "memory", sight))
    for workers, procs in FROM_DISK:
        yield _gang_again(drill, workers, procs)


def _gang_again(drill: Drill, workers: int, procs: int) -> Row:
    reference, sight = drill.undisturbed(workers * procs), Sight()
    home, newest = lost_gang(drill, workers, procs)
    since = time.time()
    again = drill.start(workers=workers, procs=procs, run_dir=home, plan={"step_seconds": 0.0})
    again.wait()
    ended(again, sight, reference)
    came_from(again, "disk", sight)
    resumed = [event["step"] for event in again.of_kind("resume")]
    sight.fact(f"resumed at {resumed}", resumed == [newest])
    expected = "a new start ends with the undisturbed bits, from disk"
    return sight.row(f"SIGKILL of the whole gang ({workers} x {procs})", expected, recovery_seconds(again, since), lost_steps(again))


def came_from(run: Run, source: str, sight: Sight) -> None:
    """Where the one generation after the fault had its state from."""
    sources = [event["source"] for event in run.of_kind("resume")]
    sight.fact(f"resumed from {', '.join(sources) or 'nothing'}", sources == [source])


def used_once(run: Run, samples: Path, sight: Sight) -> None:
    """Each sample of the stream went into the final state exactly once, in the step that is its own."""
    wrong = wrong_samples(run, samples, BATCH, STEPS)
    sight.fact("; ".join(wrong) or "every sample once", not wrong)


def along_the_curve(drill: Drill, run: Run, sight: Sight) -> None:
    """The loss of every step that counts is that of the undisturbed run of 4, up to rounding."""
    reference, losses = drill.undisturbed_losses(), loss_by_step(run)
    missing = sorted(reference.keys() - losses.keys())
    off = max((abs(losses[step] / loss - 1) for step, loss in reference.items() if step in losses), default=1.0)
    sight.fact(f"curve off by {off:.1g}" + (f", {len(missing)} steps missing" if missing else ""), off <= ROUNDING and not missing)


def loss_by_step(run: Run) -> dict[int, Any]:
    """What was said last of each step."""
    return {line["step"]: line["loss"] for line in run.metrics if line["kind"] == "train"}


def two_runs(drill: Drill) -> Iterator[Row]:
    """A second `ddp local` on a run directory that is in use: refused, and the first does not notice."""
    second: list[Run] = []

    def disturb(run: Run) -> None:
        second.append(drill.start(run_dir=run.run_dir))
        second[0].wait()

    def refused(_: Run, sight: Sight) -> None:
        sight.fact(f"the second left with {second[0].code}", second[0].code == DATA_ERROR)
        sight.fact(second[0].output.strip().splitlines()[-1][-200:], "in use by another run" in second[0].output)

    yield goes_on(
        drill, "a second run on the same directory", disturb, causes=(), lost_at_most=0, plan={"step_seconds": 0.1}, check=refused
    )


def bounded_wait(drill: Drill) -> Iterator[Row]:
    """In a container the second waits, as its predecessor may be ending; with a bound."""
    reference, home, sight = drill.undisturbed(1), drill.new_folder("run"), Sight()
    settings = {"fault_tolerance.lock_wait_seconds": LOCK_WAIT_SECONDS}
    first = drill.start_as(["launch"], settings, {"step_seconds": 0.02}, home, ALONE)
    first.trained_to(2)
    started = time.monotonic()
    second = drill.start_as(["launch"], settings, None, home, ALONE)
    code, waited = second.wait(), time.monotonic() - started
    sight.fact(f"the second left with {code} after {waited:.0f} s", code == PEER_LOST and waited >= LOCK_WAIT_SECONDS)
    sight.fact(second.output.strip().splitlines()[-1][-160:], "still in use" in second.output)
    first.wait()
    ended(first, sight, reference)
    yield sight.row(
        f"a second container, lock_wait_seconds={LOCK_WAIT_SECONDS:.0f}", f"{PEER_LOST} after the wait; the first does not notice"
    )


def stale_writer(drill: Drill) -> Iterator[Row]:
    """Somebody else has drawn the next attempt number: this one's writer publishes nothing more."""

    def disturb(run: Run) -> None:
        attempt = run.run_dir / "attempt"
        attempt.write_text(f"{int(attempt.read_text()) + 10}\n")
        run.until(lambda: f"agent 0 left with {PEER_LOST}" in run.output, "the stale agent's end")

    def fenced(run: Run, sight: Sight) -> None:
        attempts = [int(event["attempt"]) for event in run.of_kind("checkpoint")]
        stops = [event["cause"] for event in run.of_kind("stop")]
        sight.fact(f"the stale one wrote {len(stops)} times that it stops", not stops)  # the diary is its successor's by now
        sight.fact(f"its successor wrote as attempt {max(attempts)}", max(attempts) > 10)

    fault = "the attempt number drawn by somebody else"
    plan = {"step_seconds": 0.1}
    yield goes_on(drill, fault, disturb, causes=("peer_loss",), lost_at_most=STEPS, plan=plan, check=fenced)


CASES = (other_worlds, half_the_world, same_world, two_runs, bounded_wait, stale_writer)
