"""Which pods have come and gone since the last look: each end of a pod, or of its container, is told once.

The memory is `status.incarnations`: replica to "<first 8 of the pod's uid>/<restarts>/<creation>[/mark[/asked]]". A mark says that the
end of this incarnation is accounted for, and the last part when its deletion was asked for. So a second look, a second operator, or a look
after an hour counts nothing twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ddp_operator.api.trainingrun import MAX_REPLICAS_REMEMBERED, TrainingRunStatus
from ddp_operator.api.words import Cause
from ddp_operator.decide.classify import SIGTERM_EXIT, Loss, classify
from ddp_operator.decide.facts import JobFacts, PodFacts, RunFacts
from ddp_operator.decide.timing import is_finished
from ddp_operator.decide.wording import count, cut

LOST, LEFT, FREED, DONE = "lost", "left", "freed", "done"
"""In the ledger; taken by a pause, so never to be counted for leaving; deleted by us; ended well."""
ECHOES = frozenset({Cause.PEER_LOST, Cause.POD_DELETED, Cause.UNKNOWN})
"""Ends that say nothing of their own."""
_REPLICA = re.compile(r"(master|worker)-([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One life of one container in one pod."""

    uid: str
    restarts: int
    created: int
    """Of the pod, in seconds since the epoch: what is older than the one known is a stale read."""
    mark: str = ""
    asked: int = 0
    """When its deletion was asked for last, in seconds since the epoch; 0: never."""

    def __str__(self) -> str:
        """As it stands in the status."""
        return "/".join(
            [
                self.uid,
                str(self.restarts),
                str(self.created),
                *([self.mark] if self.mark else []),
                *([str(self.asked)] if self.mark and self.asked else []),
            ]
        )


def read(word: str) -> Incarnation | None:
    """A word of the status; None if it is none of ours."""
    parts = word.split("/")
    if not 3 <= len(parts) <= 5 or not all(part.isascii() and part.isdigit() for part in (*parts[1:3], *parts[4:])):  # noqa: PLR2004
        return None
    uid, restarts, created, mark, asked = (*parts, "", "0")[:5] if len(parts) == 3 else (*parts, "0")[:5]  # noqa: PLR2004 (no mark)
    return Incarnation(uid, int(restarts), int(created), mark, int(asked))


def of(pod: PodFacts) -> Incarnation:
    """That of a pod as it is now."""
    return Incarnation(cut(pod.uid[:8], 8).replace("/", "-"), count(pod.restart_count), count(pod.created_at))


def is_echo(loss: Loss) -> bool:
    """Whether it only followed from something else: a lost peer, a deletion, a SIGTERM that nobody explained."""
    return loss.cause in ECHOES or (loss.exit_code == SIGTERM_EXIT and not loss.is_explained)


def by_replica(pods: Iterable[PodFacts]) -> dict[str, PodFacts]:
    """The pod of each replica: of two, the one that stays, then the younger."""
    chosen: dict[str, PodFacts] = {}
    for pod in sorted(pods, key=lambda pod: (not pod.deleted_at, pod.created_at, pod.uid)):
        if _REPLICA.fullmatch(pod.replica):
            chosen[pod.replica] = pod
    return chosen


def looked(facts: RunFacts, memory: TrainingRunStatus) -> tuple[dict[str, str], dict[str, Loss]]:
    """The memory after this look, and what was lost since the last one, by replica.

    While the job is paused, by whom ever, or ended, or deleted, or restarted by us, pods leave without a loss.
    """
    job = facts.job
    assert job is not None
    is_restarted = memory.intent is not None and not job.queue  # under Kueue the intent has marked its pods, and new ones come at once
    leaves = job.suspend or job.deleted_at > 0 or is_restarted or memory.stopped_by_us is not None
    # Two changes of the job between two looks may be a pause and its end: its pods may go, and are not lost by that.
    may_leave = leaves or (0 < memory.job_generation <= job.generation - 2)
    pods = by_replica(facts.pods)
    words: dict[str, str] = {}
    losses: dict[str, Loss] = {}
    # Who is remembered stays so: else a memory that is full would forget what was done to one of many.
    for replica in (*sorted(memory.incarnations), *sorted(set(pods) - set(memory.incarnations))):
        known = read(memory.incarnations.get(replica, ""))
        if known and not known.mark and may_leave:
            known = replace(known, mark=LEFT)
        pod = pods.get(replica)
        after, loss = _gone(replica, known, job, memory) if pod is None else _seen(pod, known, job, memory, leaves=leaves)
        if after is None or len(words) >= MAX_REPLICAS_REMEMBERED:
            continue  # what cannot be remembered is not counted: it would be again with each look
        words[replica] = str(after)
        if loss is not None:
            losses[replica] = loss
    return words, losses


