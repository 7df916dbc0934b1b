"""What to do next: tables from what is wrong to a sentence and a command, read by the run page and by `ddp explain`. Pure.

First what a phase does not tell: a full volume, a stale checkpoint, a budget that is only reported. Then the phase and its reason: a row
with the reason "" answers for every reason of its phase that has no row of its own, so each state of a run has an answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddp_operator.api.words import FINAL_PHASES, Cause, CheckpointReason, ConditionType, PendingReason, Phase, StorageReason


@dataclass(frozen=True, slots=True)
class Advice:
    """`sentence` is for a person; `command` may be pasted into a shell, or is empty where there is nothing to do."""

    sentence: str
    command: str = ""


_PODS = "kubectl -n {namespace} get pods -l training.kubeflow.org/job-name={job} -o wide"
_DESCRIBE = "kubectl -n {namespace} describe pod {pod}"
_LOGS = "kubectl -n {namespace} logs {pod} --tail=100"
_LOGS_BEFORE = "kubectl -n {namespace} logs {pod} --previous --tail=100"
_JOB = "kubectl -n {namespace} describe pytorchjob {job}"
_CLAIM = "kubectl -n {namespace} describe pvc {claim}"
_RESUME = """kubectl -n {namespace} patch pytorchjob {job} --type=merge -p '{{"spec":{{"runPolicy":{{"suspend":false}}}}}}'"""
_WATCH = "kubectl -n {namespace} get trainingrun {run} -w"
_LEDGER = "kubectl -n {namespace} describe trainingrun {run}"

_ALIVE = frozenset(Phase) - FINAL_PHASES
_TRAINS = frozenset({Phase.RUNNING, Phase.SAVING})
_ON_ITS_WAY = frozenset({Phase.STARTING, Phase.RESTARTING})

OF_CONDITIONS: dict[tuple[ConditionType, str, str], tuple[frozenset[Phase], str, str]] = {
    (ConditionType.STORAGE_HEALTHY, "False", StorageReason.CLAIM_MISSING): (
        _ALIVE,
        "A claim that it uses does not exist: make it, or correct the name.",
        "kubectl -n {namespace} get pvc",
    ),
    (ConditionType.STORAGE_HEALTHY, "False", StorageReason.CLAIM_LOST): (
        _ALIVE,
        "A claim has lost its volume, and what lay on it may be gone: look at the volume.",
        "kubectl -n {namespace} get pvc",
    ),
    (ConditionType.STORAGE_HEALTHY, "False", StorageReason.CLAIM_TERMINATING): (
        _ALIVE,
        "A claim is deleted as soon as no pod uses it: copy what you need before the run ends or is suspended.",
        "kubectl -n {namespace} get pvc",
    ),
    (ConditionType.STORAGE_HEALTHY, "False", StorageReason.FULL): (
        _ALIVE - {Phase.PENDING, Phase.HUNG},
        "The volume has no room for the next checkpoint: prune old ones, or enlarge the claim.",
        _CLAIM,
    ),
    (ConditionType.CHECKPOINT_FRESH, "False", CheckpointReason.STALE): (
        _TRAINS,
        "It trains, but saves nothing any more: read in the log of the first pod why.",
        _LOGS,
    ),
    (ConditionType.CHECKPOINT_FRESH, "False", CheckpointReason.NONE_YET): (
        _TRAINS,
        "It trains, but has saved nothing yet: read in the log of the first pod why.",
        _LOGS,
    ),
    (ConditionType.STORAGE_HEALTHY, "True", StorageReason.FILLING): (
        _TRAINS,
        "It trains, but the volume will soon be full: prune old checkpoints, or enlarge the claim.",
        _CLAIM,
    ),
}
"""Type, status and reason of a condition to the phases in which it comes before the phase's own advice, a sentence and a command."""

OF_OVERDUE: dict[Cause, tuple[frozenset[Phase], str, str]] = {
    Cause.BUDGET_USED_UP: (
        _TRAINS | _ON_ITS_WAY,
        "Its restarts are used up, which is only reported: the ledger shows why; correct the cause, or suspend it.",
        _LEDGER,
    ),
    Cause.NO_PROGRESS: (
        _TRAINS | _ON_ITS_WAY,
        "It fails again and again without a newer durable step, which is only reported: correct the cause, or suspend it.",
        _LEDGER,
    ),
    Cause.DEADLINE_EXCEEDED: (
        _TRAINS | _ON_ITS_WAY,
        "It runs longer than policy.activeDeadline, which is only reported: let it go on, or suspend it.",
        _LEDGER,
    ),
    Cause.PENDING_TOO_LONG: (
        _ON_ITS_WAY,
        "Its pods did not all run within policy.pendingDeadline, which is only reported: let it go on, or suspend it.",
        _LEDGER,
    ),
}
"""The same for a budget or deadline that nothing is done about, by policy or because Kueue owns the job."""

