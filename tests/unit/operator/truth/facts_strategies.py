"""Hypothesis strategies for facts: `run_facts()` draws from what clusters say, and now and then from what nobody should say."""

import json
from datetime import UTC, datetime

from hypothesis import strategies as st
from small_facts import BORN, CLAIM, NOW

from ddp_operator.api.trainingrun import (
    CheckpointSpec,
    CheckpointStatus,
    Condition,
    Intent,
    JobRef,
    LedgerEntry,
    Policy,
    ProgressStatus,
    RestartStatus,
    TimingStatus,
    TrainingRunSpec,
    TrainingRunStatus,
)
from ddp_operator.api.words import Act, Cause, ConditionType, PendingReason, Phase
from ddp_operator.decide.facts import ClaimFacts, JobFacts, PodFacts, ProgressFacts, ProgressLook, RunFacts, Termination

INFINITY = float("inf")


@st.composite
def mostly(draw, usual, odd):
    """`usual` seven times out of eight."""
    return draw(odd if draw(st.integers(0, 7)) == 7 else usual)


def modelled(model, **fields):
    """A pydantic model of the API: `st.builds` would take its aliases for arguments that are missing."""
    return st.fixed_dictionaries(fields).map(lambda values: model(**values))


def or_texts(*words):
    """Nothing, or one of the words that Kubernetes has for it, or anything."""
    return mostly(st.sampled_from(["", *words]), texts)


texts = st.one_of(st.just(""), st.text(max_size=40), st.sampled_from(["\x00\x1b[31m", "{"]), st.integers(1, 2000).map("é".__mul__))
numbers = st.one_of(st.integers(0, 10_000), st.sampled_from([-1, 2**31, 2**63, 10**30]))
counts = mostly(st.integers(0, 5000), numbers)
seconds = mostly(
    st.one_of(st.just(0.0), st.floats(BORN - 100, NOW + 100)),
    st.sampled_from([-1.0, 1e300, INFINITY, -INFINITY, float("nan"), NOW + 1e9]),
)
amounts = mostly(st.floats(0, 1e6), st.sampled_from([0.0, -1.0, 1e300, INFINITY, float("nan")]))
ratios = st.one_of(st.none(), mostly(st.floats(0, 1), amounts))
moments = st.one_of(
    st.none(),
    mostly(
        st.integers(int(BORN), int(NOW)).map(lambda at: datetime.fromtimestamp(at, UTC)),
        st.sampled_from([datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)]),
    ),
)
words = st.text("abcXYZ-", max_size=10)
durations = st.sampled_from(["90s", "10m", "1h30m", "2d", "0s", "0.5s", "99999999999999999999999999999d"])
replicas = st.one_of(
    st.builds("{}-{}".format, st.sampled_from(["master", "worker"]), st.integers(0, 3)),
    st.sampled_from(["", "worker-", "x-y-1", "worker-999999"]),
)

