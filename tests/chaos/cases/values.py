"""What is computed goes wrong, or the code that computes it does, at the same step again and again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from drill import STEPS, Drill
from outcome import lost_steps, newest_on_disk, state_of
from runs import Run
from table import Row, Sight

DIVERGED, USER_ERROR, NO_PROGRESS = 4, 1, 5
AT = 25


def not_finite(drill: Drill) -> Iterator[Row]:
    """A loss that is not finite ends the run, before it gets into a checkpoint."""
    run, sight = _ended(drill, {"nan_at": AT}), Sight()
    sight.fact(f"exit {run.code}", run.code == DIVERGED)
    newest = newest_on_disk(run)
    sight.fact(f"step {newest} on disk", 20 <= newest <= AT)
    sight.fact("finite", all(bool(tensor.isfinite().all()) for tensor in state_of(run, newest).values()))
    yield sight.row(f"NaN in step {AT}", f"exit {DIVERGED}; the last good checkpoint is kept")


def passed_over(drill: Drill) -> Iterator[Row]:
    """on_divergence=skip: that step is passed over, and the run ends."""
    run, sight = _ended(drill, {"nan_at": AT}, {"fault_tolerance.on_divergence": "skip"}), Sight()
    sight.fact(f"exit {run.code}", run.code == 0)
    manifest = run.run_dir / "checkpoints" / f"step-{STEPS:09d}" / "manifest.json"
    skipped = json.loads(manifest.read_text())["skipped"] if manifest.exists() else None
    sight.fact(f"skipped: {skipped}", skipped == [[AT, AT + 1]])
    sight.fact("all losses finite", all(math.isfinite(loss) for loss in run.losses()))
    sight.fact(f"{len(run.of_kind('fault'))} fault", len(run.of_kind("fault")) == 1)
    yield sight.row(f"NaN in step {AT}, on_divergence=skip", "goes on; that step alone is passed over", None, lost_steps(run))


def spoilt(drill: Drill) -> Iterator[Row]:
    """A state that is not finite is kept in every node's memory before the loss shows it: nobody goes on from it."""
    reference = drill.undisturbed()
    once, shown = drill.new_folder("once"), AT + 2
    plan = {"poison": [AT - 1, str(once)], "nan_at": shown}
    settings = {"fault_tolerance.on_divergence": "skip", "checkpoint.memory_every_steps": 1}
    run, sight = _ended(drill, plan, settings), Sight()
    sight.fact(f"exit {run.code}", run.code == 0)
    sight.fact("the statistics were spoilt" if once.exists() else "nothing was spoilt", once.exists())
    state = state_of(run, STEPS)
    bad = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    sight.fact("finite" if state and not bad else f"not finite: {bad}", state.keys() == reference.keys() and not bad)
    sight.fact(f"{len(run.of_kind('fault'))} fault", len(run.of_kind("fault")) == 1)
    fault = f"NaN in the norm statistics after step {AT}, in the loss in step {shown}, on_divergence=skip"
    yield sight.row(fault, "goes on from before it; that step alone is passed over; the end is finite", None, lost_steps(run))


def same_exception(drill: Drill) -> Iterator[Row]:
    """The user's code raises at the same step every time."""
    run, sight = _ended(drill, {"raise_at": AT}), Sight()
    sight.fact(f"exit {run.code}", run.code == USER_ERROR)
    sight.fact(f"{len(run.of_kind('fault'))} tries", len(run.of_kind("fault")) == 3)
    sight.fact("named" if "my own mistake" in run.output else run.output[-300:], "my own mistake" in run.output)
    yield sight.row(f"an exception in step {AT}, every time", f"exit {USER_ERROR} after three identical errors, with its words")


def same_death(drill: Drill) -> Iterator[Row]:
    """A rank is killed at the same step every time."""
    run, sight = _ended(drill, {"die_at": AT}), Sight()
    sight.fact(f"exit {run.code}", run.code == NO_PROGRESS)
    sight.fact(f"{len(run.of_kind('fault'))} tries", len(run.of_kind("fault")) <= 6)
    sight.fact(run.output.strip().splitlines()[-1][-200:], "newer checkpoint" in run.output)
    yield sight.row(f"SIGKILL in step {AT}, every time", f"exit {NO_PROGRESS} after restarts without a newer checkpoint")


def _ended(drill: Drill, plan: dict[str, Any], settings: dict[str, Any] | None = None) -> Run:
    run = drill.start(plan=plan, settings=settings)
    run.wait()
    return run


CASES = (not_finite, passed_over, spoilt, same_exception, same_death)
