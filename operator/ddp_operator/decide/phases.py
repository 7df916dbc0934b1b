"""The one true word about a run: from its job's wish, its pods, its progress and the clock; never from the job's last condition.

A recipe: the first step that applies gives the phase. Succeeded and Failed are the only conditions of a PyTorchJob that are believed,
because v1 never takes them back. Messages hold no growing ages: while nothing changes, nothing has to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ddp_operator.api.advice import TABLE as ADVICE
from ddp_operator.api.words import FINAL_PHASES, Act, Cause, PendingReason, Phase
from ddp_operator.decide import durations, silence
from ddp_operator.decide.classify import OF_LAST_WORDS, Loss, is_node_lost, outweighs, root_cause
from ddp_operator.decide.decision import FIELD_MANAGER
from ddp_operator.decide.endings import is_fatal, is_true, newest_entry, pods_succeeded, visible_losses, why_failed
from ddp_operator.decide.facts import JobFacts, PodFacts, ProgressFacts, RunFacts
from ddp_operator.decide.incarnations import by_replica
from ddp_operator.decide.timing import epoch, has_ended_well, is_finished, runs, sane
from ddp_operator.decide.waiting import WHAT_TO_DO, waiting
from ddp_operator.decide.wording import REASON_CHARS, cut, moment, stamp

ELASTIC_SECONDS = 30.0
"""Training that is heard of so long after a lost pod's successor was made goes on without it: a gang that needs it re-forms in seconds."""
NOT_MADE = "the pods are not listed yet"
NOT_ITS_OWN = "it is left alone, for it may be the network between the operator and the pod that fails: check that one reaches the other"
PAUSED = "suspended: set spec.runPolicy.suspend of the job to false to go on from the last durable step"
PAUSED_BEFORE = (
    "suspended by the operator, for a restart that was cut off or for good, and the TrainingRun that said why is gone: "
    "set spec.runPolicy.suspend of the job to false to go on from the last durable step"
)
"""It is not resumed unasked: a run that was stopped for good looks the same, once its memory is deleted."""

OF_DOCUMENT: dict[str, Phase] = {
    "starting": Phase.STARTING,
    "training": Phase.RUNNING,
    "evaluating": Phase.RUNNING,
    "saving": Phase.SAVING,
    "finished": Phase.SAVING,
    "failed": Phase.RESTARTING,
}
"""By the phase of the progress document, while all pods run."""
_WITH_ALL_PODS = frozenset({Phase.STARTING, Phase.RUNNING, Phase.SAVING, Phase.HUNG})
OF_RESTARTS: dict[str, Cause] = {"crash": Cause.CRASH, "hang": Cause.HANG, "preemption": Cause.PREEMPTED, "peer_loss": Cause.PEER_LOST}
"""By the trainer's own counters."""


class Truth(NamedTuple):
    """What `true_phase` gives. `reason` is a PendingReason, a Cause, or empty."""

    phase: Phase
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class _View:
    """The facts, and what several steps need of them. `job` is there: the first step has seen to that."""

    facts: RunFacts
    job: JobFacts
    now: float
    has_trained: bool
    lost: Loss | None
    pods: dict[str, PodFacts]

    @property
    def lead(self) -> PodFacts | None:
        """Node 0's pod."""
        return self.pods.get("master-0" if self.job.has_master else "worker-0")

    @property
    def document(self) -> ProgressFacts | None:
        """Node 0's word, if it is that of the pod that is there now."""
        look = self.facts.progress
        return look.document if self.lead is not None and look.pod_uid == self.lead.uid else None


def true_phase(facts: RunFacts, now: float, *, has_trained: bool, lost: Loss | None = None) -> Truth:
    """The phase, its reason and a message.

    Args:
        facts: everything known of the run, with the memory to be believed in its `status`.
        now: the operator's clock.
        has_trained: whether a step was made in this life of the run, that is since the last resume or change of the job.
        lost: what is to be said about an open incident; None takes the ledger's newest entry while an incident is open, else
            what the pods show.
    """
    if facts.job is None or facts.job.deleted_at:
        return _without_job(facts)
    view = _View(facts, facts.job, now, has_trained, lost or _open_incident(facts), by_replica(facts.pods))
    found = next(truth for step in STEPS if (truth := step(view)) is not None)
    return Truth(found.phase, cut(found.reason, REASON_CHARS), cut(found.message))