CAUSES_IN_MESSAGES = [
    *["user_error", "config_error", "data_error", "diverged", "no_progress"],
    *["preemption", "crash", "hang", "peer_loss", "finished"],
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def termination_messages(draw):
    """A line of the trainer's, a broken one, or what a foreign image or the kubelet left."""
    cause = draw(st.one_of(st.sampled_from(CAUSES_IN_MESSAGES), json_values))
    keys = {
        "exit": draw(json_values),
        "rank": draw(json_values),
        "step": draw(counts),
        "durable_step": draw(counts),
        "message": draw(st.one_of(texts, json_values)),
    }
    line = json.dumps({"cause": cause, **keys})
    return draw(
        st.sampled_from([line, line[: len(line) // 2], line + "\n", "Traceback (most recent call last)", "", "null", '"text"', "1e999"])
    )


exit_codes = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 5, 126, 127, 134, 137, 139, 143, 160, 161, 162, 255]), st.sampled_from([-9, 2**40]))
terminations = st.builds(
    Termination,
    exit_code=exit_codes,
    signal=st.sampled_from([0, 9, 11]),
    reason=st.one_of(
        st.sampled_from(["Error", "OOMKilled", "Completed", "ContainerStatusUnknown", "DeadlineExceeded", "StartError"]), texts
    ),
    message=termination_messages(),
    finished_at=seconds,
)
pods = st.builds(
    PodFacts,
    name=st.one_of(replicas.map("ddp-demo-{}".format), texts),
    uid=st.one_of(st.sampled_from(["u1", "u2", "u3", "uid-of-master-0"]), texts),
    replica=replicas,
    phase=mostly(st.sampled_from(["Running", "Running", "Pending", "Failed", "Succeeded"]), st.sampled_from(["Unknown", "", "Weird"])),
    reason=or_texts("Evicted", "NodeLost", "Preempting", "Shutdown", "UnexpectedAdmissionError", "DeadlineExceeded"),
    message=texts,
    node=st.sampled_from(["", "node-1", "node-2"]),
    ip=st.sampled_from(["", "10.0.0.1"]),
    created_at=seconds,
    started_at=seconds,
    deleted_at=mostly(st.just(0.0), seconds),
    grace_seconds=amounts,
    is_ready=st.booleans(),
    container_is_ready=st.booleans(),
    unready_since=seconds,
    waiting_reason=or_texts("ErrImagePull", "ImagePullBackOff", "CrashLoopBackOff", "ContainerCreating", "CreateContainerConfigError"),
    waiting_message=texts,
    is_initialising=st.booleans(),
    unscheduled_reason=or_texts("Unschedulable", "SchedulingGated"),
    unscheduled_message=texts,
    disruption=or_texts("PreemptionByScheduler", "DeletionByTaintManager", "EvictionByEvictionAPI", "TerminationByKubelet"),
    restart_count=st.integers(0, 50),
    ended=st.one_of(st.none(), terminations),
    ended_before=st.one_of(st.none(), terminations),
    progress_port=st.sampled_from([0, 9400]),
    holds_gpus=st.sampled_from([0, 1, 8]),
)
"""One pod in whatever state, the pieces not always in agreement."""
job_conditions = st.dictionaries(
    st.sampled_from(["Created", "Running", "Restarting", "Succeeded", "Failed", "Suspended", "Odd"]),
    st.tuples(st.sampled_from(["True", "False", "Unknown", ""]), texts, texts, seconds),
    max_size=4,
)
jobs = st.builds(
    JobFacts,
    name=st.just("ddp-demo"),
    uid=st.sampled_from(["j1", "j2"]),
    generation=st.integers(1, 9),
    resource_version=st.sampled_from(["", "100"]),
    created_at=seconds,
    deleted_at=mostly(st.just(0.0), seconds),
    suspend=mostly(st.just(False), st.just(True)),
    queue=mostly(st.just(""), st.just("queue")),
    replicas=mostly(
        st.sampled_from([{"Master": 1, "Worker": 2}, {"Master": 1}, {"Worker": 3}]),
        st.dictionaries(st.sampled_from(["Master", "Worker", "odd"]), st.integers(-1, 5)),
    ),
    restart_policy=st.dictionaries(
        st.sampled_from(["Master", "Worker"]), st.sampled_from(["ExitCode", "OnFailure", "Never", "Always", ""])
    ),
    is_elastic=mostly(st.just(False), st.just(True)),
    clean_pod_policy=st.sampled_from(["None", "Running", "All"]),
    conditions=mostly(st.just({}), job_conditions),
    claims=st.sampled_from([(), (CLAIM,), (CLAIM, "data")]),
    is_tracked=st.booleans(),
    run=st.sampled_from(["", "ddp-demo"]),
)
claims = st.builds(
    ClaimFacts,
    name=st.one_of(st.sampled_from([CLAIM, "data"]), texts),
    phase=mostly(st.sampled_from(["Bound", "Pending", "Lost"]), texts),
    requested_bytes=counts,
    capacity_bytes=counts,
    message=texts,
    deleted_at=mostly(st.just(0.0), seconds),
    used_by=st.lists(texts, max_size=20).map(tuple),
)
documents = st.builds(
    ProgressFacts,
    run=texts,
    attempt=counts,
    phase=mostly(st.sampled_from(["starting", "training", "training", "evaluating", "saving", "finished", "failed"]), texts),
    updated_at=seconds,
    note=texts,
    step=counts,
    total_steps=counts,
    epoch=amounts,
    epochs=amounts,
    loss=st.one_of(st.none(), st.floats()),
    accuracy=ratios,
    samples_per_second=st.one_of(st.none(), amounts),
    eta_seconds=st.one_of(st.none(), amounts),
    world_size=counts,
    checkpoint_step=st.one_of(st.none(), counts),
    checkpoint_saved_at=seconds,
    checkpoint_bytes=counts,
    checkpoint_verified=st.booleans(),
    restarts=st.dictionaries(st.sampled_from(["crash", "hang", "preemption", "peer_loss"]), st.integers(0, 9)),
    lost_steps=counts,
    goodput_ratio=ratios,
    volume_total_bytes=numbers,
    volume_free_bytes=numbers,
)
looks = st.one_of(
    st.just(ProgressLook()),
    st.builds(
        ProgressLook,
        document=st.one_of(st.none(), documents, documents),
        pod_uid=st.sampled_from(["", "u1", "uid-of-master-0"]),
        heard_at=seconds,
        asked_at=seconds,
        answered_at=seconds,
        error=st.one_of(st.just(""), texts),
    ),
)
policies = modelled(
    Policy,
    max_restarts=st.integers(0, 5),
    max_preemptions=st.integers(0, 5),
    no_progress_restarts=st.integers(0, 3),
    hung_after=durations,
    pending_deadline=st.one_of(st.none(), durations),
    active_deadline=st.one_of(st.none(), durations),
    node_lost_after=durations,
    on_hung=st.sampled_from(["Restart", "Report"]),
    on_node_lost=st.sampled_from(["FreePods", "Report"]),
    on_deadline=st.sampled_from(["Stop", "Report"]),
    on_budget=st.sampled_from(["Stop", "Report"]),
    on_finished=st.sampled_from(["CleanUp", "Report"]),
)
specs = modelled(
    TrainingRunSpec,
    job_ref=st.just(JobRef(name="ddp-demo")),
    checkpoint=modelled(CheckpointSpec, claim_name=st.sampled_from([None, CLAIM]), path=st.none(), stale_after=durations),
    policy=policies,
)
_moments_known = moments.filter(lambda at: at is not None)
_counts_in_range = st.integers(0, 10_000)
ledgers = st.lists(
    modelled(
        LedgerEntry,
        at=_moments_known,
        cause=st.sampled_from(Cause),
        pod=words,
        node=words,
        exit_code=st.one_of(st.none(), st.integers(0, 255)),
        message=words,
        action=st.sampled_from(Act),
        step=_counts_in_range,
        durable_step=_counts_in_range,
        recovered_at=moments,
        lost_steps=st.one_of(st.none(), _counts_in_range),
    ),
    max_size=4,
)
condition_lists = st.lists(
    modelled(
        Condition,
        type=st.sampled_from(ConditionType),
        status=st.sampled_from(["True", "False", "Unknown"]),
        observed_generation=_counts_in_range,
        last_transition_time=_moments_known,
        reason=words,
        message=words,
    ),
    max_size=7,
)
intents = st.one_of(
    st.none(),
    st.none(),
    modelled(
        Intent,
        action=st.sampled_from(Act),
        cause=st.sampled_from(Cause),
        started_at=_moments_known,
        job_uid=st.sampled_from(["j1", "j2"]),
        from_generation=st.integers(0, 9),
    ),
)
statuses = st.one_of(
    st.just(TrainingRunStatus()),
    modelled(
        TrainingRunStatus,
        observed_generation=st.integers(0, 9),
        phase=st.sampled_from(Phase),
        reason=st.one_of(st.just(""), st.sampled_from([*Cause, *PendingReason]).map(str), words),
        message=words,
        phase_since=moments,
        job_uid=st.sampled_from(["", "j1", "j2"]),
        conditions=condition_lists,
        progress=st.one_of(st.none(), modelled(ProgressStatus, step=_counts_in_range, total_steps=_counts_in_range, updated_at=moments)),
        checkpoint=st.one_of(
            st.none(),
            modelled(CheckpointStatus, step=_counts_in_range, saved_at=_moments_known, bytes=_counts_in_range, verified=st.booleans()),
        ),
        restarts=modelled(RestartStatus, failures=st.integers(0, 5), preemptions=st.integers(0, 5)),
        ledger=ledgers,
        intent=intents,
        stopped_by_us=st.one_of(st.none(), st.sampled_from(Cause)),
        stopped_generation=st.integers(0, 9),
        incarnations=st.dictionaries(replicas.filter(bool), st.sampled_from(["u1/0", "u2/1", "garbage"]), max_size=3),
        timing=modelled(
            TimingStatus,
            pending_since=moments,
            started_at=moments,
            running_at=moments,
            suspended_at=moments,
            suspended_seconds=_counts_in_range,
            finished_at=moments,
            last_progress_at=moments,
            last_progress_step=_counts_in_range,
        ),
    ),
)
clocks = st.one_of(st.just(NOW), st.floats(NOW - 1000, NOW + 1e6))


@st.composite
def run_facts(draw):
    """A TrainingRun, its job, pods, claims and progress: any of them may be missing, stale or at odds with the others."""
    return RunFacts(
        namespace="default",
        name="ddp-demo",
        uid="uid-of-the-run",
        generation=draw(st.integers(1, 9)),
        resource_version="200",
        created_at=draw(seconds),
        spec=draw(specs),
        status=draw(statuses),
        job=draw(mostly(jobs, st.none())),
        pods=draw(st.lists(pods, max_size=4).map(tuple)),
        claims=draw(st.lists(claims, max_size=2).map(tuple)),
        progress=draw(looks),
        is_adopted=draw(st.booleans()),
        pods_are_known=draw(mostly(st.just(True), st.just(False))),
    )
