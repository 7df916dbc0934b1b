"""The TrainingRun: what a user asks for (spec) and what is true (status).

Fields are camelCase in the API and snake_case here. Times are RFC 3339 in UTC, to the second. Fractions are
texts, as the API conventions ask: they print as they are in `kubectl get`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from ddp_operator.api.words import Act, Cause, ConditionType, Phase

GROUP = "ddp-operator.io"
VERSION = "v1alpha1"
KIND = "TrainingRun"
PLURAL = "trainingruns"
SHORT_NAME = "trun"
TRACK_LABEL = f"{GROUP}/track"
"""On a PyTorchJob: "true" has it adopted."""
RUN_LABEL = f"{GROUP}/run"

LEDGER_ENTRIES = 32
MAX_REPLICAS_REMEMBERED = 256

Name = Annotated[str, Field(min_length=1, max_length=253)]
Duration = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?(s|m|h|d))+$", max_length=32)]
"""Like 90s, 5m, 1h30m, 2d."""
Text = Annotated[str, Field(max_length=1024)]
Word = Annotated[str, Field(max_length=64)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class ApiModel(BaseModel):
    """camelCase outside, unknown keys refused, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


# --- what the user asks for


class JobRef(ApiModel):
    """The PyTorchJob of the same namespace."""

    name: Name


class CheckpointSpec(ApiModel):
    """Where the run keeps its checkpoints."""

    claim_name: Name | None = None
    path: Annotated[str, Field(max_length=1024)] | None = None
    stale_after: Duration = "10m"
    """A training run without a newer durable step for this long is not CheckpointFresh."""


class Policy(ApiModel):
    """What the operator may do, and when. The chart renders bounds that are longer than the trainer's own."""

    max_restarts: Annotated[int, Field(ge=0, le=10_000)] = 20
    """Failures of pods that are counted to the run; then it is stopped."""
    max_preemptions: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Evictions, preemptions, lost nodes, deleted pods."""
    no_progress_restarts: Annotated[int, Field(ge=0, le=10_000)] = 5
    """So many failures in a row without a newer durable step; 0 switches it off."""
    hung_after: Duration = "20m"
    """No sign of training for so long, while all pods run. Longer than the trainer's own longest bound: 15 min, for a start."""
    pending_deadline: Duration | None = None
    """Longest wait for the first step of all pods running; None: for ever."""
    active_deadline: Duration | None = None
    """Longest time from the first pod running to the end, pauses by suspension left out."""
    node_lost_after: Duration = "2m"
    """A pod on a node that does not answer is freed after this; one that was told to end and does not, after its grace period and this."""
    on_hung: Literal["Restart", "Report"] = "Restart"
    on_node_lost: Literal["FreePods", "Report"] = "FreePods"
    on_deadline: Literal["Stop", "Report"] = "Stop"
    on_budget: Literal["Stop", "Report"] = "Stop"
    on_finished: Literal["CleanUp", "Report"] = "CleanUp"
    """Pods that run on after the end of their job hold GPUs: CleanUp deletes them."""


class TrainingRunSpec(ApiModel):
    """The wish."""

    job_ref: JobRef
    checkpoint: CheckpointSpec = CheckpointSpec()
    policy: Policy = Policy()


# --- what is true


class StatusModel(ApiModel):
    """A part of the status. Unknown keys are ignored, since a newer operator may have written it; in a wish they are refused."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusModel):
    """A metav1.Condition."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    observed_generation: Count
    last_transition_time: datetime
    reason: Word
    message: Text


class ProgressStatus(StatusModel):
    """How far training is, as node 0 said last."""

    step: Count = 0
    total_steps: Count = 0
    percent: Count = 0
    epoch: Word = ""
    """ "3.2/4"."""
    loss: Word = ""
    accuracy: Word = ""
    samples_per_second: Word = ""
    eta: Word = ""
    """ "1h20m"; "" when nobody knows."""
    world_size: Count = 0
    attempt: Count = 0
    """The trainer's own number of its start."""
    note: Text = ""
    updated_at: datetime | None = None
    """When something about the training was last heard."""


class CheckpointStatus(StatusModel):
    """The newest durable step."""

    step: Count
    saved_at: datetime
    bytes: Count
    verified: bool


class ReplicaStatus(StatusModel):
    """Pods."""

    desired: Count = 0
    running: Count = 0
    pending: Count = 0
    succeeded: Count = 0
    failed: Count = 0


class RestartStatus(StatusModel):
    """How often it was restarted. `failures` and `preemptions` are spent from the budgets of the policy."""

    total: Count = 0
    failures: Count = 0
    preemptions: Count = 0
    by_operator: Count = 0
    in_process: Count = 0
    """Restarts of ranks by the trainer itself, no pod lost."""
    in_former_lives: Count | None = None
    """Those that the trainer, which counts all of the run, had counted before this job or resume. None: it was not heard since."""
    without_progress: Count = 0
    """Failures since the durable step last moved."""
    durable_step_at_last_failure: Count = 0