TABLE: dict[tuple[Phase, str], tuple[str, str]] = {
    (Phase.PENDING, ""): ("It waits; look at what its pods wait for.", _PODS),
    (Phase.PENDING, PendingReason.JOB_NOT_FOUND): (
        "The PyTorchJob that the run names is not there: create it, or delete the run.",
        "kubectl -n {namespace} get pytorchjobs",
    ),
    (Phase.PENDING, PendingReason.NO_PODS): (
        "No pods were made: check that Kubeflow's training operator runs, and what it says about the job.",
        _JOB,
    ),
    (Phase.PENDING, PendingReason.UNSCHEDULABLE): (
        "No node has room for a pod: free or add GPUs, or ask for less; the scheduler's reason stands in the pod's events.",
        _DESCRIBE,
    ),
    (Phase.PENDING, PendingReason.QUEUED): (
        "A queue holds the run back: wait for its turn, or look at its place in the queue.",
        "kubectl -n {namespace} get workloads",
    ),
    (Phase.PENDING, PendingReason.QUOTA): (
        "The namespace's quota is used up: end something, or have the quota raised.",
        "kubectl -n {namespace} describe resourcequota",
    ),
    (Phase.PENDING, PendingReason.IMAGE): (
        "The image cannot be pulled: check its name, its tag and the pull secret, then upgrade the release.",
        _DESCRIBE,
    ),
    (Phase.PENDING, PendingReason.CLAIM): (
        "The volume is not bound: check its storage class and its access mode.",
        _CLAIM,
    ),
    (Phase.PENDING, PendingReason.NODE): ("A node is not ready: look at the nodes.", "kubectl get nodes -o wide"),
    (Phase.PENDING, PendingReason.CONTAINER): (
        "Containers are being made; volumes that do not attach show in the pod's events.",
        _DESCRIBE,
    ),
    (Phase.PENDING, PendingReason.INIT): ("Workers wait for the master's name to resolve; look at the master pod first.", _PODS),
    (Phase.STARTING, ""): ("Nothing: ranks form and load. If this lasts for minutes, read the log of the first pod.", _LOGS),
    (Phase.RUNNING, ""): ("Nothing: it trains.", _WATCH),
    (Phase.SAVING, ""): ("Nothing: it writes its state.", _WATCH),
    (Phase.RESTARTING, ""): ("Nothing yet: it goes on from its last state as soon as all pods run again.", _PODS),
    (Phase.RESTARTING, Cause.OOM_KILLED): (
        "It ran out of memory and goes on from its last state; if it happens again, raise the memory limit or lower the batch per pod.",
        _DESCRIBE,
    ),
    (Phase.RESTARTING, Cause.NODE_LOST): (
        "A node does not answer; its pods are freed after nodeLostAfter. Look at the nodes.",
        "kubectl get nodes -o wide",
    ),
    (Phase.RESTARTING, Cause.IMAGE_PULL): ("The image of the new pod cannot be pulled: check registry and pull secret.", _DESCRIBE),
    (Phase.RESTARTING, Cause.CRASH): ("It goes on from its last state; the log of the lost container says why it died.", _LOGS_BEFORE),
    (Phase.RESTARTING, Cause.HANG): ("The gang is restarted after a hang; if it hangs again, look at the network between the pods.", _PODS),
    (Phase.HUNG, ""): (
        "No sign of training for longer than hungAfter: read in the log which rank stands still; policy.onHung decides about a restart.",
        _LOGS,
    ),
    (Phase.SUSPENDED, ""): ("It is suspended; resume it when you like: it goes on from its last durable step.", _RESUME),
    (Phase.SUCCEEDED, ""): ("Nothing: it is finished. Its checkpoints stay on the claim.", _CLAIM),
    (Phase.FAILED, ""): ("It has ended for good; the log of the pod that failed first says why.", _LOGS),
    (Phase.FAILED, Cause.CONFIG_ERROR): (
        "The configuration was refused: the last line of the log names the key; correct the values and upgrade the release.",
        _LOGS,
    ),
    (Phase.FAILED, Cause.USER_ERROR): ("An exception in your training code ended it: read the trace, correct it, start again.", _LOGS),
    (Phase.FAILED, Cause.DATA_ERROR): (
        "Data or run directory could not be used: check the path and the mount that the message names.",
        _LOGS,
    ),
    (Phase.FAILED, Cause.VOLUME_FULL): ("The volume is full: enlarge the claim or prune old checkpoints, then resume.", _CLAIM),
    (Phase.FAILED, Cause.DIVERGED): (
        "The loss was not finite: the last good checkpoint is kept; lower the learning rate, then start again from it.",
        _LOGS,
    ),
    (Phase.FAILED, Cause.OOM_KILLED): (
        "It ran out of memory: raise the memory limit or lower the batch per pod, then resume.",
        _DESCRIBE,
    ),
    (Phase.FAILED, Cause.IMAGE_PULL): ("The image cannot be pulled: check its name and the pull secret.", _DESCRIBE),
    (Phase.FAILED, Cause.DEADLINE_EXCEEDED): ("It ran longer than policy.activeDeadline: raise that, then resume.", _RESUME),
    (Phase.FAILED, Cause.PENDING_TOO_LONG): ("Its pods did not all run within policy.pendingDeadline: find room, then resume.", _RESUME),
    (Phase.FAILED, Cause.NO_PROGRESS): (
        "It failed again and again without a newer durable step: read the log of the last failure, correct the cause, then resume.",
        _LOGS,
    ),
    (Phase.FAILED, Cause.BUDGET_USED_UP): (
        "Its restarts are used up: the ledger shows why; correct the cause, then resume, which begins new budgets.",
        _RESUME,
    ),
}