def marked(words: dict[str, str], pods: Iterable[PodFacts], mark: str) -> dict[str, str]:
    """The memory with the present incarnations of these pods marked.

    What we did to a pod comes before what others only are: where the memory is full, it takes the place of one without a mark.
    """
    after = dict(words)
    unmarked = sorted(replica for replica, word in words.items() if (known := read(word)) is None or not known.mark)
    for pod in pods:
        if not _REPLICA.fullmatch(pod.replica):
            continue
        if pod.replica not in after and len(after) >= MAX_REPLICAS_REMEMBERED:
            if not unmarked or mark != FREED:
                continue
            after.pop(unmarked.pop(), None)
        if pod.replica in unmarked:
            unmarked.remove(pod.replica)
        before, present = read(after.get(pod.replica, "")), of(pod)
        asked = before.asked if before and before.uid == present.uid else 0
        after[pod.replica] = str(replace(present, mark=mark, asked=asked))
    return after


def has_mark(words: dict[str, str], pod: PodFacts, mark: str) -> bool:
    """Whether this very incarnation bears it."""
    known = read(words.get(pod.replica, ""))
    return known is not None and known.mark == mark and known.uid == of(pod).uid


def _gone(replica: str, known: Incarnation | None, job: JobFacts, memory: TrainingRunStatus) -> tuple[Incarnation | None, Loss | None]:
    kind, _, index = replica.partition("-")
    if known is None or (index.isdigit() and int(index) >= job.replicas.get(kind.capitalize(), 0)):
        return None, None  # scaled away
    if known.mark:
        return known, None
    if is_finished(job):
        return replace(known, mark=DONE), None
    return replace(known, mark=LOST), _vanished(f"{job.name}-{replica}", memory)


def _vanished(pod: str, memory: TrainingRunStatus) -> Loss:
    message = "the pod is gone, and nobody saw why: it was deleted, or its node was"
    return Loss(Cause.POD_DELETED, None, message, cut(pod, 253), "", 0.0, memory.timing.last_progress_step)


def _seen(
    pod: PodFacts, known: Incarnation | None, job: JobFacts, memory: TrainingRunStatus, *, leaves: bool
) -> tuple[Incarnation, Loss | None]:
    present = of(pod)
    if known is not None and (present.created < known.created or (present.uid == known.uid and present.restarts < known.restarts)):
        return known, None  # an older view
    past = None if known is None or leaves or is_finished(job) else _since(pod, known, memory)
    if known is None or (known.uid, known.restarts) != (present.uid, present.restarts):
        known = present
    end = None if known.mark in {LOST, FREED, DONE} else _end(pod)
    if end is None:
        return known, past
    mark = _mark(pod, known, end, job, leaves=leaves)
    # An end of its predecessor that nobody saw says less than this one.
    return replace(known, mark=mark), end if mark == LOST else past


def _since(pod: PodFacts, known: Incarnation, memory: TrainingRunStatus) -> Loss | None:
    """What became of the incarnation that was known, if another one is there now, and its end is not accounted for."""
    present, before = of(pod), pod.ended_before
    if present.uid != known.uid:
        return None if known.mark else _vanished(pod.name, memory)
    if present.restarts == known.restarts or known.mark not in {"", LEFT} or (before and before.exit_code == 0):
        return None
    return classify(replace(pod, deleted_at=0.0), before)


def _mark(pod: PodFacts, known: Incarnation, end: Loss, job: JobFacts, *, leaves: bool) -> str:
    """Where the end of this incarnation is accounted for."""
    if end is _WELL or (pod.deleted_at and is_finished(job)):
        return DONE
    if leaves or (known.mark == LEFT and (pod.deleted_at or is_echo(end))):
        return LEFT
    return LOST


_WELL = Loss(Cause.UNKNOWN, 0, "", "", "", 0.0, 0)


def _end(pod: PodFacts) -> Loss | None:
    """How this incarnation ends; `_WELL` for exit code 0, None while it lives."""
    if pod.ended is not None and pod.phase != "Failed" and pod.ended.exit_code == 0 and not pod.deleted_at:
        return _WELL
    if pod.phase == "Succeeded":
        return _WELL
    if pod.phase == "Failed" or (pod.ended is not None and pod.ended.exit_code != 0) or pod.deleted_at:
        return classify(pod, pod.ended)
    if pod.waiting_reason == "CrashLoopBackOff" and pod.ended_before is not None and pod.ended_before.exit_code != 0:
        return classify(pod, pod.ended_before)
    return None
