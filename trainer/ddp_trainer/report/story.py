"""The run as a story: how it ended, which faults it met, what each cost, and where its time went.

Pure: raw inputs in, one frozen `Run` out; page and charts only show what stands here. An incident begins with a fault and ends when
training goes on; training that goes on without a `resume`, or with one at step 0, had no saved state, so it began again. A fault that
nothing followed stays open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Literal

from ddp_trainer.report.inputs import Inputs, Record
from ddp_trainer.report.model import (
    Checkpoint,
    Evaluated,
    Evaluation,
    Event,
    Incident,
    RunClock,
    Train,
    checkpoints,
    clock_of,
    eval_points,
    evaluation,
    event_list,
    is_ending,
    number,
    text,
    train_points,
    whole,
)

PROGRESS_SIGNS = frozenset({"checkpoint", "evaluate", "finish"})
"""Events that only a training gang writes."""
LASTING = frozenset({"checkpoint", "resume", "finish"})
"""Events whose step no later fault has taken back."""
INTENDED_EXITS = frozenset({0, 130, 143})
"""Finished, Ctrl-C and preemption: somebody wanted the stop."""

THE_BEGINNING = "the beginning"
"""The `source` of an incident after which there was no state to go on from."""

PhaseName = Literal["starting", "training", "evaluating", "recovering"]


@dataclass(frozen=True)
class Phase:
    """What the run did from `start` to `end`, in run seconds; evaluations lie on top of training."""

    name: PhaseName
    start: float
    end: float


@dataclass(frozen=True)
class Outcome:
    """How the run ended; `word` is also the page's colour class."""

    word: Literal["finished", "stopped", "failed", "unfinished"]
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """Everything the report says, besides the configuration."""

    name: str
    outcome: Outcome
    started_at: float | None
    """Seconds since 1970."""
    wall_seconds: float
    """Run time, pauses between two invocations not counted."""
    train: list[Train]
    evals: list[Evaluated]
    checkpoints: list[Checkpoint]
    incidents: list[Incident]
    phases: list[Phase]
    events: list[Event]
    evaluation: Evaluation | None
    last_step: int | None
    total_steps: int | None
    lost_steps: int | None
    restarts: dict[str, int]
    goodput_ratio: float | None
    samples_per_second: float | None
    """Median over the training lines."""
    world_size: int | None
    nodes: int | None
    environment: dict[str, str]
    """What is known of the machine: label -> value."""

    @property
    def final_accuracy(self) -> float | None:
        """Test accuracy of the last evaluation, a ratio."""
        return next((p.accuracy for p in reversed(self.evals) if p.accuracy is not None), None)

    @property
    def best_accuracy(self) -> float | None:
        """The best test accuracy seen."""
        return max((p.accuracy for p in self.evals if p.accuracy is not None), default=None)


def tell(inputs: Inputs) -> Run:
    """Derive everything the page shows from what the run wrote."""
    clock = clock_of(inputs)
    dated = [{**e, "kind": text(e.get("kind"))} for e in inputs.events if number(e.get("time")) is not None]
    records = sorted(dated, key=lambda e: float(e["time"]))
    train, evals = train_points(inputs.metrics, clock), eval_points(inputs.metrics, clock)
    events, progress = event_list(records, clock), inputs.progress or {}
    end = max([*(p.seconds for p in train), *(p.seconds for p in evals), *(e.seconds for e in events)], default=0.0)
    incidents = find_incidents(records, clock)
    restarts = {name: n for name, count in _mapping(progress.get("restarts")).items() if (n := whole(count))}
    lost = [i.lost_steps for i in incidents if i.lost_steps is not None]
    speeds = [p.samples_per_second for p in train if p.samples_per_second]
    world_size, nodes = _world(inputs, records)
    steps = [*(p.step for p in train), *(p.step for p in evals), *(e.step for e in events if e.step is not None and e.kind in LASTING)]
    return Run(
        name=text(_mapping(_mapping(inputs.config).get("run")).get("name")) or text(progress.get("run")) or inputs.name,
        outcome=find_outcome(records, incidents, progress),
        started_at=clock.origin or None,
        wall_seconds=end,
        train=train,
        evals=evals,
        checkpoints=checkpoints(records, clock),
        incidents=incidents,
        phases=find_phases(records, clock, incidents, evals, end),
        events=events,
        evaluation=evaluation(inputs.evaluation),
        last_step=max(steps, default=whole(progress.get("step"))),
        total_steps=whole(progress.get("total_steps")),
        lost_steps=sum(lost) if lost else (whole(progress.get("lost_steps")) if incidents or inputs.progress else None),
        restarts=restarts or _count_causes(incidents),
        goodput_ratio=number(progress.get("goodput_ratio")),
        samples_per_second=median(speeds) if speeds else None,
        world_size=world_size,
        nodes=nodes,
        environment=_environment(inputs),
    )


