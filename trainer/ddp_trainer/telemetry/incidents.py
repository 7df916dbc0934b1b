"""What struck a run, and how it came back: the incidents of its diary, phase by phase. Pure.

An incident begins with a fault (or a node that came back) and ends with the first new step. Faults that follow before that belong to it,
and so does what comes to light then: the node that was lost, where at first only others' failures were seen. A preemption goes on through
the stop and the next start: what lies between those is nobody's time. An older diary has no `first_step`; there an incident ends when a
state was found, or with whatever only a training gang writes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ddp_trainer.errors import HANG, PEER_LOST, PREEMPTED
from ddp_trainer.telemetry.run_clock import Moment, Record, RunClock, is_ending, number, steps_of, text, whole

REJOIN = "rejoin"
"""The cause of a re-forming that is no fault: a node came back and is let in."""
STILL = re.compile(r"no sign of life for (\d{1,9}(?:\.\d+)?) s")
"""The watchdog's own measure of how long a hang was not seen; the lines of `metrics.jsonl` may lie minutes apart."""
LONGEST_UNSEEN_SECONDS = 3.0
"""Node 0 writes of a death within tenths of a second, and of one that only others suffered from after one; more is a wrong clock."""
SUFFERED = frozenset({"failed_collective", HANG.cause})
"""Causes that may be another node's loss: its peers lost it, or wait for it."""
THE_BEGINNING = "the beginning"
"""The `source` of an incident after which there was no state to go on from."""


@dataclass(frozen=True)
class Incident:
    """What struck, and when training went on. Moments are run seconds; None is what did not happen, or what nobody wrote down."""

    began_seconds: float
    """When the ranks stood still: in a hang, before the fault was seen."""
    seconds: float
    """When the fault was seen."""
    cause: str
    step: int | None = None
    rank: int | None = None
    node: int | None = None
    exit: int | None = None
    message: str = ""
    stacks: Mapping[str, str] = field(default_factory=dict)
    """What the ranks were doing in a hang, by rank."""
    echoes: int = 0
    """Further faults before training went on."""
    formed_seconds: float | None = None
    resumed_seconds: float | None = None
    first_step_seconds: float | None = None
    stopped_seconds: float | None = None
    """When the run was stopped instead."""
    resumed_step: int | None = None
    source: str | None = None
    """memory, disk, or the beginning."""
    lost_steps: int | None = None
    lost_since_seconds: float | None = None
    """When the work on the first of these steps was begun; None where none were lost."""

    @property
    def phases(self) -> dict[str, float | None]:
        """Seconds to detect, re-form, find the state and make the first step; an unknown one lies in the next. They sum to the whole."""
        found: dict[str, float | None] = {}
        before = self.began_seconds
        marks = {"detect": self.seconds, "re-form": self.formed_seconds, "find state": self.resumed_seconds}
        for name, mark in (marks | {"first step": self.first_step_seconds}).items():
            found[name] = None if mark is None else mark - before
            before = before if mark is None else mark
        return found

    @property
    def recovery_seconds(self) -> float | None:
        """The whole: from standing still until training went on; None where it did not."""
        went_on = self.resumed_seconds if self.first_step_seconds is None else self.first_step_seconds
        return None if went_on is None else went_on - self.began_seconds

    def ended_seconds(self, run_end: float) -> float:
        """When it was over: training went on, or the run stopped, or (nothing followed) the run ended."""
        ends = (self.first_step_seconds, self.resumed_seconds, self.stopped_seconds)
        return next((end for end in ends if end is not None), max(run_end, self.seconds))

    @property
    def where(self) -> str:
        """`rank 2 on node 2`, or less, or nothing."""
        parts = ([f"rank {self.rank}"] if self.rank is not None else []) + ([f"node {self.node}"] if self.node is not None else [])
        return " on ".join(parts)


