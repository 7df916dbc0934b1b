"""Geometry of the pages' pictures: a curve of losses, and the time line of a run. Pure: numbers in, SVG coordinates out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ddp_operator.decide.durations import spoken
from ddp_operator.decide.facts import RunFacts
from ddp_operator.web.texts import seconds_of

MIN_POINTS = 2
LINE_UNITS = 1000.0
"""Width of the time line's own coordinates."""
MIN_BAND_UNITS = 3.0
"""A second of trouble in a run of a week stays visible."""


def curve(points: Sequence[tuple[float, float]], width: float, height: float) -> str:
    """The `points` of an SVG polyline in a box, the smallest loss at the bottom; "" for less than two points."""
    if len(points) < MIN_POINTS:
        return ""
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    low, high = min(losses), max(losses)
    return " ".join(
        f"{width * _share(step, steps[0], steps[-1]):.1f},{height * (1 - _share(loss, low, high)):.1f}" for step, loss in points
    )


def _share(value: float, start: float, end: float) -> float:
    # halves first: the difference of two huge losses would be infinite
    span = end / 2 - start / 2
    return (value / 2 - start / 2) / span if span > 0 else 0.5


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of time. `x` and `width` in `LINE_UNITS`; `tone` chooses the colour."""

    x: float
    width: float
    tone: str
    title: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment."""

    x: float
    tone: str
    title: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A label below the line."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True, slots=True)
class TimeLine:
    """The life of a run from left to right."""

    bands: tuple[Band, ...]
    faults: tuple[Mark, ...]
    checkpoints: tuple[Mark, ...]
    ticks: tuple[Tick, ...]


def time_line(run: RunFacts, saved: Sequence[float], now: float) -> TimeLine | None:
    """None while there is nothing to show. `saved`: when it saved checkpoints, in seconds since the epoch."""
    timing, ledger = run.status.timing, run.status.ledger
    stamps = [timing.pending_since, timing.started_at, timing.running_at, timing.finished_at, *(entry.at for entry in ledger)]
    known = [seconds_of(stamp) for stamp in stamps if stamp is not None]
    if not known:
        return None
    start = min(known)
    end = seconds_of(timing.finished_at) if timing.finished_at else now
    end = max(end, start + 1.0, *known)
    started, running = (seconds_of(stamp) if stamp else None for stamp in (timing.started_at, timing.running_at))

    def at(moment: float) -> float:
        return LINE_UNITS * min(1.0, max(0.0, (moment - start) / (end - start)))

    def band(since: float, until: float, tone: str, what: str) -> Band:
        x, wide = at(since), max(MIN_BAND_UNITS, at(until) - at(since))
        return Band(round(min(x, LINE_UNITS - MIN_BAND_UNITS), 1), round(wide, 1), tone, f"{what} for {spoken(max(0.0, until - since))}")

    bands = [band(start, started or end, "idle", "pending")]
    if started is not None:
        bands.append(band(started, running or end, "warm", "starting"))
    if running is not None:
        bands.append(band(running, end, "good", "training"))
    faults = []
    for entry in ledger:
        since = seconds_of(entry.at)
        until = seconds_of(entry.recovered_at) if entry.recovered_at else end
        place = f" of {entry.pod}" if entry.pod else ""
        bands.append(band(since, until, "bad", f"{entry.cause}{place}: away"))
        faults.append(Mark(round(at(since), 1), "bad", f"{entry.cause}{place} at step {entry.step}"))
    if timing.suspended_at is not None:
        bands.append(band(seconds_of(timing.suspended_at), end, "idle", "suspended"))
    marks = tuple(Mark(round(at(moment), 1), "accent", "checkpoint saved") for moment in saved if start <= moment <= end)
    return TimeLine(tuple(bands), tuple(faults), marks, _ticks(end - start))


def _ticks(span_seconds: float) -> tuple[Tick, ...]:
    """Ages at round distances: 0 at the left, at most five more."""
    rough = span_seconds / 5
    steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400]
    step = next((step for step in steps if step >= rough), math.ceil(rough / 86400) * 86400)
    ticks = [Tick(0.0, "0", "start")]
    for index in range(1, 6):
        x = LINE_UNITS * index * step / span_seconds
        if x > LINE_UNITS * 0.97:
            break
        ticks.append(Tick(round(x, 1), spoken(index * step), "middle"))
    return tuple(ticks)
