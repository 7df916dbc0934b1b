"""The facts of a run as the report tells them: frozen values, made by pure functions from what the run wrote.

Every moment is `seconds`: run time since the first event, in which a stop between two invocations does not count. Values of the wrong
type become None here, so nothing behind this file has to doubt a number. What was lost in a fault is computed from the events: the step at
the fault minus the step that was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ddp_trainer.errors import HANG, PEER_LOST, RANK_CRASHED
from ddp_trainer.report.inputs import Inputs, Record

LONGEST_SILENCE_SECONDS = 3600.0
"""A gap without any event that is longer than this before a `start` is a pause of the user, not a recovery: run time skips it."""
ENDING = "ending"
DETAIL_CHARACTERS = 500
"""Of one value in the event list: a message may hold a traceback, and the log has it whole."""
OUTAGE_EXITS = frozenset({RANK_CRASHED.code, HANG.code, PEER_LOST.code})
"""A stop with one of these is a fault that the cluster answers with a new start; any other stop is an end, for now."""


@dataclass(frozen=True)
class Train:
    """One training line; `accuracy` is that of the training batch, a ratio."""

    step: int
    seconds: float
    epoch: float | None
    loss: float | None
    accuracy: float | None
    lr: float | None
    samples_per_second: float | None


@dataclass(frozen=True)
class Evaluated:
    """One evaluation on the test set; `accuracy` is a ratio, `duration_seconds` its cost."""

    step: int
    seconds: float
    epoch: float | None
    loss: float | None
    accuracy: float | None
    duration_seconds: float | None


@dataclass(frozen=True)
class Checkpoint:
    """A durable checkpoint: `stall_seconds` is what training paid for it."""

    step: int
    seconds: float
    size_bytes: float | None
    stall_seconds: float | None
    persist_seconds: float | None


@dataclass(frozen=True)
class Incident:
    """A fault and what became of it. Faults that follow before training goes on belong to the same incident (`echoes`)."""

    seconds: float
    step: int | None
    cause: str
    rank: int | None
    node: int | None
    exit: int | None
    message: str
    echoes: int = 0
    resumed_seconds: float | None = None
    resumed_step: int | None = None
    source: str | None = None
    lost_steps: int | None = None
    stopped_seconds: float | None = None
    """When the run was stopped instead."""

    def ended_seconds(self, run_end: float) -> float:
        """When it was over: training went on, or the run stopped, or (nothing followed) the run ended."""
        return next((t for t in (self.resumed_seconds, self.stopped_seconds) if t is not None), run_end)

    @property
    def recovery_seconds(self) -> float | None:
        """From the fault until training went on."""
        return None if self.resumed_seconds is None else max(0.0, self.resumed_seconds - self.seconds)

    @property
    def where(self) -> str:
        """`rank 2 on node 2`, or less, or nothing."""
        parts = ([f"rank {self.rank}"] if self.rank is not None else []) + ([f"node {self.node}"] if self.node is not None else [])
        return " on ".join(parts)


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl for reading: `time` in seconds since 1970, `detail` as `key value` pairs."""

    time: float
    seconds: float
    kind: str
    step: int | None
    detail: str


@dataclass(frozen=True)
class Sample:
    """A test image and what the model took it for; `png` is base64."""

    target: str
    predicted: str
    confidence: float | None
    png: str

    @property
    def is_right(self) -> bool:
        """Whether the model was right."""
        return self.target == self.predicted


@dataclass(frozen=True)
class Evaluation:
    """The last evaluation in detail; `confusion[truth][predicted]` counts test samples."""

    step: int | None
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    samples: tuple[Sample, ...]

    @property
    def class_accuracy(self) -> list[float | None]:
        """Recall of each class; None for a class without test samples."""
        return [row[i] / sum(row) if sum(row) else None for i, row in enumerate(self.confusion)]


class RunClock:
    """Maps wall time to run time, pauses removed."""

    def __init__(self, events: Sequence[tuple[float, str]], other_times: Iterable[float]) -> None:
        marks = sorted([*events, *((time, "") for time in other_times)])
        self.origin = marks[0][0] if marks else 0.0
        self.pauses: list[tuple[float, float]] = []
        for (before, kind), (after, next_kind) in pairwise(marks):
            if next_kind == "start" and (kind == ENDING or after - before > LONGEST_SILENCE_SECONDS):
                self.pauses.append((before, after))

    def __call__(self, time: float) -> float:
        """Run seconds at wall time `time` (seconds since 1970)."""
        paused = sum(min(time, end) - begin for begin, end in self.pauses if time > begin)
        return max(0.0, time - self.origin - paused)