def incidents(events: Sequence[Record], metrics: Sequence[Record] = ()) -> list[Incident]:
    """What struck the run, in order and without overlap; the last one may be open.

    Args:
        events: the lines of `events.jsonl` in their order, however torn or odd.
        metrics: those of `metrics.jsonl`: they tell when a run that died without a word was last alive, and when a step was made.
    """
    clock = RunClock(events, metrics)
    moments, lines = clock.moments, steps_of(metrics, clock)
    reader = _Reader(has_first_steps=any(r["kind"] == "first_step" for _, r in moments), signs=[seconds for seconds, _ in lines])
    for index, moment in enumerate(moments):
        reader.read(moment, moments[max(0, index - 1) : index], moments[index + 1 : index + 2])
    begun = [(seconds, 0) for seconds, r in moments if r["kind"] == "form"][:1]
    stepped = [(s, step) for s, r in moments if r["kind"] in {"first_step", "resume"} and (step := whole(r.get("step"))) is not None]
    known = sorted([*begun, *stepped, *lines])
    return [replace(incident, lost_since_seconds=_lost_since(incident, known)) for incident in reader.end()]


class _Reader:
    """Reads the moments of a run one by one."""

    def __init__(self, *, has_first_steps: bool, signs: Sequence[float]) -> None:
        self._closing = {"first_step", "finish"} if has_first_steps else {"resume", "checkpoint", "evaluate", "finish"}
        self._signs = sorted(signs)
        self._found: list[Incident] = []
        self._current: Incident | None = None
        self._stacks: dict[str, str] = {}
        self._attempt = 0
        self._free_since = 0.0
        """Ranks that were seen to do something then cannot have stood still before."""

    def read(self, moment: Moment, before: Sequence[Moment], after: Sequence[Moment]) -> None:
        """Take in the next moment; `before` and `after`: the moments beside it, if any."""
        (seconds, record), current = moment, self._current
        kind, step = record.get("kind"), whole(record.get("step"))
        if kind == "stacks":
            told = record.get("stacks")
            self._stacks |= {str(rank): str(words) for rank, words in told.items()} if isinstance(told, dict) else {}
        elif kind == "fault" or (current is None and (kind == "restart" or (kind == "stop" and not is_ending(record)))):
            if current is None or _has_stepped(current, step):
                self._close(current)
                self._current = self._opened(record, seconds, self._seen_alive(seconds, record, before, after))
            else:
                self._current = replace(current, echoes=current.echoes + 1, formed_seconds=None, resumed_seconds=None, stopped_seconds=None)
        elif kind == "lost" and current is not None:
            self._current = _explained(current, record)
        elif current is None:
            self._free_since = seconds if kind in {"start", "form", "resume", "first_step"} else self._free_since
        elif kind == "form":
            self._attempt = whole(record.get("attempt")) or 0
            self._current = replace(current, formed_seconds=seconds, resumed_seconds=None)  # what was found before is to be found again
        elif kind == "resume":
            self._current = _resumed(current, record, seconds, step)
        elif kind == "stop" and is_ending(record):
            self._current = replace(current, stopped_seconds=seconds)
            if current.cause != PREEMPTED.cause:
                self._close(self._current)
        self._close_if_training(seconds, record, str(kind), step)

    def end(self) -> list[Incident]:
        """All incidents, when everything was read."""
        self._close(self._current)
        return self._found

    def _seen_alive(self, seconds: float, record: Record, before: Sequence[Moment], after: Sequence[Moment]) -> float:
        """When the ranks were last alive before this fault."""
        alive = seconds - (_still_seconds(record) if record.get("cause") == HANG.cause else _unseen_seconds(record))
        if (record["kind"], record.get("cause")) == ("fault", PEER_LOST.cause) and after and after[0][1]["kind"] == "start":
            # A successor wrote this: its predecessor died without a word, some time ago, and its last sign of life is all that is known.
            alive = max([*(s for s, _ in before), *self._signs[: bisect_left(self._signs, seconds)][-1:]], default=seconds)
        return min(seconds, max(alive, self._free_since))

    def _opened(self, record: Record, seconds: float, began: float) -> Incident:
        rank, node, code = (whole(record.get(name)) for name in ("rank", "node", "exit"))
        cause, message = text(record.get("cause")) or "unknown cause", text(record.get("message")) or ""
        return Incident(began, seconds, cause, whole(record.get("step")), rank, node, code, message)

    def _close_if_training(self, seconds: float, record: Record, kind: str, step: int | None) -> None:
        current = self._current
        # A checkpoint may come late, from the background writer of a gang that is gone.
        is_late = kind == "checkpoint" and (whole(record.get("attempt")) or self._attempt) < self._attempt
        if current is None or kind not in self._closing or is_late or current.formed_seconds is current.resumed_seconds is None:
            return
        if current.resumed_seconds is None:  # nothing was found, so it began again; or the line is torn, and the first step tells
            begun = step - 1 if kind == "first_step" and step else 0
            lost = max(0, current.step - begun) if current.step is not None else None
            source = None if begun else THE_BEGINNING
            current = replace(current, resumed_seconds=current.formed_seconds, resumed_step=begun, source=source, lost_steps=lost)
        self._close(replace(current, first_step_seconds=seconds) if kind == "first_step" else current)
        self._free_since = seconds

    def _close(self, incident: Incident | None) -> None:
        if incident is not None:
            self._found.append(replace(incident, stacks=self._stacks))
            self._free_since = max(self._free_since, incident.ended_seconds(incident.seconds))
        self._current, self._stacks = None, {} if incident is not None else self._stacks