class LedgerEntry(StatusModel):
    """One incident: what was lost, why, and what was done."""

    at: datetime
    cause: Cause
    pod: Annotated[str, Field(max_length=253)] = ""
    node: Annotated[str, Field(max_length=253)] = ""
    exit_code: int | None = None
    message: Annotated[str, Field(max_length=256)] = ""
    action: Act = Act.NONE
    step: Count = 0
    """Reached when it happened."""
    durable_step: Count = 0
    recovered_at: datetime | None = None
    lost_steps: Count | None = None


class Intent(StatusModel):
    """An action of more than one step, written down before its first: a successor finishes it."""

    action: Act
    cause: Cause
    started_at: datetime
    job_uid: Word
    from_generation: Count
    """The job's metadata.generation before we suspend it. Ours is the next one; any other means that somebody else changed the job."""


class OpenIncident(StatusModel):
    """What is still being lost, or not yet recovered: the newest ledger entry is its own. Later losses may belong to it."""

    opened_at: datetime
    last_loss_at: datetime
    replicas: Annotated[list[Word], Field(max_length=MAX_REPLICAS_REMEMBERED)] = []
    """Replicas that it took: one that is lost again is another incident."""
    gathered_at: datetime | None = None
    """Since when all pods run again; empty: they do not."""
    is_explained: bool = False
    """Whether somebody gave the cause, so that a guess from an exit code does not replace it."""
    lost_steps_before: Count = 0
    """The trainer's count of lost steps when it opened: the difference is what this incident cost."""


class ClaimStatus(StatusModel):
    """A claim that the run uses."""

    name: Name
    phase: Word
    requested_bytes: Count = 0
    capacity_bytes: Count = 0
    used_bytes: Count | None = None
    """Of the file system that it lies on, as node 0 sees it."""
    used_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    volume_bytes: Count | None = None
    """That file system's size. More than the capacity where many claims share one, as with NFS, hostPath and local-path."""
    used_by: Annotated[list[Name], Field(max_length=16)] = []
    """TrainingRuns that use it, this one included."""


class TimingStatus(StatusModel):
    """When what happened, and what the time went to."""

    pending_since: datetime | None = None
    started_at: datetime | None = None
    """First pod running."""
    gathered_at: datetime | None = None
    """First moment of all pods running: the pending deadline ends here."""
    running_at: datetime | None = None
    """First step seen since the last pause; of who tells no steps, when all pods ran."""
    suspended_at: datetime | None = None
    suspended_seconds: Count = 0
    finished_at: datetime | None = None
    last_progress_at: datetime | None = None
    last_progress_step: Count = 0
    goodput_ratio: Word = ""
    lost_steps: Count = 0


class TrainingRunStatus(StatusModel):
    """The truth, as far as it is known."""

    observed_generation: Count = 0
    phase: Phase = Phase.PENDING
    reason: Word = ""
    """A PendingReason, a Cause, or empty."""
    message: Text = ""
    phase_since: datetime | None = None
    job_uid: Word = ""
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    progress: ProgressStatus | None = None
    checkpoint: CheckpointStatus | None = None
    replicas: ReplicaStatus = ReplicaStatus()
    restarts: RestartStatus = RestartStatus()
    ledger: Annotated[list[LedgerEntry], Field(max_length=LEDGER_ENTRIES)] = []
    """The newest last."""
    intent: Intent | None = None
    stopped_by_us: Cause | None = None
    """Set when the operator ended the run; a resume by the user clears it."""
    stopped_generation: Count = 0
    """The job's generation after that stop; another one means that somebody has resumed or changed it."""
    job_generation: Count = 0
    """The job's generation when it was last looked at: an older one is a stale read, and a jump by two may hide a pause."""
    incident: OpenIncident | None = None
    overdue: Cause | None = None
    """A budget or deadline that was passed and is only reported: by policy, or because Kueue owns the job."""
    numbers_written_at: datetime | None = None
    """When progress, checkpoint and other mere numbers were last renewed here: they are not written more often than they can be read."""
    incarnations: Annotated[dict[str, Word], Field(max_length=MAX_REPLICAS_REMEMBERED)] = {}
    """Replica (master-0) to the pod last seen there, "<first 8 of its uid>/<restarts of its container>/<its creation>".

    It tells a replacement. A fourth part says that its end is already accounted for: "lost" (in the ledger), "left" (a pause took it),
    "freed" (by us), "done".
    """
    claims: Annotated[list[ClaimStatus], Field(max_length=8)] = []
    timing: TimingStatus = TimingStatus()


class TrainingRun(ApiModel):
    """The object as users write it, without its metadata."""

    spec: TrainingRunSpec
    status: TrainingRunStatus | None = None