def is_ending(event: Record) -> bool:
    """Whether the run was over with this event, rather than in an outage."""
    return event.get("kind") == "finish" or (event.get("kind") == "stop" and whole(event.get("exit")) not in OUTAGE_EXITS)


def clock_of(inputs: Inputs) -> RunClock:
    """The clock of this run, from everything that carries a time."""
    kinds = [(number(e.get("time")), ENDING if is_ending(e) else text(e.get("kind")) or "") for e in inputs.events]
    events = [(time, kind) for time, kind in kinds if time is not None]
    return RunClock(events, [time for m in inputs.metrics if (time := number(m.get("time"))) is not None])


def train_points(records: Iterable[Record], clock: RunClock) -> list[Train]:
    """The training lines in the order of their steps."""
    points = [
        Train(
            step, clock(time), number(r.get("epoch")), number(r.get("loss")), number(r.get("accuracy")), number(r.get("lr")),
            number(r.get("samples_per_second")),
        )
        for r, step, time in _dated(records, "train")
    ]  # fmt: skip
    return sorted(points, key=lambda p: (p.step, p.seconds))


def eval_points(records: Iterable[Record], clock: RunClock) -> list[Evaluated]:
    """The evaluations in the order of their steps."""
    points = [
        Evaluated(step, clock(time), number(r.get("epoch")), number(r.get("loss")), number(r.get("accuracy")), number(r.get("seconds")))
        for r, step, time in _dated(records, "eval")
    ]
    return sorted(points, key=lambda p: (p.step, p.seconds))


def checkpoints(records: Iterable[Record], clock: RunClock) -> list[Checkpoint]:
    """Durable checkpoints in the order of time."""
    return [
        Checkpoint(step, clock(time), number(r.get("bytes")), number(r.get("stall_seconds")), number(r.get("persist_seconds")))
        for r, step, time in _dated(records, "checkpoint")
    ]


def event_list(records: Iterable[Record], clock: RunClock) -> list[Event]:
    """Every event with a time, readable."""
    found = []
    for r in records:
        time = number(r.get("time"))
        if time is not None:
            rest = {k: v for k, v in r.items() if k not in {"time", "at", "kind", "step"} and v is not None}
            detail = ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in rest.items())
            found.append(Event(time, clock(time), text(r.get("kind")) or "unknown", whole(r.get("step")), detail))
    return sorted(found, key=lambda e: e.time)


def evaluation(document: Record | None) -> Evaluation | None:
    """The evaluation, or None where it is missing or does not fit itself."""
    if document is None:
        return None
    names, rows = document.get("classes"), document.get("confusion")
    if not isinstance(names, list) or not isinstance(rows, list) or not names or len(rows) != len(names):
        return None
    classes = tuple(str(name) for name in names)
    confusion = tuple(tuple(max(0, whole(cell) or 0) for cell in row) if isinstance(row, list) else () for row in rows)
    if any(len(row) != len(classes) for row in confusion):
        return None
    samples = document.get("samples")
    pictures = [s for s in samples if isinstance(s, dict)] if isinstance(samples, list) else []
    return Evaluation(whole(document.get("step")), classes, confusion, tuple(s for p in pictures if (s := _sample(p, classes)) is not None))


def _sample(raw: Record, classes: tuple[str, ...]) -> Sample | None:
    target, predicted, png = whole(raw.get("target")), whole(raw.get("predicted")), text(raw.get("png"))
    if png is None or target is None or predicted is None or not (0 <= target < len(classes) and 0 <= predicted < len(classes)):
        return None
    return Sample(classes[target], classes[predicted], number(raw.get("confidence")), png)


def _dated(records: Iterable[Record], kind: str) -> Iterable[tuple[Record, int, float]]:
    for r in records:
        step, time = whole(r.get("step")), number(r.get("time"))
        if r.get("kind") == kind and step is not None and time is not None:
            yield r, step, time


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (NaN, text, a boolean)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def whole(value: Any) -> int | None:
    """A whole number, or None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) else None


def text(value: Any) -> str | None:
    """A string that is not empty, or None."""
    return value if isinstance(value, str) and value else None


def _short(value: Any) -> str:
    """A value in a few words; what lies deeper than one level is left to the file."""
    if isinstance(value, dict):
        shown = ", ".join(f"{k} {'…' if isinstance(v, dict | list) else _short(v)}" for k, v in value.items())
    elif isinstance(value, list):
        shown = ", ".join("…" if isinstance(v, dict | list) else _short(v) for v in value)
    else:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown if len(shown) <= DETAIL_CHARACTERS else shown[: DETAIL_CHARACTERS - 1] + "…"
