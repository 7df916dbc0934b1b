"""The page of one run: its facts -> panels, texts ready to print. Pure; the template only lays it out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ddp_operator.api.advice import Advice, advise, pod_to_look_at
from ddp_operator.api.trainingrun import ClaimStatus, LedgerEntry, ProgressStatus
from ddp_operator.api.words import PREEMPTION_CAUSES, Act, ConditionType
from ddp_operator.decide.claims import is_shared
from ddp_operator.decide.durations import spoken
from ddp_operator.decide.facts import PodFacts, RunFacts
from ddp_operator.web.board import TONES, condition_of, steps_of
from ddp_operator.web.drawing import TimeLine, curve, time_line
from ddp_operator.web.history import History
from ddp_operator.web.metrics import as_ratio
from ddp_operator.web.texts import NONE, age, ago, clock, count, or_none, seconds_of, size, stamp

PODS_SHOWN = 256
CHART = (600.0, 120.0)
"""Width and height of the curve of losses."""
VOLUME_WARNING_PERCENT, VOLUME_BAD_PERCENT = 85, 95
"""As the operator's own events have it."""


@dataclass(frozen=True, slots=True)
class Card:
    """One headline number. `percent` draws a bar."""

    label: str
    value: str
    note: str = ""
    tone: str = ""
    percent: int | None = None


@dataclass(frozen=True, slots=True)
class Incident:
    """One line of the ledger."""

    at: str
    ago: str
    cause: str
    tone: str
    where: str
    exit_code: str
    step: str
    durable: str
    action: str
    outcome: str
    lost: str
    message: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim and how full it is. `room` is that in words."""

    name: str
    phase: str
    room: str
    percent: int | None
    tone: str
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of the run's job."""

    replica: str
    name: str
    state: str
    tone: str
    node: str
    restarts: int
    age: str
    note: str


@dataclass(frozen=True, slots=True)
class ConditionRow:
    """A condition."""

    type: str
    status: str
    tone: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True, slots=True)
class RunPage:
    """One run."""

    namespace: str
    name: str
    job: str
    phase: str
    tone: str
    reason: str
    message: str
    since: str
    advice: Advice
    cards: tuple[Card, ...]
    percent: int | None
    steps: str
    note: str
    loss_points: str
    loss_range: str
    line: TimeLine | None
    incidents: tuple[Incident, ...]
    conditions: tuple[ConditionRow, ...]
    claims: tuple[Claim, ...]
    pods: tuple[Pod, ...]
    pods_left_out: int
    replicas: str
    made_at: str


def run_page(run: RunFacts, history: History, now: float) -> RunPage:
    """All that is known of one run."""
    status, progress, points = run.status, run.status.progress or ProgressStatus(), history.losses(run.namespace, run.name)
    replicas = status.replicas
    return RunPage(
        namespace=run.namespace,
        name=run.name,
        job=run.spec.job_ref.name,
        phase=status.phase,
        tone=TONES[status.phase],
        reason=status.reason,
        message=status.message,
        since=ago(status.phase_since, now),
        advice=advice_for(run),
        cards=_cards(run, now),
        percent=min(100, progress.percent) if progress.total_steps else None,
        steps=steps_of(run),
        note=progress.note,
        loss_points=curve(points, *CHART),
        loss_range=f"steps {points[0][0]:,.0f} to {points[-1][0]:,.0f}, loss {points[0][1]:.4g} to {points[-1][1]:.4g}" if points else "",
        line=time_line(run, history.checkpoints(run.namespace, run.name), now),
        incidents=tuple(_incident(entry, now) for entry in reversed(status.ledger)),
        conditions=tuple(
            ConditionRow(c.type, c.status, _condition_tone(c.type, c.status), c.reason, c.message, ago(c.last_transition_time, now))
            for c in status.conditions
        ),
        claims=tuple(_claim(claim) for claim in status.claims),
        pods=tuple(_pod(pod, now) for pod in sorted(run.pods, key=_replica_place)[:PODS_SHOWN]),
        pods_left_out=max(0, len(run.pods) - PODS_SHOWN),
        replicas=f"{replicas.running} of {replicas.desired} running",
        made_at=clock(now),
    )


def advice_for(run: RunFacts) -> Advice:
    """What to do about it, with the pod and the claim that matter most."""
    status, pods = run.status, sorted(run.pods, key=_replica_place)
    lost = next((entry.pod for entry in status.ledger[-1:] if entry.recovered_at is None), "")
    claims = [run.spec.checkpoint.claim_name or "", *(claim.name for claim in status.claims)]
    return advise(
        status.phase,
        status.reason,
        namespace=run.namespace,
        run=run.name,
        job=run.spec.job_ref.name,
        pod=pod_to_look_at(status.phase, lost, [(pod.name, pod.phase) for pod in pods]),
        claim=next(filter(None, claims), ""),
        conditions={condition.type: (condition.status, condition.reason) for condition in status.conditions},
        overdue=status.overdue or "",
        has_pods=bool(pods),
    )


