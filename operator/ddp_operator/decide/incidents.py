"""The ledger: what is lost at about the same time is one incident, with one cause, counted once, and closed when training goes on.

An incident is open until all pods run and a step was made after that. Without news of steps (a foreign image), until all pods
have run for `GAP_SECONDS`. While it is open, a further loss belongs to it, unless all pods had run together for that long, or a replica
is lost again that it already took: a crash loop is many incidents, not one. Waiting costs no budget, however long it lasts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ddp_operator.api.trainingrun import (
    LEDGER_ENTRIES,
    MAX_REPLICAS_REMEMBERED,
    LedgerEntry,
    OpenIncident,
    RestartStatus,
    TrainingRunStatus,
)
from ddp_operator.api.words import PREEMPTION_CAUSES, Act, Cause
from ddp_operator.decide.classify import Loss, may_be_echo_of, root_cause
from ddp_operator.decide.facts import RunFacts
from ddp_operator.decide.incarnations import is_echo, looked
from ddp_operator.decide.timing import all_run, epoch, is_finished, sane, stepping_document
from ddp_operator.decide.wording import LEDGER_CHARS, count, cut, moment

GAP_SECONDS = 120.0
"""Losses so long after the last one, with all pods running in between, have another cause: longer than a node takes to be noticed (40 s)
plus the trainer's own bound on a lost peer; shorter than what a crash needs to repeat itself after a load of data."""


def noted(facts: RunFacts, memory: TrainingRunStatus, now: float) -> TrainingRunStatus:
    """The memory after this look: losses are in the ledger, an incident that is over is closed."""
    if facts.job is None:
        return memory
    words, losses = looked(facts, memory)
    new: dict[str, object] = {}
    if words != memory.incarnations:
        new["incarnations"] = words
    if facts.job.generation != memory.job_generation:
        new["job_generation"] = count(facts.job.generation)
    memory = memory.model_copy(update=new) if new else memory
    if losses:
        memory = with_losses(facts, memory, losses, now)
    return _settled(facts, _counted_by_trainer(facts, memory), now)


def with_losses(
    facts: RunFacts, memory: TrainingRunStatus, losses: Mapping[str, Loss], now: float, action: Act = Act.NONE
) -> TrainingRunStatus:
    """The memory with these losses (by replica) in the open incident, or in new ones."""
    incident = memory.incident
    old = {replica: loss for replica, loss in losses.items() if incident is not None and _belongs(incident, replica, loss, now)}
    fresh = {replica: loss for replica, loss in losses.items() if replica not in old}
    if fresh:
        return opened(facts, memory, losses, now, action)
    return joined(memory, old, now, action)


def opened(facts: RunFacts, memory: TrainingRunStatus, losses: Mapping[str, Loss], now: float, action: Act = Act.NONE) -> TrainingRunStatus:
    """The memory with a new incident, counted to the budget of its cause."""
    root = root_cause(list(losses.values()))
    document = facts.progress.document
    durable = max(_durable(facts, memory), root.durable_step or 0)
    earliest = epoch(memory.ledger[-1].at) if memory.ledger else 0.0
    entry = _entry(root, max(earliest, sane(root.at, now)), action).model_copy(
        update={
            "step": max(count(root.step), count(document.step) if document else memory.timing.last_progress_step),
            "durable_step": durable,
        }
    )
    incident = OpenIncident(
        opened_at=moment(now),
        last_loss_at=moment(now),
        replicas=_bounded(losses),
        is_explained=root.is_explained,
        lost_steps_before=count(document.lost_steps) if document else memory.timing.lost_steps,
    )
    return memory.model_copy(
        update={
            "ledger": [*memory.ledger, entry][-LEDGER_ENTRIES:],
            "incident": incident,
            "restarts": _spent(memory.restarts, root.cause, durable),
        }
    )


def joined(memory: TrainingRunStatus, losses: Mapping[str, Loss], now: float, action: Act) -> TrainingRunStatus:
    """The memory with these losses in the open incident: its cause may become clearer, its count stays one."""
    incident, entry = memory.incident, memory.ledger[-1]
    assert incident is not None
    known = Loss(
        entry.cause, entry.exit_code, entry.message, entry.pod, entry.node, epoch(entry.at), entry.step, is_explained=incident.is_explained
    )
    # The first word stands against an equal one: else an entry would change its pod with each echo.
    news = [replace(loss, at=max(loss.at, known.at)) for loss in losses.values() if not may_be_echo_of(loss, known)]
    root = root_cause([*news, replace(known, at=min(known.at, now))])
    better = _entry(root, epoch(entry.at), action if action is not Act.NONE else entry.action)
    changes = {name: getattr(better, name) for name in ("cause", "pod", "node", "exit_code", "message", "action")}
    return memory.model_copy(
        update={
            "ledger": [*memory.ledger[:-1], entry.model_copy(update=changes)],
            "incident": incident.model_copy(
                update={
                    "last_loss_at": moment(now),
                    "replicas": _bounded([*incident.replicas, *losses]),
                    "gathered_at": None,
                    "is_explained": root.is_explained,
                }
            ),
            "restarts": _moved(memory.restarts, entry.cause, root.cause),
        }
    )


def appended(memory: TrainingRunStatus, entry: LedgerEntry) -> TrainingRunStatus:
    """The memory with an entry that is no incident and costs no budget; an open incident ends, since it is no longer the newest."""
    return memory.model_copy(update={"ledger": [*memory.ledger, entry][-LEDGER_ENTRIES:], "incident": None})