def _without_job(facts: RunFacts) -> Truth:
    stored = facts.status
    if stored.phase in FINAL_PHASES:
        return Truth(stored.phase, stored.reason, stored.message)
    state = "does not exist" if facts.job is None else "is being deleted"
    return Truth(
        Phase.PENDING,
        PendingReason.JOB_NOT_FOUND,
        f"the PyTorchJob {facts.spec.job_ref.name} {state}; {WHAT_TO_DO[PendingReason.JOB_NOT_FOUND]}",
    )


# --- the steps, first to last


def _succeeded(view: _View) -> Truth | None:
    if is_true(view.job, "Succeeded") or pods_succeeded(view.job, view.pods):
        return Truth(Phase.SUCCEEDED, "", "finished")
    return None


def _stopped(view: _View) -> Truth | None:
    cause = view.facts.status.stopped_by_us
    if cause is None:
        return None
    entries = [entry for entry in view.facts.status.ledger if entry.action is Act.STOP and entry.cause is cause and entry.message]
    why = f"{entries[-1].message}. " if entries else ""
    is_done = view.job.suspend or is_finished(view.job)
    by_us = "stopped by the operator" if is_done else "the operator is stopping it, and its pods may still train"
    return Truth(Phase.FAILED, cause, f"{by_us}: {why}{_advice(Phase.FAILED, cause)}")


def _failed(view: _View) -> Truth | None:
    """By the job, or by a pod whose end the job cannot survive and that it has not looked at yet."""
    doomed = [pod for pod in view.pods.values() if is_fatal(pod, view.job)]
    if not is_true(view.job, "Failed") and not doomed:
        return None
    loss = why_failed(view.job, view.pods, view.facts, view.lost)
    stored = view.facts.status
    is_same_end = stored.phase is Phase.FAILED and stored.job_uid == view.job.uid and bool(stored.reason)
    if is_same_end and (loss is None or not outweighs(loss, _stored_loss(stored.reason))):
        return Truth(Phase.FAILED, stored.reason, stored.message)  # its pods go, one by one: the reason stays
    if loss is None:
        return Truth(Phase.FAILED, Cause.UNKNOWN, f"the job has failed, and its pods are gone; {_advice(Phase.FAILED, Cause.UNKNOWN)}")
    return Truth(Phase.FAILED, loss.cause, f"{_told(loss)}. {_advice(Phase.FAILED, loss.cause)}")


def _restarted_by_us(view: _View) -> Truth | None:
    intent = view.facts.status.intent
    if intent is None:
        return None
    state = "its pods are ending" if view.facts.pods else "its pods are being made again"
    return Truth(Phase.RESTARTING, intent.cause, f"the operator restarts all pods because of {intent.cause}: {state}")


def _suspended(view: _View) -> Truth | None:
    if not view.job.suspend:
        return None
    waits = waiting(view.job, view.facts.pods, view.facts.claims, view.now)
    if waits:
        return Truth(Phase.PENDING, *waits)
    ending = len(view.facts.pods)
    rest = f"; {ending} pods are still ending" if ending else ""
    # Each pause of ours begins with an entry: without one, the status that held it is gone.
    is_forgotten = view.job.suspend_manager == FIELD_MANAGER and not view.facts.status.ledger
    return Truth(Phase.SUSPENDED, "", (PAUSED_BEFORE if is_forgotten else PAUSED) + rest)


def _unseen(view: _View) -> Truth | None:
    """Absence says nothing before the pods were listed."""
    if view.facts.pods_are_known:
        return None
    return _as_before(view) or Truth(Phase.PENDING, PendingReason.NO_PODS, NOT_MADE)


