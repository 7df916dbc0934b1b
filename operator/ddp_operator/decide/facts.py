"""Facts: what was seen of a run, slim and frozen. `observe` makes them; every field that an object may lack has a default.

Times are seconds since the epoch, on the operator's clock. Texts were cut and cleaned of control characters where they were read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ddp_operator.api.trainingrun import TrainingRunSpec, TrainingRunStatus


@dataclass(frozen=True, slots=True)
class Termination:
    """How a container ended. `message` is the termination message, whole (at most 4 KiB)."""

    exit_code: int
    signal: int = 0
    reason: str = ""
    message: str = ""
    finished_at: float = 0.0


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod of a job. Of its containers, the one called `pytorch` (else the first) counts."""

    name: str
    uid: str
    replica: str
    """ "master-0", "worker-3", from the labels of the training operator."""
    phase: str = "Pending"
    reason: str = ""
    """status.reason: Evicted, NodeLost, Preempting, UnexpectedAdmissionError ..."""
    message: str = ""
    node: str = ""
    ip: str = ""
    created_at: float = 0.0
    started_at: float = 0.0
    """The container's; 0: not yet."""
    deleted_at: float = 0.0
    """metadata.deletionTimestamp, which already lies a grace period after the request; 0: not deleted."""
    grace_seconds: float = 30.0
    is_ready: bool = False
    """The pod's Ready condition. The node controller sets it False when the node does not answer."""
    container_is_ready: bool = False
    """The kubelet's last word (the pod's ContainersReady, of all its containers): True beside a False `is_ready` means that the node is not
    heard of. A side-car that has ended, or fails its probe, makes both False: nothing is wrong with the node then."""
    unready_since: float = 0.0
    waiting_reason: str = ""
    """ErrImagePull, CrashLoopBackOff, CreateContainerConfigError, ContainerCreating ... of the container, or of an init container."""
    waiting_message: str = ""
    is_initialising: bool = False
    unscheduled_reason: str = ""
    """The PodScheduled condition's reason while it is False: Unschedulable, SchedulingGated."""
    unscheduled_message: str = ""
    disruption: str = ""
    """The DisruptionTarget condition's reason: PreemptionByScheduler, DeletionByTaintManager, EvictionByEvictionAPI ..."""
    restart_count: int = 0
    ended: Termination | None = None
    """Of the container's current state."""
    ended_before: Termination | None = None
    """Of its last state: it runs again in the same pod."""
    owner_uid: str = ""
    """The uid of the job that made it; "" is not known. A job made again under the same name has another."""
    progress_port: int = 0
    """The container port called `telemetry`; 0: it declares none, so nothing is asked."""
    holds_gpus: int = 0


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A PyTorchJob."""

    name: str
    uid: str
    generation: int = 1
    resource_version: str = ""
    created_at: float = 0.0
    deleted_at: float = 0.0
    suspend: bool = False
    suspend_manager: str = ""
    """Whose field spec.runPolicy.suspend is, by metadata.managedFields; "" is not known. Tells a user's pause from ours."""
    queue: str = ""
    """Kueue's queue-name label: Kueue owns `suspend` then."""
    replicas: dict[str, int] = field(default_factory=dict)
    """{"Master": 1, "Worker": 3}; a Worker-only job has no Master."""
    restart_policy: dict[str, str] = field(default_factory=dict)
    is_elastic: bool = False
    clean_pod_policy: str = "None"
    conditions: dict[str, tuple[str, str, str, float]] = field(default_factory=dict)
    """Type to (status, reason, message, lastTransitionTime). Hints only, but for Succeeded and Failed, which are final in v1."""
    claims: tuple[str, ...] = ()
    """Names of the claims that its pods mount."""
    is_tracked: bool = False
    run: str = ""
    """The value of its ddp-operator.io/run label."""

    @property
    def has_master(self) -> bool:
        """Whether rank 0 is a Master's."""
        return "Master" in self.replicas

    @property
    def desired(self) -> int:
        """Pods that it wants."""
        return sum(self.replicas.values())


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """A PersistentVolumeClaim. `used_by` names the TrainingRuns whose job mounts it or whose spec names it."""

    name: str
    phase: str = "Pending"
    requested_bytes: int = 0
    capacity_bytes: int = 0
    message: str = ""
    deleted_at: float = 0.0
    used_by: tuple[str, ...] = ()
    run: str = ""
    """The value of its ddp-operator.io/run label: made by a chart for a run of that name."""


@dataclass(frozen=True, slots=True)
class ProgressFacts:
    """What node 0's agent said (contract 3.4), checked; ratios 0-1, None: not known."""

    run: str
    attempt: int
    phase: str
    """starting, training, evaluating, saving, finished, failed."""
    updated_at: float
    """On the pod's clock: it stands still while the ranks do. Compare it with itself, not with ours."""
    note: str = ""
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    epochs: float = 0.0
    loss: float | None = None
    accuracy: float | None = None
    samples_per_second: float | None = None
    eta_seconds: float | None = None
    world_size: int = 0
    checkpoint_step: int | None = None
    checkpoint_saved_at: float = 0.0
    checkpoint_bytes: int = 0
    checkpoint_verified: bool = False
    restarts: dict[str, int] = field(default_factory=dict)
    """crash, hang, preemption, peer_loss."""
    lost_steps: int = 0
    goodput_ratio: float | None = None
    volume_total_bytes: int = 0
    volume_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ProgressLook:
    """The last look at node 0's progress. `document` is the last one that was good, from whatever pod."""

    document: ProgressFacts | None = None
    pod_uid: str = ""
    """Whose it is."""
    heard_at: float = 0.0
    """When `document.updated_at` last moved, on our clock; 0: never."""
    asked_at: float = 0.0
    answered_at: float = 0.0
    error: str = ""
    """Why the last request failed; "" if it did not."""
    unanswered_since: float = 0.0
    """When the first of the requests was sent that have failed in a row since the last answer, on our clock; 0: the last was answered."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """All that `decide` may know of one run."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    created_at: float
    spec: TrainingRunSpec
    status: TrainingRunStatus
    """As stored: the memory of the operator."""
    job: JobFacts | None = None
    pods: tuple[PodFacts, ...] = ()
    claims: tuple[ClaimFacts, ...] = ()
    progress: ProgressLook = ProgressLook()
    others_asked_at: float = 0.0
    """The newest `asked_at` of any other run's look; 0: no other run is asked. With the next it tells whose silence a silence is."""
    others_answered_at: float = 0.0
    """The newest `answered_at` of any other run's look; 0: none has answered."""
    is_adopted: bool = False
    pods_are_known: bool = True
    """False until the pods of the namespace were listed once: absence says nothing then."""
    deleted_at: float = 0.0
    """metadata.deletionTimestamp of the TrainingRun; 0: not deleted."""
    memory_is_unreadable: str = ""
    """Why the stored status must be left as it is: what was begun or spent cannot be read. "" if it can."""
