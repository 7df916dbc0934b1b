"""Why a pod was lost, in one word: from what the cluster says of the pod, from the trainer's last words, and from the exit code.

The tables are the whole truth of it. Last words are those of contract 3.2, but anybody can have written them: they are read as hostile.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddp_operator.api.words import Cause
from ddp_operator.decide.facts import PodFacts, Termination
from ddp_operator.decide.wording import LEDGER_CHARS, count, cut

LAST_WORDS_CHARS = 4096
"""The kubelet keeps so much of a termination message; what is longer did not come from it."""

OF_POD_REASON: Mapping[str, Cause] = {
    "Evicted": Cause.EVICTED,
    "NodeLost": Cause.NODE_LOST,
    "NodeShutdown": Cause.NODE_LOST,
    "Shutdown": Cause.NODE_LOST,
    "Terminated": Cause.NODE_LOST,
    "Preempting": Cause.PREEMPTED,
    "Preempted": Cause.PREEMPTED,
    "UnexpectedAdmissionError": Cause.EVICTED,
    "NodeAffinity": Cause.EVICTED,
    "DeadlineExceeded": Cause.DEADLINE_EXCEEDED,
}
"""By a pod's status.reason. A kubelet that refuses a pod (no free device, not enough of a resource) is like one that evicts it."""
NODE_LOST_REASONS = frozenset({"NodeLost", "NodeStatusUnknown"})
"""What the node controller gives as the reason of a pod, or of its Ready condition."""
REFUSED_PREFIX = "OutOf"
"""OutOfcpu, OutOfmemory, OutOfnvidia.com/gpu: the kubelet has refused the pod."""

OF_DISRUPTION: Mapping[str, Cause] = {
    "PreemptionByScheduler": Cause.PREEMPTED,
    "PreemptionByKubeScheduler": Cause.PREEMPTED,
    "DeletionByTaintManager": Cause.NODE_LOST,
    "DeletionByPodGC": Cause.NODE_LOST,
    "EvictionByEvictionAPI": Cause.EVICTED,
    "TerminationByKubelet": Cause.EVICTED,
}
"""By the reason of the DisruptionTarget condition; other reasons are evictions."""

OF_LAST_WORDS: Mapping[str, Cause] = {
    "user_error": Cause.USER_ERROR,
    "config_error": Cause.CONFIG_ERROR,
    "data_error": Cause.DATA_ERROR,
    "diverged": Cause.DIVERGED,
    "no_progress": Cause.NO_PROGRESS,
    "crash": Cause.CRASH,
    "hang": Cause.HANG,
    "peer_loss": Cause.PEER_LOST,
    "failed_collective": Cause.PEER_LOST,
    "echo": Cause.PEER_LOST,
    "preemption": Cause.PREEMPTED,
}
"""By the trainer's own word for it."""

OF_CONTAINER_REASON: Mapping[str, Cause] = {
    "StartError": Cause.CONFIG_ERROR,
    "ContainerCannotRun": Cause.CONFIG_ERROR,
    "ContainerStatusUnknown": Cause.NODE_LOST,
    "DeadlineExceeded": Cause.DEADLINE_EXCEEDED,
}
"""By the reason of a container's end, where the cause is not said better. OOMKilled goes before anything a container says."""

SIGTERM_EXIT = 143
SIGKILL_EXIT = 137
OF_EXIT_CODE: Mapping[int, Cause] = {
    1: Cause.USER_ERROR,
    2: Cause.CONFIG_ERROR,
    126: Cause.CONFIG_ERROR,
    127: Cause.CONFIG_ERROR,
    SIGTERM_EXIT: Cause.PREEMPTED,
}
"""What any program means by its exit code: 126 and 127 are a shell's for a command that cannot be run, or is not there."""
OF_TRAINERS_EXIT_CODE: Mapping[int, Cause] = {
    3: Cause.DATA_ERROR,
    4: Cause.DIVERGED,
    5: Cause.NO_PROGRESS,
    160: Cause.CRASH,
    161: Cause.HANG,
    162: Cause.PEER_LOST,
}
"""Contract 3.2, for a pod that declares our telemetry port and left no words; any other image may mean something else by them."""
FIRST_SIGNAL_CODE = 128
"""128 + n is the end by signal n; below, a program has chosen its code. Kubeflow's `ExitCode` policy retries from here on."""