def _gathering(view: _View) -> Truth | None:
    """Not each wanted pod runs."""
    if view.job.desired > 0 and sum(_is_settled(pod) for pod in view.pods.values()) >= view.job.desired:
        return None
    losses = list(visible_losses(view.pods.values()))
    waits = waiting(view.job, view.facts.pods, view.facts.claims, view.now) or (PendingReason.NO_PODS, "the job wants no pods")
    going_on = _going_on(view, losses, waits[1])
    if going_on:
        return going_on
    ended = [loss for pod, loss in losses if pod.ended or pod.ended_before or pod.phase == "Failed"]
    # of a run that was never heard nobody knows a step; that it ran, and lost a pod, was seen
    was_running = view.lost is not None and view.facts.status.phase in (Phase.RUNNING, Phase.RESTARTING)
    if not view.has_trained and not was_running and not ended:
        return Truth(Phase.PENDING, *waits)
    loss = view.lost or (root_cause([loss for _, loss in losses]) if losses else None)
    if loss is None:
        return Truth(Phase.RESTARTING, Cause.POD_DELETED, f"pods are gone; {waits[1]}")
    return Truth(Phase.RESTARTING, loss.cause, f"{_told(loss)}; {waits[1]}")


def _without_progress(view: _View) -> Truth | None:
    """All pods run, and node 0 has not said anything yet, or never will."""
    lead, look = view.lead, view.facts.progress
    if lead is None or not lead.progress_port:
        return Truth(Phase.RUNNING, "", "progress is not known: node 0 declares no port called telemetry")
    if view.document is not None:
        return None
    not_yet = "all pods run; node 0 has not answered yet"
    stored = view.facts.status
    was_reached = look.document is not None or stored.timing.last_progress_at is not None  # in this life
    hung = _hung(view) if look.asked_at and was_reached else None  # the silence of who was never heard tells nothing
    if hung:
        return hung
    before = _as_before(view)
    is_of_these_pods = look.document is None and before is not None and epoch(stored.phase_since) >= _all_run_since(view)
    if is_of_these_pods and before and before.phase in (_WITH_ALL_PODS if was_reached else {Phase.RUNNING}):
        return before  # a predecessor has had an answer, or has long waited for one; this operator has not yet
    if not was_reached and look.asked_at - max(_all_run_since(view), look.unanswered_since) > _hung_after(view):
        return Truth(Phase.RUNNING, "", f"progress is not known: node 0 does not answer on port {lead.progress_port}; {_let_in(lead)}")
    return _starting(view, not_yet)


def _training(view: _View) -> Truth:
    """All pods run, and node 0 has spoken."""
    document = view.document
    assert document is not None
    hung = _hung(view)
    if hung:
        return hung
    if view.facts.status.incident is not None and 0 < view.facts.progress.heard_at < _all_run_since(view):
        return _starting(view, "all pods run; node 0 was last heard before they did")  # it still tells of the time before the loss
    phase = OF_DOCUMENT.get(document.phase, Phase.RUNNING)
    note = cut(document.note, 256)
    if phase is Phase.STARTING:
        return _starting(view, f"all pods run: {note}" if note else "all pods run; ranks form and load")
    if phase is Phase.RESTARTING:
        cause = OF_LAST_WORDS.get(document.note, Cause.UNKNOWN)
        return Truth(phase, view.lost.cause if view.lost else cause, "the trainer gives up; its pods will be replaced")
    words = {
        "training": "it trains",
        "evaluating": "it evaluates",
        "saving": "it saves",
        "finished": "training is finished; the pods are ending",
    }
    message = words.get(document.phase, "it runs")
    return Truth(phase, "", f"{message}: {note}" if note else message)


STEPS: tuple[Callable[[_View], Truth | None], ...] = (
    _succeeded,
    _stopped,
    _failed,
    _restarted_by_us,
    _suspended,
    _unseen,
    _gathering,
    _without_progress,
    _training,
)


# --- what the steps ask


def _starting(view: _View, message: str) -> Truth:
    if not view.has_trained:
        return Truth(Phase.STARTING, "", message)
    cause = view.lost.cause if view.lost else _cause_in_process(view.facts.progress.document)
    return Truth(Phase.RESTARTING, cause, f"{_told(view.lost)}; {message}" if view.lost else message)


