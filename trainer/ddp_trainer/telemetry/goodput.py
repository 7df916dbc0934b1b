"""Goodput: the part of a run's time in which steps were made that lasted, and what took the rest. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Literal

from ddp_trainer.telemetry.incidents import Incident, incidents
from ddp_trainer.telemetry.run_clock import Moment, Record, RunClock, number, whole

SpanName = Literal["starting", "training", "lost", "recovering"]


@dataclass(frozen=True)
class Span:
    """What the run did from `start` to `end`, in run seconds; `cause` is that of the incident that cost this time, if one did."""

    name: SpanName
    start: float
    end: float
    cause: str = ""


@dataclass(frozen=True)
class Goodput:
    """Where the run time went: five parts that sum to `wall_seconds`. Evaluations count as training."""

    lasting_seconds: float
    """Training whose steps no later fault took back, without the stalls."""
    lost_seconds: float
    """Training whose steps had to be done again."""
    recovering_seconds: float
    stall_seconds: float
    """Training stood still while the state was copied; of ranks that died, until their last checkpoint."""
    starting_seconds: float
    loss_by_cause: Mapping[str, float]
    """Seconds lost and recovering by the cause of the incident, greatest first."""
    checkpoints: int
    durable_seconds: float | None
    """From a copied state to a durable one, on average."""
    incidents: tuple[Incident, ...]
    spans: tuple[Span, ...]

    @property
    def wall_seconds(self) -> float:
        """Run time from the start to the end, or to the last line of a run that has no end."""
        return self.lasting_seconds + self.lost_seconds + self.recovering_seconds + self.stall_seconds + self.starting_seconds

    @property
    def ratio(self) -> float | None:
        """0 to 1; None before there is any time."""
        return min(1.0, self.lasting_seconds / self.wall_seconds) if self.wall_seconds > 0 else None


def summary(events: Sequence[Record], metrics: Sequence[Record] = ()) -> Goodput:
    """The account of a run, from the lines of its `events.jsonl` and `metrics.jsonl` (`read_metrics`), however torn or odd."""
    clock, found = RunClock(events, metrics), incidents(events, metrics)
    spans = _spans(clock.moments, found, clock.end_seconds)
    for incident in found:
        spans = _without(spans, incident)
    parts = {name: sum(s.end - s.start for s in spans if s.name == name) for name in ("training", "lost", "recovering", "starting")}
    causes = dict.fromkeys(span.cause for span in spans if span.cause)
    losses = {cause: sum(s.end - s.start for s in spans if s.cause == cause) for cause in causes}
    # By step and attempt: a copy that is written twice, since a fault tore the first try, stalled training once.
    saved = {(whole(r.get("step")), whole(r.get("attempt"))): r for _, r in clock.moments if r.get("kind") == "checkpoint"}.values()
    stall = min(parts["training"], _stall_seconds([r for _, r in clock.moments if r.get("kind") == "finish"], list(saved)))
    durable = [took for r in saved if (took := number(r.get("persist_seconds"))) is not None and took >= 0]
    return Goodput(
        lasting_seconds=parts["training"] - stall,
        lost_seconds=parts["lost"],
        recovering_seconds=parts["recovering"],
        stall_seconds=stall,
        starting_seconds=parts["starting"],
        loss_by_cause=dict(sorted(losses.items(), key=lambda item: -item[1])),
        checkpoints=len(saved),
        durable_seconds=fmean(durable) if durable else None,
        incidents=tuple(found),
        spans=tuple(spans),
    )


def _stall_seconds(finished: Sequence[Record], saved: Sequence[Record]) -> float:
    """Per start of the ranks what they said last of all copies since, or (in an older diary) those that became durable."""
    durable: dict[int | None, float] = {}
    told: dict[int | None, float] = {}
    for record in (*saved, *finished):
        attempt = whole(record.get("attempt"))
        durable[attempt] = durable.get(attempt, 0.0) + max(0.0, number(record.get("stall_seconds")) or 0.0)
        told[attempt] = max(told.get(attempt, 0.0), number(record.get("stall_seconds_so_far")) or 0.0)
    return sum(max(seconds, told[attempt]) for attempt, seconds in durable.items())


def _spans(moments: Sequence[Moment], found: Sequence[Incident], end_seconds: float) -> list[Span]:
    """The run time in order: starting until the first step (an older diary: until a gang formed), then training, until an incident."""
    has_first_steps = any(record.get("kind") == "first_step" for _, record in moments)
    trains = {"first_step", "evaluate"} if has_first_steps else {"form", "resume", "evaluate"}
    marks: list[tuple[float, SpanName | None, str]] = []
    for incident in found:
        went_on: SpanName | None = None if incident.recovery_seconds is None else "training"
        marks += [(incident.began_seconds, "recovering", incident.cause), (incident.ended_seconds(end_seconds), went_on, "")]
    begins = [incident.began_seconds for incident in found]
    for seconds, record in moments:
        index = bisect_right(begins, seconds) - 1
        if index >= 0 and seconds < found[index].ended_seconds(end_seconds):
            continue  # whatever starts and forms here is part of the recovery
        kind = record.get("kind")
        if kind in {"start", "form"} | trains:
            marks.append((seconds, "training" if kind in trains else "starting", ""))
        elif kind in {"stop", "finish"}:
            marks.append((seconds, None, ""))
    marks.sort(key=lambda mark: mark[0])
    spans: list[Span] = []
    for (start, name, cause), (end, _, _) in pairwise([*marks, (max(end_seconds, *(m[0] for m in marks[-1:]), 0.0), None, "")]):
        if spans and (spans[-1].name, spans[-1].cause, spans[-1].end) == (name, cause, start):
            spans[-1] = replace(spans[-1], end=end)
        elif name is not None and end > start:
            spans.append(Span(name, start, end, cause))
    return spans


def _without(spans: list[Span], incident: Incident) -> list[Span]:
    """The spans with the training whose steps the incident took back marked as lost to it."""
    if incident.lost_since_seconds is None:
        return spans
    found = []
    for span in spans:
        low, high = max(span.start, incident.lost_since_seconds), min(span.end, incident.began_seconds)
        if span.name != "training" or low >= high:
            found.append(span)
            continue
        pieces = (Span("training", span.start, low), Span("lost", low, high, incident.cause), Span("training", high, span.end))
        found += [piece for piece in pieces if piece.end > piece.start]
    return found
