"""The facts of a run as the report tells them: frozen values, made by pure functions from what the run wrote.

Every moment is `seconds`: run time since the first event, in which a stop between two invocations does not count. Values of the wrong
type become None here, so nothing behind this file has to doubt a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ddp_trainer.report.inputs import Record
from ddp_trainer.telemetry.run_clock import Moment, RunClock, number, text, time_of, whole

DETAIL_CHARACTERS = 500
"""Of one value in the event list: a message may hold a traceback, and the log has it whole."""


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


def checkpoints(moments: Iterable[Moment]) -> list[Checkpoint]:
    """Durable checkpoints in their order."""
    return [
        Checkpoint(step, seconds, number(r.get("bytes")), number(r.get("stall_seconds")), number(r.get("persist_seconds")))
        for seconds, r in moments
        if r["kind"] == "checkpoint" and (step := whole(r.get("step"))) is not None
    ]


def event_list(moments: Iterable[Moment]) -> list[Event]:
    """Every event with a time, readable; the stacks of a hang stand beside the incident."""
    found = []
    for seconds, r in moments:
        rest = {k: v for k, v in r.items() if k not in {"time", "at", "kind", "step", "stacks"} and v is not None}
        detail = ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in rest.items())
        found.append(Event(time_of(r) or 0.0, seconds, r["kind"], whole(r.get("step")), detail))
    return found


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
        step, time = whole(r.get("step")), time_of(r)
        if r.get("kind") == kind and step is not None and time is not None:
            yield r, step, time


def _short(value: Any) -> str:
    """A value in a few words; what lies deeper than one level is left to the file."""
    if isinstance(value, dict):
        shown = ", ".join(f"{k} {'…' if isinstance(v, dict | list) else _short(v)}" for k, v in value.items())
    elif isinstance(value, list):
        shown = ", ".join("…" if isinstance(v, dict | list) else _short(v) for v in value)
    else:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown if len(shown) <= DETAIL_CHARACTERS else shown[: DETAIL_CHARACTERS - 1] + "…"