def _still_seconds(record: Record) -> float:
    """How long nothing had moved in a hang; older diaries have it in the sentence only."""
    still = STILL.search(text(record.get("message")) or "")
    return max(0.0, number(record.get("still_seconds")) or (float(still[1]) if still else 0.0))


def _unseen_seconds(record: Record) -> float:
    """How long before node 0 wrote of a death it was, by the clock of its own node."""
    struck_at, written_at = number(record.get("struck_at")), number(record.get("time"))
    unseen = written_at - struck_at if struck_at is not None and written_at is not None else 0.0
    return unseen if 0.0 < unseen < LONGEST_UNSEEN_SECONDS else 0.0


def _has_stepped(incident: Incident, step: int | None) -> bool:
    """Whether steps were made since the ranks resumed, though the line of the first one is missing, when a fault strikes at `step`."""
    return incident.resumed_step is not None and incident.resumed_seconds is not None and step is not None and step > incident.resumed_step


def _explained(incident: Incident, record: Record) -> Incident:
    """The node that was lost in it, where its fault could only say who suffered from that; of several nodes, the first.

    After a second fault nothing is explained: it is that one of which the node was the cause.
    """
    if incident.echoes or incident.cause not in SUFFERED:
        return incident
    node, message = whole(record.get("node")), text(record.get("message")) or incident.message
    return replace(incident, cause=PEER_LOST.cause, rank=None, node=node, exit=None, message=message)


def _resumed(incident: Incident, record: Record, seconds: float, step: int | None) -> Incident:
    lost, seen = number(record.get("lost_steps")), None
    if incident.step is not None and step is not None:
        seen = max(0, incident.step - step)
    # The line says exactly what this start lost; after an echo an earlier start of the same incident lost some, too.
    known = [int(lost)] if lost is not None and lost >= 0 else []
    known += [seen] if seen is not None and (incident.echoes or not known) else []
    source = text(record.get("source")) if step != 0 else THE_BEGINNING
    return replace(incident, resumed_seconds=seconds, resumed_step=step, source=source, lost_steps=max(known, default=None))


def _lost_since(incident: Incident, known: Sequence[tuple[float, int]]) -> float | None:
    """When the first lost step was begun: between `known` (run seconds, step), by rising time, all steps are taken for equally long."""
    if not incident.lost_steps or incident.resumed_step is None:
        return None
    first, last = incident.resumed_step, incident.resumed_step + incident.lost_steps
    earlier = known[: bisect_left(known, (incident.began_seconds, -1))]
    seconds, step = next((point for point in reversed(earlier) if point[1] <= first), (0.0, 0))
    return seconds + (incident.began_seconds - seconds) * (max(0, first - step) / max(1, last - step))