_ECHOES = frozenset({None, Cause.PREEMPTED, Cause.PEER_LOST})
_EXITS_OF_DELETED_PODS = frozenset({0, SIGTERM_EXIT, SIGKILL_EXIT, 162})
"""Left in order, by SIGTERM, by SIGKILL after its grace period, or because peers that were deleted too have gone before."""

IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable", "ImageInspectError"}
)
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})

FINAL_CAUSES = frozenset(
    {
        Cause.USER_ERROR,
        Cause.CONFIG_ERROR,
        Cause.DATA_ERROR,
        Cause.VOLUME_FULL,
        Cause.DIVERGED,
        Cause.NO_PROGRESS,
        Cause.DEADLINE_EXCEEDED,
    }
)
"""The same again would fail the same way."""
_FULL_VOLUME = re.compile(
    r"no space left|disk quota exceeded|enospc|errno 28|(volume|disk|device|claim|file ?system) (is|was) full", re.IGNORECASE
)

_WEIGHT_OF_STATED_FINAL = 6
_WEIGHTS: Mapping[Cause, int] = {
    **dict.fromkeys((Cause.OOM_KILLED, Cause.EVICTED, Cause.NODE_LOST, Cause.IMAGE_PULL), 5),
    **dict.fromkeys(FINAL_CAUSES, 4),
    **dict.fromkeys((Cause.HANG, Cause.CRASH, Cause.PREEMPTED), 3),
    Cause.POD_DELETED: 2,
    Cause.PEER_LOST: 1,
}
"""Who wins as the root cause. An exit 1 that the trainer does not explain ranks below an out-of-memory kill: plain torchrun exits so for
everything, also where it only noticed that a peer was killed. Nothing weighs less than Unknown."""
_WEIGHT_OF_BARE_SIGTERM = 2
"""Somebody told it to leave and nobody says why: an echo, unless the pod says that it was preempted."""
_WEIGHT_OF_PREEMPTION = 5


@dataclass(frozen=True, slots=True)
class Loss:
    """One pod's part in an incident. `at` is on the operator's clock as far as known, 0: not known; `step` is the one it had reached."""

    cause: Cause
    exit_code: int | None
    message: str
    pod: str
    node: str
    at: float
    step: int
    is_explained: bool = False
    """Somebody said so: the cluster by a reason of its own, or the trainer by its last words. Else it was read off a code."""
    durable_step: int | None = None
    """The trainer's last words on it; None: it said nothing."""


@dataclass(frozen=True, slots=True)
class LastWords:
    """The trainer's line in the termination message, checked."""

    cause: Cause | None
    message: str
    step: int
    durable_step: int | None


def last_words(message: str) -> LastWords:
    """Read a termination message. A foreign image's, or the tail of a log, gives no cause, and its last line as the message."""
    lines = [line for line in message[: 4 * LAST_WORDS_CHARS].splitlines() if line.strip()]
    words = _json_object(lines[-1]) if lines else None
    cause = words.get("cause") if words else None
    if words is None or not isinstance(cause, str):
        return LastWords(None, cut(lines[-1], LEDGER_CHARS) if lines else "", 0, None)
    text = words.get("message")
    said = cut(text, LEDGER_CHARS) if isinstance(text, str) else ""
    rank = words.get("rank")
    if said and isinstance(rank, int) and not isinstance(rank, bool) and 0 <= rank < 1_000_000:  # noqa: PLR2004 (more ranks there are none)
        said = cut(f"rank {rank}: {said}", LEDGER_CHARS)
    known = OF_LAST_WORDS.get(cause)
    if known is Cause.DATA_ERROR and isinstance(text, str) and _FULL_VOLUME.search(text):
        known = Cause.VOLUME_FULL
    durable = _whole(words.get("durable_step"))
    return LastWords(known, said, _whole(words.get("step")) or 0, durable)


