"""A silence is taken for the run's own only where something tells that it is not the operator's network that fails."""

from dataclasses import replace

import pytest
from small_facts import NOW

from ddp_operator.api.trainingrun import JobRef, Policy, TimingStatus, TrainingRunSpec, TrainingRunStatus
from ddp_operator.decide.decide import decide
from ddp_operator.decide.decision import SuspendJob
from ddp_operator.decide.facts import JobFacts, PodFacts, ProgressFacts, ProgressLook, RunFacts
from ddp_operator.decide.wording import moment

BOUND = 600.0
TIMEOUT = "http://10.0.0.1:9400/progress did not answer within 2 s"
NO_ROUTE = "http://10.0.0.1:9400/progress cannot be read: ClientConnectorError: No route to host"
BEGIN = NOW - 10_000.0


def silent(seconds, error, *, others_asked=None, others_answered=None, is_ready=True, heard_before=True):
    """Node 0 has not answered for so long; others were asked and answered so many seconds ago."""
    pods = tuple(
        PodFacts(
            name=f"demo-{replica}",
            uid=f"{replica}-uid",
            replica=replica,
            phase="Running",
            created_at=BEGIN,
            started_at=BEGIN,
            is_ready=is_ready,
            container_is_ready=is_ready,
            progress_port=9400,
            node="node-1",
        )
        for replica in ("master-0", "worker-0")
    )
    document = ProgressFacts(run="demo", attempt=1, phase="training", updated_at=5.0, step=7)
    look = ProgressLook(
        document=document,
        pod_uid="master-0-uid" if heard_before else "of-a-pod-before",
        heard_at=NOW - seconds if heard_before else BEGIN - 100.0,
        answered_at=NOW - seconds if heard_before else BEGIN - 100.0,
        asked_at=NOW,
        error=error,
        unanswered_since=NOW - seconds,
    )
    return RunFacts(
        namespace="default",
        name="demo",
        uid="run",
        generation=1,
        resource_version="1",
        created_at=BEGIN,
        spec=TrainingRunSpec(job_ref=JobRef(name="demo"), policy=Policy(hung_after="600s")),
        status=TrainingRunStatus(job_uid="job"),
        job=JobFacts(name="demo", uid="job", created_at=BEGIN, replicas={"Master": 1, "Worker": 1}),
        pods=pods,
        progress=look,
        others_asked_at=0.0 if others_asked is None else NOW - others_asked,
        others_answered_at=0.0 if others_answered is None else NOW - others_answered,
    )


def restarts(facts):
    return any(isinstance(action, SuspendJob) for action in decide(facts, NOW).actions)


@pytest.mark.parametrize("error", [TIMEOUT, NO_ROUTE])
@pytest.mark.parametrize("others_answered", [None, 5_000.0, BOUND * 3 - BOUND / 2])
def test_when_no_run_answers_any_more_a_gang_is_left_alone_however_long_it_lasts(error, others_answered):
    facts = silent(BOUND * 3, error, others_asked=1.0, others_answered=others_answered)
    decision = decide(facts, NOW)
    assert decision.actions == ()
    assert decision.status.intent is None
    assert decision.status.restarts.failures == 0
    assert "the network between the operator and the pod" in decision.status.message


def test_a_frozen_agent_is_restarted_where_others_answer():
    facts = silent(BOUND + 10, TIMEOUT, others_asked=1.0, others_answered=BOUND / 2)
    assert restarts(facts)
    assert "network between the operator" not in decide(facts, NOW).status.message


def test_a_run_alone_is_restarted_after_twice_the_bound():
    assert not restarts(silent(BOUND * 2 - 10, TIMEOUT))
    assert restarts(silent(BOUND * 2 + 10, TIMEOUT))


def test_runs_that_were_asked_only_before_the_silence_tell_nothing():
    assert restarts(silent(BOUND * 2 + 10, TIMEOUT, others_asked=BOUND * 3, others_answered=BOUND * 3))


@pytest.mark.parametrize("options", [{}, {"others_asked": 1.0, "others_answered": 1.0}], ids=["alone", "others-answer"])
def test_pods_that_were_never_heard_are_not_restarted_for_a_lost_packet(options):
    """Else a network that stays cut would cost one restart after the other, and then the run."""
    assert not restarts(silent(BOUND * 3, TIMEOUT, heard_before=False, **options))


def test_what_another_operator_has_heard_of_these_pods_counts():
    look = ProgressLook(asked_at=NOW, error=TIMEOUT, unanswered_since=NOW - 3 * BOUND)
    facts = replace(silent(BOUND * 3, TIMEOUT), progress=look)
    heard = {at: TrainingRunStatus(job_uid="job", timing=TimingStatus(last_progress_at=moment(at))) for at in (BEGIN - 60.0, BEGIN + 60.0)}
    assert [restarts(replace(facts, status=status)) for status in heard.values()] == [False, True]


@pytest.mark.parametrize(
    "error",
    [
        "http://10.0.0.1:9400/progress answered 500; is this port the trainer's telemetry?",
        "http://10.0.0.1:9400/progress serves no progress document: it is no JSON",
        "http://10.0.0.1:9400/progress sent a packed answer, which is not unpacked here",
        "http://10.0.0.1:9400/progress cannot be read: ClientConnectorError: [Errno 111] Connection refused",
    ],
)
def test_a_pod_that_was_reached_has_no_network_to_blame(error):
    assert restarts(silent(BOUND + 10, error, others_asked=1.0))


def test_the_kubelets_word_is_enough():
    assert restarts(silent(BOUND + 10, TIMEOUT, others_asked=1.0, is_ready=False))


def test_a_document_that_stands_still_is_the_runs_own():
    facts = silent(BOUND + 10, "", others_asked=1.0)
    facts = replace(facts, progress=replace(facts.progress, answered_at=NOW, unanswered_since=0.0))
    assert restarts(facts)


def test_a_pause_of_ours_whose_memory_is_gone_says_so():
    facts = silent(1.0, "")
    assert facts.job is not None
    paused = replace(facts, job=replace(facts.job, suspend=True, suspend_manager="ddp-operator"), status=TrainingRunStatus(), pods=())
    status = decide(paused, NOW).status
    assert status.phase == "Suspended"
    assert "suspended by the operator" in status.message
    assert "suspend of the job to false" in status.message
    other = replace(paused, job=replace(facts.job, suspend=True, suspend_manager="kubectl"))
    assert "by the operator" not in decide(other, NOW).status.message