def _belongs(incident: OpenIncident, replica: str, loss: Loss, now: float) -> bool:
    gathered = incident.gathered_at is not None
    if replica in incident.replicas:
        # Survivors leave and come back, again and again, while one is waited for: that is one outage.
        return is_echo(loss) and not gathered
    # a loss that lies ahead is of a time before the clock was set back: nobody knows how long ago, and it would take in all that come
    return not gathered or 0.0 <= now - epoch(incident.last_loss_at) <= GAP_SECONDS


def _settled(facts: RunFacts, memory: TrainingRunStatus, now: float) -> TrainingRunStatus:
    """Close the open incident, if it is over."""
    incident, job = memory.incident, facts.job
    if incident is None or job is None:
        return memory
    if (job.suspend and memory.intent is None) or memory.stopped_by_us is not None:
        return memory.model_copy(update={"incident": None})
    if is_finished(job):
        succeeded = job.conditions.get("Succeeded", ("",))[0] == "True"
        return _recovered(facts, memory, now) if succeeded else memory.model_copy(update={"incident": None})
    if not all_run(facts) or memory.intent is not None:
        return memory if incident.gathered_at is None else _with_gathered(memory, None)
    gathered_at = epoch(incident.gathered_at)
    if incident.gathered_at is None or gathered_at > now:  # ahead: the clock was set back, and no step would come after that
        return _with_gathered(memory, now)
    document = stepping_document(facts)
    if document is not None and gathered_at < facts.progress.heard_at <= now:
        return _recovered(facts, memory, now)
    if facts.progress.document is None and now - gathered_at >= GAP_SECONDS:
        return _recovered(facts, memory, now)
    return memory


def _with_gathered(memory: TrainingRunStatus, at: float | None) -> TrainingRunStatus:
    assert memory.incident is not None
    return memory.model_copy(update={"incident": memory.incident.model_copy(update={"gathered_at": None if at is None else moment(at)})})


def _recovered(facts: RunFacts, memory: TrainingRunStatus, now: float) -> TrainingRunStatus:
    incident, document = memory.incident, facts.progress.document
    assert incident is not None
    lost = None if document is None else max(0, count(document.lost_steps) - incident.lost_steps_before)
    entry = memory.ledger[-1].model_copy(update={"recovered_at": moment(now), "lost_steps": lost})
    return memory.model_copy(update={"ledger": [*memory.ledger[:-1], entry], "incident": None})


def _counted_by_trainer(facts: RunFacts, memory: TrainingRunStatus) -> TrainingRunStatus:
    """The numbers of restarts that follow from others: in all, without a lost pod, and whether the durable step has moved.

    The trainer counts over all lives. What it counts beyond this life when it is first heard in it is of those before.
    """
    restarts, look = memory.restarts, facts.progress
    ours = restarts.failures + restarts.preemptions
    total, before, by_trainer = max(restarts.total, ours), restarts.in_former_lives, 0
    if look.document is not None and look.pod_uid in {pod.uid for pod in facts.pods}:
        counted = count(sum(max(0, number) for number in look.document.restarts.values()))
        before = max(0, counted - total) if before is None else before
        by_trainer = max(0, counted - before)
    moved = _durable(facts, memory) > restarts.durable_step_at_last_failure
    new = {
        "total": max(total, by_trainer),
        "in_process": max(restarts.in_process, by_trainer - ours),
        "in_former_lives": before,
        "without_progress": 0 if moved else restarts.without_progress,
    }
    after = restarts.model_copy(update=new)
    return memory if after == restarts else memory.model_copy(update={"restarts": after})


def _durable(facts: RunFacts, memory: TrainingRunStatus) -> int:
    document = facts.progress.document
    said = document.checkpoint_step if document else None
    return max(count(said or 0), memory.checkpoint.step if memory.checkpoint else 0)


def _spent(restarts: RestartStatus, cause: Cause, durable_step: int) -> RestartStatus:
    if cause in PREEMPTION_CAUSES:
        new = {"preemptions": restarts.preemptions + 1}
    else:
        moved = durable_step > restarts.durable_step_at_last_failure
        new = {
            "failures": restarts.failures + 1,
            "without_progress": 1 if moved else restarts.without_progress + 1,
            "durable_step_at_last_failure": max(durable_step, restarts.durable_step_at_last_failure),
        }
    after = restarts.model_copy(update=new)
    return after.model_copy(update={"total": max(after.total, after.failures + after.preemptions)})


def _moved(restarts: RestartStatus, before: Cause, after: Cause) -> RestartStatus:
    """The count goes to the other budget when a later loss explains an earlier one: their sum stays."""
    was, is_now = before in PREEMPTION_CAUSES, after in PREEMPTION_CAUSES
    if was == is_now:
        return restarts
    step = 1 if is_now else -1
    return restarts.model_copy(
        update={
            "preemptions": max(0, restarts.preemptions + step),
            "failures": max(0, restarts.failures - step),
            "without_progress": max(0, restarts.without_progress - step),
        }
    )


def _entry(loss: Loss, at: float, action: Act) -> LedgerEntry:
    return LedgerEntry(
        at=moment(at),
        cause=loss.cause,
        pod=cut(loss.pod, 253),
        node=cut(loss.node, 253),
        exit_code=loss.exit_code,
        message=cut(loss.message, LEDGER_CHARS),
        action=action,
    )


def _bounded(replicas: Iterable[str]) -> list[str]:
    return sorted(set(replicas))[:MAX_REPLICAS_REMEMBERED]