def find_incidents(records: list[Record], clock: RunClock) -> list[Incident]:
    """Faults paired with what followed; `records` are events in the order of time."""
    found: list[Incident] = []
    current: Incident | None = None
    formed: float | None = None
    has_state = False
    for record in records:
        kind, seconds, step = record.get("kind"), clock(float(record["time"])), whole(record.get("step"))
        has_state = has_state or (kind in {"checkpoint", "resume"} and bool(step))
        if kind == "fault":
            if current is not None and formed is not None and not has_state:  # there was nothing to load, so that gang did train
                found.append(_begun_again(current, formed))
                current = None
            current, formed = _opened(record, seconds, step) if current is None else replace(current, echoes=current.echoes + 1), None
        elif current is None:
            continue
        elif kind == "form":
            formed = seconds
        elif kind == "resume":
            lost = max(0, current.step - step) if current.step is not None and step is not None else whole(record.get("lost_steps"))
            source = text(record.get("source")) if step else THE_BEGINNING
            found.append(replace(current, resumed_seconds=seconds, resumed_step=step, source=source, lost_steps=lost))
            current = None
        elif kind in PROGRESS_SIGNS and formed is not None:
            found.append(_begun_again(current, formed))
            current = None
        elif is_ending(record):
            found.append(_at_rest(current, formed, has_state, seconds))
            current = None
    return [*found, _at_rest(current, formed, has_state, None)] if current else found


def _at_rest(incident: Incident, formed: float | None, has_state: bool, stopped: float | None) -> Incident:
    """An incident that nothing resumed, at the run's end: a gang that formed with nothing to load did train."""
    return _begun_again(incident, formed) if formed is not None and not has_state else replace(incident, stopped_seconds=stopped)


def _begun_again(incident: Incident, seconds: float) -> Incident:
    return replace(incident, resumed_seconds=seconds, resumed_step=0, source=THE_BEGINNING, lost_steps=incident.step)


def _opened(record: Record, seconds: float, step: int | None) -> Incident:
    rank, node, exit_code = whole(record.get("rank")), whole(record.get("node")), whole(record.get("exit"))
    return Incident(seconds, step, text(record.get("cause")) or "unknown cause", rank, node, exit_code, text(record.get("message")) or "")


def find_phases(
    records: list[Record], clock: RunClock, incidents: list[Incident], evals: list[Evaluated], end_seconds: float
) -> list[Phase]:
    """Where the run time went: starting until a gang forms, then training, until a fault opens a recovery."""
    marks: list[tuple[float, PhaseName | None]] = []
    for record in records:
        seconds, kind = clock(float(record["time"])), record.get("kind")
        if any(i.seconds <= seconds < i.ended_seconds(end_seconds) for i in incidents):
            continue  # whatever starts and forms here is part of the recovery
        if kind in {"start", "form", "resume"}:
            marks.append((seconds, "starting" if kind == "start" else "training"))
        elif kind in {"stop", "finish"}:
            marks.append((seconds, None))
    for incident in incidents:
        marks.append((incident.seconds, "recovering"))
        if incident.resumed_seconds is not None:
            marks.append((incident.resumed_seconds, "training"))
    phases: list[Phase] = []
    marks.sort(key=lambda mark: mark[0])
    for (start, name), (end, _) in pairwise([*marks, (end_seconds, None)]):
        if name is None or end <= start:
            continue
        if phases and phases[-1].name == name and phases[-1].end == start:
            phases[-1] = replace(phases[-1], end=end)
        else:
            phases.append(Phase(name, start, end))
    evaluating = [Phase("evaluating", max(0.0, p.seconds - p.duration_seconds), p.seconds) for p in evals if p.duration_seconds]
    return phases + evaluating


def find_outcome(records: list[Record], incidents: list[Incident], progress: Record) -> Outcome:
    """How it ended, from the last event that says so, else from progress.json."""
    last = next((r for r in reversed(records) if r.get("kind") in {"start", "stop", "finish"}), {})
    if last.get("kind") == "finish" or (not records and progress.get("phase") == "finished"):
        return Outcome("finished")
    if last.get("kind") == "stop":
        reason = text(last.get("message")) or (text(last.get("cause")) or "").replace("_", " ")
        code = whole(last.get("exit"))
        return Outcome("stopped" if code is None or code in INTENDED_EXITS else "failed", reason)
    if progress.get("phase") == "failed" or (incidents and incidents[-1].resumed_seconds is None):
        reason = f"{incidents[-1].cause.replace('_', ' ')}: {incidents[-1].message}" if incidents else ""
        return Outcome("failed", reason)
    return Outcome("unfinished", "no end of the run was recorded: it still runs, or it was killed")


def _world(inputs: Inputs, records: list[Record]) -> tuple[int | None, int | None]:
    """World size and nodes: as formed, else as reported, else as configured."""
    formed = [size for r in records if r.get("kind") == "form" and (size := whole(r.get("world_size")))]
    started = [nodes for r in records if r.get("kind") == "start" and (nodes := whole(r.get("nodes")))]
    distributed = _mapping(_mapping(inputs.config).get("distributed"))
    nodes = started[-1] if started else whole(distributed.get("nodes"))
    procs = whole(distributed.get("procs_per_node"))
    reported = whole((inputs.progress or {}).get("world_size"))
    return (formed[-1] if formed else reported or (nodes * procs if nodes and procs else None)), nodes


def _environment(inputs: Inputs) -> dict[str, str]:
    found: dict[str, str] = {}
    gpus = (inputs.progress or {}).get("gpus")
    if isinstance(gpus, list):
        names = [text(_mapping(gpu).get("name")) or "GPU" for gpu in gpus]
        found["device"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "CPU"
    manifest = inputs.manifest or {}
    for key in ("versions", "libraries", "library_versions"):
        found |= {str(name): str(version) for name, version in _mapping(manifest.get(key)).items()}
    return found


def _count_causes(incidents: list[Incident]) -> dict[str, int]:
    causes = [i.cause for i in incidents if i.resumed_seconds is not None]
    return {cause: causes.count(cause) for cause in dict.fromkeys(causes)}


def _mapping(value: object) -> Record:
    return value if isinstance(value, dict) else {}