def advise(
    phase: Phase,
    reason: str,
    *,
    namespace: str,
    run: str,
    job: str,
    pod: str = "",
    claim: str = "",
    conditions: Mapping[str, tuple[str, str]] | None = None,
    overdue: str = "",
    has_pods: bool = True,
) -> Advice:
    """What a person should do now.

    Args:
        phase: of the run.
        reason: of the phase.
        namespace: where it is.
        run: its name.
        job: its job's name.
        pod: the one that a command looks at (see `pod_to_look_at`); without one it lists the pods instead.
        claim: the one that holds the checkpoints.
        conditions: type to (status, reason).
        overdue: the budget or deadline that was passed and is only reported; "" if none was.
        has_pods: whether there are any; of a run that was stopped there are none, and only its ledger can tell.
    """
    sentence, command = _worry(phase, conditions or {}, overdue) or TABLE.get((phase, reason)) or TABLE[phase, ""]
    if ("{pod}" in command and not pod) or ("{claim}" in command and not claim):
        command = _PODS if has_pods or phase not in FINAL_PHASES else _LEDGER
    # quoted: the names come from the cluster, and somebody will paste this
    names = {"namespace": namespace, "run": run, "job": job, "pod": pod, "claim": claim}
    return Advice(sentence, command.format(**{key: shlex.quote(name) for key, name in names.items()}))


def _worry(phase: Phase, conditions: Mapping[str, tuple[str, str]], overdue: str) -> tuple[str, str] | None:
    rows = [row for (kind, *found), row in OF_CONDITIONS.items() if conditions.get(kind) == tuple(found)]
    rows += [row for cause, row in OF_OVERDUE.items() if cause == overdue]
    return next(((sentence, command) for phases, sentence, command in rows if phase in phases), None)


def pod_to_look_at(phase: Phase, lost: str, pods: Sequence[tuple[str, str]] | None) -> str:
    """Which pod tells most about the phase; "" if that cannot be known.

    Args:
        phase: of the run.
        lost: the pod of the newest ledger entry, if that has not recovered.
        pods: name and phase of each, node 0's first; None: they may not be read.
    """
    if pods is None:
        return lost if phase in {Phase.RESTARTING, Phase.FAILED} else ""
    names = [name for name, _ in pods]
    wanted = {Phase.PENDING: ("Pending", "Failed"), Phase.RESTARTING: ("Failed", "Pending"), Phase.FAILED: ("Failed",)}.get(phase, ())
    if phase in {Phase.RESTARTING, Phase.FAILED} and lost in names:
        return lost
    return next((name for state in wanted for name, found in pods if found == state), names[0] if names else "")
