"""The phase of a run, as a table: what is seen of it, and the one word that is true."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from facts_strategies import clocks, run_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from small_facts import NOW, a_claim, a_document, a_job, a_look, a_pod, a_run, a_waiting_pod, the_pods

from ddp_operator.api.trainingrun import Intent, LedgerEntry, OpenIncident, ProgressStatus, TrainingRunStatus
from ddp_operator.api.words import FINAL_PHASES, Act, Cause, PendingReason, Phase
from ddp_operator.decide.facts import ProgressLook, Termination
from ddp_operator.decide.phases import true_phase
from ddp_operator.decide.wording import moment


def at(seconds):
    return datetime.fromtimestamp(seconds, UTC)


def condition(kind, message="", status="True"):
    return {kind: (status, f"PyTorchJob{kind}", message, NOW - 5)}


def ended(code, cause=None, reason="Error", message="it broke"):
    words = json.dumps({"cause": cause, "rank": 1, "message": message}) if cause else ""
    return Termination(exit_code=code, reason=reason, message=words, finished_at=NOW - 5)


def failed(replica, code, cause=None, **changes):
    return a_pod(replica, phase="Failed", ended=ended(code, cause), is_ready=False, container_is_ready=False, **changes)


def but(*changed):
    """All pods well, but for these."""
    names = {pod.replica for pod in changed}
    return (*(pod for pod in the_pods() if pod.replica not in names), *changed)


def without(*replicas):
    return tuple(pod for pod in the_pods() if pod.replica not in replicas)


def says(phase, **changes):
    return a_look(a_document(phase=phase, **changes))


STORED = TrainingRunStatus(job_uid="uid-of-the-job", phase=Phase.RUNNING, message="it trains", phase_since=at(NOW - 60))
NO_ANSWER = {"answered_at": NOW - 900, "unanswered_since": NOW - 890, "asked_at": NOW - 1}
FIRST_FAILURE = ProgressLook(asked_at=NOW - 1, unanswered_since=NOW - 1, error="timeout")
OLD_LOOK = {"heard_at": NOW - 900, "answered_at": NOW - 1, "asked_at": NOW - 1}
NO_ROOM = a_waiting_pod(
    "worker-2", created_at=NOW - 10, unscheduled_reason="Unschedulable", unscheduled_message="0/3 nodes are available: 3 Insufficient x."
)
CRASHLOOP = {"waiting_reason": "CrashLoopBackOff", "container_is_ready": False, "is_ready": False}
ENTRY = LedgerEntry(at=at(NOW - 30), cause=Cause.OOM_KILLED, pod="ddp-demo-worker-1", message="over its limit")
INCIDENT = OpenIncident(opened_at=at(NOW - 30), last_loss_at=at(NOW - 30))
INTENT = Intent(action=Act.GANG_RESTART, cause=Cause.HANG, started_at=at(NOW), job_uid="uid-of-the-job", from_generation=1)

# what is seen, whether it has trained, phase, reason, part of the message
TABLE = {
    # there is no job
    "no job": ({"job": None, "pods": ()}, True, Phase.PENDING, PendingReason.JOB_NOT_FOUND, "the PyTorchJob ddp-demo does not exist"),
    "job goes": ({"job": a_job(deleted_at=NOW)}, True, Phase.PENDING, PendingReason.JOB_NOT_FOUND, "is being deleted"),
    "job went after success": (
        {"job": None, "status": TrainingRunStatus(phase=Phase.SUCCEEDED, message="finished")},
        True,
        Phase.SUCCEEDED,
        "",
        "finished",
    ),
    # it trains
    "starts": ({"progress": says("starting", note="loading")}, False, Phase.STARTING, "", "loading"),
    "trains": ({}, True, Phase.RUNNING, "", "it trains"),
    "evaluates": ({"progress": says("evaluating")}, True, Phase.RUNNING, "", "it evaluates"),
    "saves": ({"progress": says("saving")}, True, Phase.SAVING, "", "it saves"),
    "ranks are done": ({"progress": says("finished")}, True, Phase.SAVING, "", "training is finished"),
    "ranks start again": (
        {"progress": says("starting", restarts={"crash": 2, "hang": 0})},
        True,
        Phase.RESTARTING,
        Cause.CRASH,
        "all pods run",
    ),
    "ranks start again, once more": (
        {"progress": says("starting", restarts={"crash": 2, "hang": 1})},
        True,
        Phase.RESTARTING,
        Cause.UNKNOWN,
        "",
    ),
    "trainer gives up": ({"progress": says("failed", note="peer_loss")}, True, Phase.RESTARTING, Cause.PEER_LOST, "gives up"),
    "a phase of a newer trainer": ({"progress": says("dreaming")}, True, Phase.RUNNING, "", "it runs"),
    "the last condition means nothing": ({"job": a_job(conditions=condition("Restarting"))}, True, Phase.RUNNING, "", ""),
    "nor does an old suspension": ({"job": a_job(conditions=condition("Suspended", status="False"))}, True, Phase.RUNNING, "", ""),
    # progress is not known
    "foreign image": (
        {"pods": the_pods(progress_port=0), "progress": ProgressLook()},
        False,
        Phase.RUNNING,
        "",
        "progress is not known: node 0",
    ),
    "not asked yet": ({"progress": ProgressLook()}, False, Phase.STARTING, "", "has not answered yet"),
    "not asked yet by this operator": ({"progress": ProgressLook(), "status": STORED}, True, Phase.RUNNING, "", "it trains"),
    "word of another job": (
        {"progress": ProgressLook(), "status": STORED.model_copy(update={"job_uid": "other"})},
        False,
        Phase.STARTING,
        "",
        "has not answered yet",
    ),
    "never answered": (
        {"progress": ProgressLook(asked_at=NOW - 1, error="timeout")},
        False,
        Phase.RUNNING,
        "",
        "node 0 does not answer on port 9400; let the operator reach ddp-demo-master-0",
    ),
    "never answered for long": (
        {"progress": ProgressLook(asked_at=NOW - 1, unanswered_since=NOW - 800, error="connection refused")},
        False,
        Phase.RUNNING,
        "",
        "node 0 does not answer on port 9400; let the operator reach ddp-demo-master-0",
    ),
    "new node 0, old document": (
        {"pods": but(a_pod("master-0", uid="new", started_at=NOW - 60))},
        True,
        Phase.RESTARTING,
        Cause.UNKNOWN,
        "node 0 has not answered yet",
    ),
    # it hangs
    "still for long": ({"progress": a_look(**OLD_LOOK)}, True, Phase.HUNG, Cause.HANG, "no sign of training since 2025-06-15T14:51:40Z"),
    "still in the start": (
        {"progress": replace(says("starting"), **OLD_LOOK)},
        False,
        Phase.HUNG,
        Cause.HANG,
        "longer than hungAfter (10m)",
    ),
    "still while saving": ({"progress": replace(says("saving"), **OLD_LOOK)}, True, Phase.HUNG, Cause.HANG, ""),
    "not for long enough": ({"progress": a_look(heard_at=NOW - 600)}, True, Phase.RUNNING, "", ""),
    "the youngest pod has not run for long": (
        {"progress": a_look(**OLD_LOOK), "pods": but(a_pod("worker-1", started_at=NOW - 60))},
        True,
        Phase.RUNNING,
        "",
        "",
    ),
    "the agent does not answer any more": (
        {"progress": a_look(heard_at=NOW - 900, error="connection refused", **NO_ANSWER)},
        True,
        Phase.HUNG,
        Cause.HANG,
        "node 0 does not answer: connection refused",
    ),
    "a new agent never answered, its predecessor did": (
        {"pods": but(a_pod("master-0", uid="new")), "progress": a_look(heard_at=NOW - 3000, error="timeout", **NO_ANSWER)},
        True,
        Phase.HUNG,
        Cause.HANG,
        "timeout",
    ),
    "known from before the operator's start": (
        {
            "progress": ProgressLook(asked_at=NOW - 1, unanswered_since=NOW - 800, error="timeout"),
            "status": STORED.model_copy(update={"timing": STORED.timing.model_copy(update={"last_progress_at": moment(NOW - 900)})}),
        },
        True,
        Phase.HUNG,
        Cause.HANG,
        "timeout",
    ),
    "one failed request is not a hang": (
        {"progress": a_look(heard_at=NOW - 900, answered_at=NOW - 900, asked_at=NOW - 1, unanswered_since=NOW - 1, error="timeout")},
        True,
        Phase.RUNNING,
        "",
        "",
    ),
    "an operator that was away does not know": (
        {"progress": FIRST_FAILURE, "status": STORED.model_copy(update={"progress": ProgressStatus()})},
        True,
        Phase.RUNNING,
        "",
        "it trains",
    ),
    "what was said of earlier pods is not kept": (
        {"progress": FIRST_FAILURE, "status": STORED, "pods": but(a_pod("worker-1", started_at=NOW - 30))},
        True,
        Phase.RESTARTING,
        Cause.UNKNOWN,
        "has not answered yet",
    ),
    "nor that it was waiting": (
        {"progress": FIRST_FAILURE, "status": STORED.model_copy(update={"phase": Phase.PENDING})},
        False,
        Phase.STARTING,
        "",
        "has not answered yet",
    ),
    "an operator that does not get to ask does not know": (
        {"progress": a_look(heard_at=NOW - 900, asked_at=NOW - 899)},
        True,
        Phase.RUNNING,
        "",
        "",
    ),
    "a foreign job never hangs": ({"pods": the_pods(progress_port=0), "progress": a_look(**OLD_LOOK)}, True, Phase.RUNNING, "", ""),
    # it waits
    "no pods": ({"pods": ()}, False, Phase.PENDING, PendingReason.NO_PODS, "none of 4 pods is made yet"),
    "no room": ({"pods": but(NO_ROOM)}, False, Phase.PENDING, PendingReason.UNSCHEDULABLE, "worker-2: 0/3 nodes are available"),
    "deleted before it ever trained": (
        {"pods": but(a_pod("worker-2", deleted_at=NOW + 9))},
        False,
        Phase.PENDING,
        PendingReason.NO_PODS,
        "it is ending",
    ),
    "not listed yet": ({"pods": (), "pods_are_known": False}, True, Phase.PENDING, PendingReason.NO_PODS, "not listed yet"),
    "not listed yet, known from before": ({"pods": (), "pods_are_known": False, "status": STORED}, True, Phase.RUNNING, "", "it trains"),
    "a job that wants nothing": ({"job": a_job(replicas={}), "pods": ()}, False, Phase.PENDING, PendingReason.NO_PODS, ""),
    # it comes back
    "out of memory": (
        {"pods": but(a_pod("worker-1", phase="Failed", ended=ended(137, reason="OOMKilled")))},
        True,
        Phase.RESTARTING,
        Cause.OOM_KILLED,
        "ddp-demo-worker-1: the container went over its memory limit",
    ),
    "a crash in the first start": (
        {"pods": but(failed("worker-1", 160, "crash"))},
        False,
        Phase.RESTARTING,
        Cause.CRASH,
        "rank 1: it broke",
    ),
    "crash and echo": (
        {"pods": but(failed("worker-0", 162, "peer_loss"), failed("worker-1", 160, "crash"))},
        True,
        Phase.RESTARTING,
        Cause.CRASH,
        "ddp-demo-worker-1: rank 1: it broke; 2 of 4 pods wait",
    ),
    "deleted": (
        {"pods": but(a_pod("worker-1", deleted_at=NOW + 9))},
        True,
        Phase.RESTARTING,
        Cause.POD_DELETED,
        "ddp-demo-worker-1: the pod was deleted",
    ),
    "preempted": (
        {"pods": but(a_pod("worker-1", deleted_at=NOW + 9, disruption="PreemptionByScheduler"))},
        True,
        Phase.RESTARTING,
        Cause.PREEMPTED,
        "PreemptionByScheduler",
    ),
    "gone": ({"pods": without("worker-1")}, True, Phase.RESTARTING, Cause.POD_DELETED, "pods are gone; 1 of 4 pods wait: worker-1"),
    "its node does not answer": (
        {"pods": but(a_pod("worker-1", is_ready=False, unready_since=NOW - 60))},
        True,
        Phase.RESTARTING,
        Cause.NODE_LOST,
        "node node-worker-1 does not answer",
    ),
    "the cause is remembered while its successor waits": (
        {"pods": but(NO_ROOM), "status": TrainingRunStatus(ledger=[ENTRY], incident=INCIDENT)},
        True,
        Phase.RESTARTING,
        Cause.OOM_KILLED,
        "ddp-demo-worker-1: over its limit; 1 of 4 pods wait: worker-2: 0/3 nodes",
    ),
    "an incident that is over is not the cause": (
        {"pods": without("worker-1"), "status": TrainingRunStatus(ledger=[ENTRY])},
        True,
        Phase.RESTARTING,
        Cause.POD_DELETED,
        "",
    ),
    "all run again, ranks form": (
        {"progress": says("starting"), "status": TrainingRunStatus(ledger=[ENTRY], incident=INCIDENT)},
        True,
        Phase.RESTARTING,
        Cause.OOM_KILLED,
        "over its limit; all pods run",
    ),
    "crash loop under OnFailure": (
        {"job": a_job(policy="OnFailure"), "pods": but(a_pod("worker-1", ended_before=ended(1), **CRASHLOOP))},
        False,
        Phase.RESTARTING,
        Cause.USER_ERROR,
        "ended with exit code 1",
    ),
    "the operator restarts it": (
        {"status": TrainingRunStatus(intent=INTENT)},
        True,
        Phase.RESTARTING,
        Cause.HANG,
        "the operator restarts all pods",
    ),
    "even while it is paused for that": (
        {"status": TrainingRunStatus(intent=INTENT), "job": a_job(suspend=True), "pods": ()},
        True,
        Phase.RESTARTING,
        Cause.HANG,
        "made again",
    ),
    # fewer than wanted, and yet
    "told to leave, it saves first": (
        {"pods": the_pods(deleted_at=NOW + 20), "progress": says("saving")},
        True,
        Phase.SAVING,
        Cause.POD_DELETED,
        "it saves before it leaves",
    ),
    "elastic: trains on without one": (
        {"pods": but(replace(NO_ROOM, created_at=NOW - 300))},
        True,
        Phase.RUNNING,
        "",
        "it trains on without some of its pods: 1 of 4 pods wait: worker-2",
    ),
    "too early to say so": ({"pods": but(NO_ROOM)}, True, Phase.RESTARTING, Cause.POD_DELETED, ""),
    "a worker that is done, but for its phase": (
        {"pods": but(a_pod("worker-1", ended=ended(0, reason="Completed"), is_ready=False, container_is_ready=False))},
        True,
        Phase.RUNNING,
        "",
        "it trains",
    ),
    "a worker that left with 0 because it had to": (
        {"pods": but(a_pod("worker-1", ended=ended(0, reason="Completed"), deleted_at=NOW + 5))},
        True,
        Phase.RESTARTING,
        Cause.POD_DELETED,
        "",
    ),
    "a worker that is done is not missed": ({"pods": but(a_pod("worker-1", phase="Succeeded"))}, True, Phase.RUNNING, "", "it trains"),
    # it is paused
    "suspended": ({"job": a_job(suspend=True), "pods": ()}, True, Phase.SUSPENDED, "", "set spec.runPolicy.suspend of the job to false"),
    "suspended, pods end": ({"job": a_job(suspend=True)}, True, Phase.SUSPENDED, "", "4 pods are still ending"),
    "held by Kueue": ({"job": a_job(suspend=True, queue="q"), "pods": ()}, True, Phase.PENDING, PendingReason.QUEUED, "in queue q"),
    # it is over
    "job succeeded": ({"job": a_job(conditions=condition("Succeeded")), "pods": ()}, True, Phase.SUCCEEDED, "", "finished"),
    "job has not succeeded": ({"job": a_job(conditions=condition("Succeeded", status="False"))}, True, Phase.RUNNING, "", ""),
    "master has": ({"pods": but(a_pod("master-0", phase="Succeeded"))}, True, Phase.SUCCEEDED, "", ""),
    "its container has": ({"pods": but(a_pod("master-0", ended=ended(0)))}, True, Phase.SUCCEEDED, "", ""),
    "not if it was deleted": (
        {"pods": but(a_pod("master-0", ended=ended(0), deleted_at=NOW))},
        True,
        Phase.RESTARTING,
        Cause.POD_DELETED,
        "",
    ),
    "workers are not the master": (
        {"pods": (a_pod("master-0"), *(a_pod(f"worker-{i}", phase="Succeeded") for i in range(3)))},
        True,
        Phase.RUNNING,
        "",
        "",
    ),
    "all workers, no master": (
        {"job": a_job(2, master=False), "pods": tuple(a_pod(f"worker-{i}", phase="Succeeded") for i in range(2))},
        True,
        Phase.SUCCEEDED,
        "",
        "",
    ),
    "any worker, elastic": (
        {"job": a_job(2, master=False, is_elastic=True), "pods": (a_pod("worker-0"), a_pod("worker-1", phase="Succeeded"))},
        True,
        Phase.SUCCEEDED,
        "",
        "",
    ),
    "one worker is not all": (
        {"job": a_job(2, master=False), "pods": (a_pod("worker-0", progress_port=0), a_pod("worker-1", phase="Succeeded"))},
        True,
        Phase.RUNNING,
        "",
        "",
    ),
    "failed by the job": (
        {"job": a_job(conditions=condition("Failed")), "pods": but(failed("worker-1", 1, "user_error"))},
        True,
        Phase.FAILED,
        Cause.USER_ERROR,
        "ddp-demo-worker-1: rank 1: it broke. An exception in your training code",
    ),
    "failed by a pod that the job has not looked at": (
        {"pods": but(failed("master-0", 2, "config_error"))},
        False,
        Phase.FAILED,
        Cause.CONFIG_ERROR,
        "",
    ),
    "not by one that is retried": ({"pods": but(failed("master-0", 160, "crash"))}, True, Phase.RESTARTING, Cause.CRASH, ""),
    "not by one that was deleted with it": (
        {"pods": but(failed("master-0", 1, deleted_at=NOW))},
        True,
        Phase.RESTARTING,
        Cause.USER_ERROR,
        "",
    ),
    "never restarted": ({"job": a_job(policy="Never"), "pods": but(failed("worker-1", 137))}, True, Phase.FAILED, Cause.CRASH, "SIGKILL"),
    "failed, pods are gone, ledger knows": (
        {"job": a_job(conditions=condition("Failed")), "pods": (), "status": TrainingRunStatus(ledger=[ENTRY])},
        True,
        Phase.FAILED,
        Cause.OOM_KILLED,
        "over its limit",
    ),
    "failed, nobody knows why": (
        {"job": a_job(conditions=condition("Failed")), "pods": ()},
        True,
        Phase.FAILED,
        Cause.UNKNOWN,
        "its pods are gone",
    ),
    "failed by its own deadline": (
        {"job": a_job(conditions=condition("Failed", "it was active longer than specified deadline")), "pods": ()},
        True,
        Phase.FAILED,
        Cause.DEADLINE_EXCEEDED,
        "activeDeadlineSeconds",
    ),
    "stopped by us": (
        {"job": a_job(suspend=True), "pods": (), "status": TrainingRunStatus(stopped_by_us=Cause.BUDGET_USED_UP)},
        True,
        Phase.FAILED,
        Cause.BUDGET_USED_UP,
        "stopped by the operator",
    ),
    "success before all": ({"job": a_job(suspend=True, conditions=condition("Succeeded"))}, True, Phase.SUCCEEDED, "", ""),
}


@pytest.mark.parametrize(("seen", "has_trained", "phase", "reason", "words"), TABLE.values(), ids=TABLE)
def test_what_is_seen_has_one_phase(seen, has_trained, phase, reason, words):
    truth = true_phase(a_run(**seen), NOW, has_trained=has_trained)
    assert (truth.phase, truth.reason) == (phase, reason), truth.message
    assert words in truth.message


def test_the_cause_that_is_handed_in_goes_before_what_is_seen():
    from ddp_operator.decide.classify import Loss

    loss = Loss(Cause.NODE_LOST, None, "gone", "w", "n", NOW, 0)
    facts = a_run(pods=but(failed("worker-1", 162, "peer_loss")))
    assert true_phase(facts, NOW, has_trained=True, lost=loss)[:2] == (Phase.RESTARTING, Cause.NODE_LOST)


def test_the_reason_of_a_failure_stays_while_its_pods_are_cleaned_away():
    job = a_job(conditions=condition("Failed"))
    pods = but(a_pod("worker-1", phase="Failed", ended=ended(137, reason="OOMKilled")))
    first = true_phase(a_run(job=job, pods=pods), NOW, has_trained=True)
    stored = TrainingRunStatus(job_uid=job.uid, phase=first.phase, reason=first.reason, message=first.message)
    for left in (pods, without("worker-1"), (failed("worker-0", 162, "peer_loss"),), (a_pod("worker-0", deleted_at=NOW),), ()):
        assert true_phase(a_run(job=job, pods=left, status=stored), NOW, has_trained=True) == first


def test_a_better_reason_of_a_failure_is_taken():
    job = a_job(conditions=condition("Failed"))
    stored = TrainingRunStatus(job_uid=job.uid, phase=Phase.FAILED, reason=Cause.UNKNOWN, message="?")
    facts = a_run(job=job, pods=(failed("worker-1", 4, "diverged"),), status=stored)
    assert true_phase(facts, NOW, has_trained=True).reason == Cause.DIVERGED


def test_an_entry_from_before_a_pause_is_not_why_the_next_pods_failed():
    job = a_job(conditions=condition("Failed"))
    pods = tuple(replace(pod, created_at=NOW - 10) for pod in but(failed("worker-1", 139)))
    facts = a_run(job=job, pods=pods, status=TrainingRunStatus(ledger=[ENTRY]))
    assert true_phase(facts, NOW, has_trained=True).reason == Cause.CRASH


def test_a_stop_says_why():
    entry = LedgerEntry(at=at(NOW), cause=Cause.BUDGET_USED_UP, action=Act.STOP, message="21 failures, and maxRestarts is 20")
    status = TrainingRunStatus(stopped_by_us=Cause.BUDGET_USED_UP, ledger=[entry])
    assert "21 failures, and maxRestarts is 20" in true_phase(a_run(status=status), NOW, has_trained=True).message


@pytest.mark.parametrize("seconds", [0, 100, 10_000, 10**7])
def test_messages_do_not_change_as_time_goes_by(seconds):
    steady = [
        "still for long",
        "no room",
        "no pods",
        "suspended",
        "out of memory",
        "foreign image",
        "job failed",
        "never answered",
        "held by Kueue",
    ]
    for name in steady:
        if name in TABLE:
            seen, has_trained, *_ = TABLE[name]
            facts = a_run(**seen)
            assert true_phase(facts, NOW + seconds, has_trained=has_trained) == true_phase(facts, NOW, has_trained=has_trained)


@settings(max_examples=60)
@given(facts=run_facts(), now=clocks, has_trained=st.booleans())
def test_every_run_has_one_phase(facts, now, has_trained):
    truth = true_phase(facts, now, has_trained=has_trained)
    assert truth.phase in Phase
    assert len(truth.reason) <= 64
    assert len(truth.message) <= 1024
    TrainingRunStatus(phase=truth.phase, reason=truth.reason, message=truth.message).model_dump_json()


@settings(max_examples=60)
@given(facts=run_facts(), now=clocks, has_trained=st.booleans())
def test_the_phase_that_was_written_does_not_change_the_phase(facts, now, has_trained):
    first = true_phase(facts, now, has_trained=has_trained)
    uid = facts.job.uid if facts.job else facts.status.job_uid
    written = {"phase": first.phase, "reason": first.reason, "message": first.message, "job_uid": uid, "phase_since": at(NOW)}
    again = replace(facts, status=facts.status.model_copy(update=written))
    assert true_phase(again, now, has_trained=has_trained) == first


@settings(max_examples=50)
@given(facts=run_facts(), now=clocks, order=st.randoms(use_true_random=False))
def test_the_order_of_pods_and_claims_does_not_matter(facts, now, order):
    pods = list({pod.replica: pod for pod in facts.pods}.values())
    one = replace(facts, pods=tuple(pods))
    order.shuffle(pods)
    two = replace(facts, pods=tuple(pods))
    assert true_phase(one, now, has_trained=True) == true_phase(two, now, has_trained=True)


@settings(max_examples=60)
@given(facts=run_facts(), now=clocks, later=st.floats(0, 1e7))
def test_time_alone_hangs_a_run_or_leaves_its_phase(facts, now, later):
    before, after = (true_phase(facts, clock, has_trained=True) for clock in (now, now + later))
    if before.phase in FINAL_PHASES | {Phase.SUSPENDED, Phase.HUNG}:
        assert after.phase is before.phase


def test_a_claim_is_named_where_it_is_why():
    pod = a_waiting_pod("worker-0", node="n", waiting_reason="ContainerCreating")
    truth = true_phase(a_run(job=a_job(1), pods=(a_pod("master-0"), pod), claims=(a_claim(phase="Lost"),)), NOW, has_trained=False)
    assert truth[:2] == (Phase.PENDING, PendingReason.CLAIM)