def _cards(run: RunFacts, now: float) -> tuple[Card, ...]:
    status, policy, progress, saved = run.status, run.spec.policy, run.status.progress or ProgressStatus(), run.status.checkpoint
    restarts, goodput = status.restarts, as_ratio(status.timing.goodput_ratio)
    is_stale = condition_of(run, ConditionType.CHECKPOINT_FRESH) == "False"
    spent = round(100 * restarts.failures / policy.max_restarts) if policy.max_restarts else 0
    return (
        Card("Time left", or_none(progress.eta), f"epoch {progress.epoch}" if progress.epoch else ""),
        Card(
            "Loss",
            or_none(progress.loss),
            f"accuracy {progress.accuracy}" if progress.accuracy else "",
        ),
        Card(
            "Samples/s",
            or_none(progress.samples_per_second),
            f"{progress.world_size} ranks" if progress.world_size else "",
        ),
        Card(
            "Durable step",
            count(saved.step) if saved else NONE,
            f"{ago(saved.saved_at, now)} ago, {size(saved.bytes)}, {'verified' if saved.verified else 'not verified'}"
            if saved
            else "nothing saved yet",
            "warn" if is_stale else "",
        ),
        Card(
            "Restarts",
            f"{restarts.failures} of {policy.max_restarts}",
            f"preemptions {restarts.preemptions}, in place {restarts.in_process}, by the operator {restarts.by_operator}",
            "bad" if spent >= 100 else "warn" if spent >= 50 else "",  # noqa: PLR2004  # used up, half used up
        ),
        Card(
            "Goodput",
            NONE if goodput is None else f"{100 * goodput:.1f} %",
            f"{count(status.timing.lost_steps)} steps lost",
        ),
    )


def _incident(entry: LedgerEntry, now: float) -> Incident:
    recovered = entry.recovered_at
    return Incident(
        at=stamp(entry.at),
        ago=ago(entry.at, now),
        cause=entry.cause,
        tone="warn" if entry.cause in PREEMPTION_CAUSES else "bad",
        where=entry.pod + (f" on {entry.node}" if entry.node else ""),
        exit_code=NONE if entry.exit_code is None else str(entry.exit_code),
        step=count(entry.step),
        durable=count(entry.durable_step),
        action="" if entry.action is Act.NONE else entry.action,
        outcome=f"after {spoken(seconds_of(recovered) - seconds_of(entry.at))}" if recovered else "not yet",
        lost=NONE if entry.lost_steps is None else count(entry.lost_steps),
        message=entry.message,
    )


def _claim(claim: ClaimStatus) -> Claim:
    percent = claim.used_percent
    tones: Iterable[tuple[bool, str]] = (
        (claim.phase == "Lost" or (percent or 0) >= VOLUME_BAD_PERCENT, "bad"),
        (claim.phase != "Bound" or (percent or 0) >= VOLUME_WARNING_PERCENT, "warn"),
    )
    return Claim(
        name=claim.name,
        phase=claim.phase,
        room=_room(claim),
        percent=percent,
        tone=next((tone for applies, tone in tones if applies), "good"),
        used_by=tuple(claim.used_by),
    )


def _room(claim: ClaimStatus) -> str:
    own = size(claim.capacity_bytes or claim.requested_bytes)
    if claim.used_bytes is None:
        return f"{own}, use not known"
    if is_shared(claim.volume_bytes, claim.capacity_bytes):
        return f"{size(claim.used_bytes)} of a {size(claim.volume_bytes or 0)} volume used, claim {own}"
    return f"{size(claim.used_bytes)} of {size(claim.volume_bytes) if claim.volume_bytes else own} used"


def _pod(pod: PodFacts, now: float) -> Pod:
    states: Iterable[tuple[bool, str, str]] = (
        (bool(pod.deleted_at), "Terminating", "warn"),
        (bool(pod.phase == "Failed"), pod.reason or "Failed", "bad"),
        (bool(pod.waiting_reason), pod.waiting_reason, "warn"),
        (bool(pod.unscheduled_reason), pod.unscheduled_reason, "warn"),
    )
    tones = {"Running": "good", "Succeeded": "done", "Pending": "idle"}
    state, tone = next(((word, tone) for applies, word, tone in states if applies), (pod.phase, tones.get(pod.phase, "idle")))
    ended = pod.ended or pod.ended_before
    exit_note = f"exit {ended.exit_code}{f' ({ended.reason})' if ended.reason else ''}" if ended else ""
    return Pod(
        replica=pod.replica,
        name=pod.name,
        state=state,
        tone=tone,
        node=pod.node or NONE,
        restarts=pod.restart_count,
        age=age(pod.created_at, now),
        note=pod.message or pod.unscheduled_message or pod.waiting_message or exit_note,
    )


def _replica_place(pod: PodFacts) -> tuple[str, int, str]:
    kind, _, index = pod.replica.rpartition("-")
    return (kind, int(index) if index.isascii() and index.isdigit() and len(index) < 10 else 0, pod.name)  # noqa: PLR2004  # digits of an index


def _condition_tone(type_: str, status: str) -> str:
    is_bad_news = type_ in ("Reconciling", "Stalled")
    return {"True": "warn" if is_bad_news else "good", "False": "idle" if is_bad_news or type_ in ("Succeeded", "Running") else "warn"}.get(
        status, "idle"
    )
