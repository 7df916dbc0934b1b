"""The closed lists of words in a TrainingRun's status: phases, reasons, causes. Code, CRD, docs and tests read these tables."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """The one word about a run that is true now."""

    PENDING = "Pending"
    """It has never trained, or not since it was resumed, and waits: the reason says for what."""
    STARTING = "Starting"
    """All pods run; ranks form, load or compile."""
    RUNNING = "Running"
    SAVING = "Saving"
    """It writes its last state, or was told to leave and does so."""
    RESTARTING = "Restarting"
    """It has trained, something was lost, and it is on its way back: the reason is the cause."""
    HUNG = "Hung"
    """Pods run, but no step was made for longer than `hungAfter`, and the trainer's own watchdog has not helped."""
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


FINAL_PHASES = frozenset({Phase.SUCCEEDED, Phase.FAILED})


class PendingReason(StrEnum):
    """Why a run waits."""

    JOB_NOT_FOUND = "JobNotFound"
    NO_PODS = "NoPodsYet"
    """The training operator has made none: is it running?"""
    UNSCHEDULABLE = "Unschedulable"
    QUEUED = "Queued"
    """Kueue, a gang scheduler or a quota holds the pods back."""
    QUOTA = "QuotaExceeded"
    IMAGE = "ImagePull"
    CLAIM = "ClaimPending"
    NODE = "NodeNotReady"
    CONTAINER = "ContainerCreating"
    INIT = "InitContainers"


class Cause(StrEnum):
    """Why something was lost: the reason of Restarting, Hung and Failed, of ledger entries, and the label of metrics."""

    OOM_KILLED = "OOMKilled"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    IMAGE_PULL = "ImagePull"
    CONFIG_ERROR = "ConfigError"
    DATA_ERROR = "DataError"
    DIVERGED = "Diverged"
    HANG = "Hang"
    PEER_LOST = "PeerLost"
    USER_ERROR = "UserError"
    VOLUME_FULL = "VolumeFull"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    PENDING_TOO_LONG = "PendingDeadlineExceeded"
    NO_PROGRESS = "NoProgress"
    BUDGET_USED_UP = "RestartBudgetUsedUp"
    CRASH = "Crash"
    """A rank or a container died of a signal, or with a code that nobody explained."""
    POD_DELETED = "PodDeleted"
    """Somebody deleted it, or it vanished while nobody watched."""
    UNKNOWN = "Unknown"


PREEMPTION_CAUSES = frozenset({Cause.EVICTED, Cause.PREEMPTED, Cause.NODE_LOST, Cause.POD_DELETED})
"""Not the run's fault: counted against `maxPreemptions`; everything else against `maxRestarts`."""


class Act(StrEnum):
    """What the operator did: the `action` of a ledger entry."""

    NONE = "None"
    GANG_RESTART = "GangRestart"
    FREE_PODS = "FreePods"
    STOP = "Stop"
    CLEAN_UP = "CleanUp"


class ConditionType(StrEnum):
    """Conditions, after kstatus: Ready is normal-true; Reconciling and Stalled are only true or absent-as-False."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    RUNNING = "Running"
    CHECKPOINT_FRESH = "CheckpointFresh"
    STORAGE_HEALTHY = "StorageHealthy"
    SUCCEEDED = "Succeeded"


class EventReason(StrEnum):
    """Reasons of Kubernetes events that the operator posts on TrainingRuns."""

    PHASE = "PhaseChanged"
    RESTARTED = "Restarted"
    GANG_RESTART = "GangRestart"
    HUNG = "Hung"
    PODS_FREED = "PodsFreed"
    STOPPED = "Stopped"
    CLEANED_UP = "CleanedUp"
    CHECKPOINT_STALE = "CheckpointStale"
    VOLUME_FILLING = "VolumeFilling"
    CLAIM_LOST = "ClaimLost"
    ADOPTED = "Adopted"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