def _hung(view: _View) -> Truth | None:
    """All pods have run, and no news of training was heard, for longer than `hungAfter`, up to the last time that node 0 was asked.

    Node 0's document moves with whatever any rank or agent does, so a still one means that nothing does. An agent that was reached
    before and is not reached any more counts the same, if it has failed to answer for all of that time: an operator that was away, or
    does not get to ask, must not take its own silence for the run's. Where nobody can tell whose it is (see `silence`), the sentence
    says so, and nothing is done about it.
    """
    look, stored = view.facts.progress, view.facts.status.timing
    if look.asked_at > view.now:
        view = replace(view, now=look.asked_at)  # the clock was set back since then, and the look's times are moved only with the next
    heard_at = look.heard_at or look.answered_at or epoch(stored.last_progress_at)
    since = max(sane(heard_at, view.now) if heard_at else 0.0, _all_run_since(view))
    if look.error:
        since = max(since, look.unanswered_since or look.asked_at)
    if not since or sane(look.asked_at, view.now) - since <= _hung_after(view):
        return None
    silent = f"node 0 does not answer: {cut(look.error, 128)}" if look.error else cut(look.document.note, 128) if look.document else ""
    doubt = "" if silence.is_its_own(view.facts, view.now) else f"; {NOT_ITS_OWN}"
    return Truth(
        Phase.HUNG,
        Cause.HANG,
        f"all pods run, but no sign of training since {stamp(moment(since))}, which is longer than hungAfter "
        f"({view.facts.spec.policy.hung_after}){': ' + silent if silent else ''}{doubt}",
    )


def _hung_after(view: _View) -> float:
    return durations.seconds(view.facts.spec.policy.hung_after)


def _all_run_since(view: _View) -> float:
    """On our clock; a start on a node's clock that lies ahead is taken for now."""
    starts = [sane(pod.started_at or pod.created_at, view.now) for pod in view.pods.values() if runs(pod)]
    return max(starts, default=0.0)


def _going_on(view: _View, losses: Sequence[tuple[PodFacts, Loss]], waits: str) -> Truth | None:
    """Pods are missing, and yet: it writes its last state before it leaves, or it trains on with fewer nodes."""
    document, lead = view.document, view.lead
    if document is None or lead is None or lead.phase != "Running" or lead.ended is not None or not view.has_trained:
        return None
    if document.phase == "saving" and any(pod.deleted_at for pod, _ in losses):
        loss = view.lost or root_cause([loss for _, loss in losses])
        return Truth(Phase.SAVING, loss.cause, f"{_told(loss)}; it saves before it leaves")
    others = [pod for pod in view.pods.values() if not _is_settled(pod)]
    is_heard = bool(others) and all(view.facts.progress.heard_at > pod.created_at + ELASTIC_SECONDS and not pod.ended for pod in others)
    if is_heard and not losses and document.phase in {"training", "evaluating"} and not _hung(view):
        return Truth(Phase.RUNNING, "", f"it trains on without some of its pods: {waits}")
    return None


def _is_settled(pod: PodFacts) -> bool:
    return has_ended_well(pod) or (runs(pod) and not is_node_lost(pod))


def _open_incident(facts: RunFacts) -> Loss | None:
    return newest_entry(facts) if facts.status.incident is not None else None


def _stored_loss(reason: str) -> Loss:
    cause = Cause(reason) if reason in {*Cause} else Cause.UNKNOWN
    return Loss(cause, None, "", "", "", 0.0, 0, is_explained=True)


def _as_before(view: _View) -> Truth | None:
    """The stored word, where this operator has not seen enough yet to say better."""
    stored = view.facts.status
    known = stored.phase_since is not None and stored.job_uid == view.job.uid and stored.phase not in FINAL_PHASES
    return Truth(stored.phase, stored.reason, stored.message) if known else None


def _cause_in_process(document: ProgressFacts | None) -> Cause:
    """Why the trainer starts its ranks again: its counters say so if there was only ever one cause."""
    causes = [OF_RESTARTS[name] for name, amount in (document.restarts if document else {}).items() if amount > 0 and name in OF_RESTARTS]
    return causes[0] if len(causes) == 1 else Cause.UNKNOWN


def _told(loss: Loss) -> str:
    return f"{loss.pod}: {loss.message}" if loss.pod and loss.message else loss.message or loss.pod or str(loss.cause)


def _advice(phase: Phase, reason: str) -> str:
    return (ADVICE.get((phase, reason)) or ADVICE[phase, ""])[0]


def _let_in(lead: PodFacts) -> str:
    return f"let the operator reach {lead.name} there (a NetworkPolicy may forbid it)"
