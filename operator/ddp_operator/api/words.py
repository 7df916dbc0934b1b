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
    """Pods run, but no sign of training was heard for longer than `hungAfter`, and the trainer's own watchdog has not helped."""
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


class CheckpointReason(StrEnum):
    """Of the condition CheckpointFresh. Its texts are a table of docs/operator.md."""

    FRESH = "CheckpointFresh"
    """True: the newest durable step is not older than `staleAfter` of training"""
    FINISHED = "Finished"
    """True: training is finished"""
    STALE = "CheckpointStale"
    """False: it trains, and nothing newer became durable for `staleAfter`"""
    NONE_YET = "NoCheckpointYet"
    """Unknown: nothing is durable yet; False: nor after `staleAfter` of training"""
    NOT_KNOWN = "NotKnown"
    """Unknown: nobody says which step is durable"""


class StorageReason(StrEnum):
    """Of the condition StorageHealthy. Its texts are a table of docs/operator.md."""

    ROOM = "EnoughRoom"
    """True: the checkpoint volume has room"""
    FILLING = "VolumeFilling"
    """True, as a warning: the volume is 85 % full, or has room for less than three more checkpoints"""
    FULL = "VolumeFull"
    """False: the volume is 95 % full, or the next checkpoint does not fit"""
    CLAIM_MISSING = "ClaimMissing"
    """False: nobody has made a claim that it uses"""
    CLAIM_LOST = "ClaimLost"
    """False: a claim has lost its volume"""
    CLAIM_TERMINATING = "ClaimTerminating"
    """False: a claim is deleted as soon as no pod uses it"""
    NOT_KNOWN = "NotKnown"
    """Unknown: nobody says how full the volume is"""


ConditionReason = Phase | PendingReason | Cause | CheckpointReason | StorageReason
"""All that a condition may give as its reason. Those about the phase give the run's own reason, or the phase where it has none."""


class EventReason(StrEnum):
    """Reasons of Kubernetes events that the operator posts on TrainingRuns. Their texts are a table of docs/operator.md."""

    PHASE = "PhaseChanged"
    """it is in another phase, of those that have no event of their own; a warning if that is Restarting"""
    RESTARTED = "Restarted"
    """it trains again after a loss: how long that took, and the steps that were done again"""
    GANG_RESTART = "GangRestart"
    """the operator starts all pods again, goes on with that although some did not go, or gives it up; or the API server refuses it"""
    HUNG = "Hung"
    """no sign of training was heard for `hungAfter`"""
    PODS_FREED = "PodsFreed"
    """a pod of a lost node, or one that did not end, was deleted; or the API server refuses it"""
    STOPPED = "Stopped"
    """a budget or deadline is over: the job was suspended, or by policy or for Kueue was not; or the API server refuses it"""
    CLEANED_UP = "CleanedUp"
    """pods that ran on after the end of their job were deleted"""
    CHECKPOINT_STALE = "CheckpointStale"
    """the condition CheckpointFresh became False for that reason"""
    VOLUME_FILLING = "VolumeFilling"
    """the checkpoint volume has little room left, or none"""
    CLAIM_LOST = "ClaimLost"
    """a claim has lost its volume, or does not exist"""
    ADOPTED = "Adopted"
    """a TrainingRun was made for a job that asks to be tracked"""
    SUCCEEDED = "Succeeded"
    """it has finished"""
    FAILED = "Failed"
    """it will not go on by itself"""