def classify(pod: PodFacts, ended: Termination | None) -> Loss:
    """The cause of losing this pod, or this run of its container. `ended` is how the container ended; None: it was not seen to end.

    Total: whatever the pod says, there is a cause, if only Unknown.
    """
    words = last_words(ended.message) if ended else LastWords(None, "", 0, None)
    cause, message, is_explained = _verdict(pod, ended, words)
    return Loss(
        cause=cause,
        exit_code=ended.exit_code if ended and -(2**31) <= ended.exit_code < 2**31 else None,
        message=cut(message, LEDGER_CHARS),
        pod=cut(pod.name, 253),
        node=cut(pod.node, 253),
        at=(ended.finished_at if ended else 0.0) or _deletion_asked_at(pod) or pod.unready_since,
        step=words.step,
        is_explained=is_explained,
        durable_step=words.durable_step,
    )


def root_cause(losses: Sequence[Loss]) -> Loss:
    """Of all that was lost in one incident, the one that explains the others.

    The heaviest cause; among equals the one that somebody explained, then the earliest, then by name: the same losses in any order
    give the same. Without losses: Unknown.
    """
    if not losses:
        return Loss(Cause.UNKNOWN, None, "nothing is known of what was lost", "", "", 0.0, 0)
    return min(losses, key=_order)


def may_be_echo_of(loss: Loss, first: Loss) -> bool:
    """Whether a loss that was seen after `first` may be nothing but its echo, whatever its code.

    A plain program ends with 1 when a peer was taken from it, as torchrun does; and no peer's end deletes or SIGKILLs a pod.
    """
    was_taken = first.cause is Cause.POD_DELETED or (first.cause is Cause.CRASH and first.exit_code == SIGKILL_EXIT)
    return was_taken and loss.cause is Cause.USER_ERROR and not loss.is_explained


def _order(loss: Loss) -> tuple[object, ...]:
    at = loss.at if loss.at > 0 else float("inf")
    rest = (loss.message, loss.node, loss.cause, -1 if loss.exit_code is None else loss.exit_code, loss.step, loss.durable_step or 0)
    return (-_weight(loss), not loss.is_explained, at, loss.pod, *rest)


def outweighs(loss: Loss, other: Loss) -> bool:
    """Whether `loss` explains `other`, and not the other way round."""
    return _weight(loss) > _weight(other)


def _weight(loss: Loss) -> int:
    if loss.cause in FINAL_CAUSES and loss.is_explained:
        return _WEIGHT_OF_STATED_FINAL
    if loss.cause is Cause.PREEMPTED:
        return _WEIGHT_OF_PREEMPTION if loss.is_explained else _WEIGHT_OF_BARE_SIGTERM
    return _WEIGHTS.get(loss.cause, 0)


def _verdict(pod: PodFacts, ended: Termination | None, words: LastWords) -> tuple[Cause, str, bool]:
    """The first of these that says something: pod, OOM, a final exit, disruption, lost node, deletion, last words, container, code."""
    by_pod = OF_POD_REASON.get(pod.reason) or (Cause.EVICTED if pod.reason.startswith(REFUSED_PREFIX) else None)
    if by_pod:
        return by_pod, pod.message or f"the pod ended as {pod.reason}", True
    if ended and ended.reason == "OOMKilled":
        return Cause.OOM_KILLED, "the container went over its memory limit; raise it, or use fewer or smaller batches in flight", True
    if words.cause in FINAL_CAUSES and ended and 0 < ended.exit_code < FIRST_SIGNAL_CODE:
        return words.cause, words.message or f"ended with exit code {ended.exit_code}", True
    if pod.disruption:
        return OF_DISRUPTION.get(pod.disruption, Cause.EVICTED), f"the pod was told to leave: {pod.disruption}", True
    if is_node_lost(pod) and ended is None:
        return Cause.NODE_LOST, f"node {pod.node or '?'} does not answer", True
    if _ended_by_deletion(pod, ended, words):
        return Cause.POD_DELETED, "the pod was deleted", False
    if words.cause and words.cause is not Cause.PREEMPTED:
        return words.cause, words.message or f"the trainer reports {words.cause}", True
    if ended is None:
        return _never_ended(pod)
    if ended.reason in OF_CONTAINER_REASON:
        return OF_CONTAINER_REASON[ended.reason], words.message or f"the container ended as {ended.reason}", True
    return _by_code(pod, ended, words)


def _deletion_asked_at(pod: PodFacts) -> float:
    return pod.deleted_at - pod.grace_seconds if pod.deleted_at else 0.0


def _ended_by_deletion(pod: PodFacts, ended: Termination | None, words: LastWords) -> bool:
    """Whether the deletion came first. The training operator also deletes pods that have failed: those died of something else."""
    if not pod.deleted_at or ended is None:
        return bool(pod.deleted_at)
    if ended.finished_at and ended.finished_at < _deletion_asked_at(pod):
        return False
    return words.cause in _ECHOES and ended.exit_code in _EXITS_OF_DELETED_PODS


def _never_ended(pod: PodFacts) -> tuple[Cause, str, bool]:
    if pod.waiting_reason in IMAGE_REASONS:
        return Cause.IMAGE_PULL, pod.waiting_message or f"the image cannot be pulled: {pod.waiting_reason}", True
    if pod.waiting_reason in CONFIG_REASONS:
        return Cause.CONFIG_ERROR, pod.waiting_message or f"the container cannot be made: {pod.waiting_reason}", True
    if pod.phase in {"Running", "Pending"}:
        return Cause.POD_DELETED, "the pod is gone, and nobody saw why: it was deleted, or its node was", False
    return Cause.UNKNOWN, pod.message or f"the pod is {pod.phase or 'in no phase'}, without a reason", False


def _by_code(pod: PodFacts, ended: Termination, words: LastWords) -> tuple[Cause, str, bool]:
    code = ended.exit_code
    tables = [OF_EXIT_CODE, OF_TRAINERS_EXIT_CODE] if pod.progress_port else [OF_EXIT_CODE]
    cause = next((table[code] for table in tables if code in table), None)
    if cause is None:
        cause = Cause.UNKNOWN if code == 0 else Cause.USER_ERROR if 0 < code < FIRST_SIGNAL_CODE else Cause.CRASH
    meant = f"ended with exit code {code}{_signal(code)}"
    return cause, f"{meant}: {words.message}" if words.message else meant, False


def _signal(code: int) -> str:
    number = code - FIRST_SIGNAL_CODE
    if number not in {*signal.Signals}:
        return ""
    name = signal.Signals(number).name
    return f" ({name}; out of memory on its node, or killed by hand)" if code == SIGKILL_EXIT else f" ({name})"


def is_node_lost(pod: PodFacts) -> bool:
    """Whether the pod's node is not heard of: the node controller calls the pod unready, while the kubelet's last word was ready.

    Only the node controller's word counts. A pod that the kubelet itself calls unready lives on a node that is well.
    """
    if not pod.node or pod.is_ready or pod.unready_since <= 0:
        return False
    return pod.container_is_ready or pod.reason in NODE_LOST_REASONS


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line[:LAST_WORDS_CHARS])
    except (ValueError, RecursionError):  # deep nesting must not end the operator
        return None
    return value if isinstance(value, dict) else None


def _whole(value: object) -> int | None:
    return count(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
