"""Pods on lost nodes are freed after a bound, pods that run on after the end are deleted: each told and counted once."""

from dataclasses import replace

import pytest
from simulated_job import GRACE_SECONDS, SimulatedJob

from ddp_operator.decide.decide import decide
from ddp_operator.decide.decision import DeletePod

NODE_LOST_AFTER = 20


def trained(**options):
    job = SimulatedJob(**options)
    job.pass_time(30)
    return job


def deletions(job):
    return [(action.pod.removeprefix("demo-"), action.grace_seconds) for action in job.done(DeletePod)]


def test_a_pod_on_a_lost_node_is_freed_and_the_run_goes_on():
    job = trained()
    job.lose_node("worker-0")
    job.pass_time(NODE_LOST_AFTER - 1)
    assert job.actions == []
    job.pass_time(40)
    assert deletions(job) == [("worker-0", 0)]
    assert job.ledger() == [("NodeLost", "FreePods", True)]
    assert (job.status.restarts.failures, job.status.restarts.preemptions) == (0, 1)
    assert job.status.phase == "Running"
    assert job.told().count("PodsFreed") == 1


def test_a_pod_that_does_not_end_is_freed_after_its_grace_period_and_the_bound():
    job = trained()
    job.lose_node("worker-0")
    job.delete_pod("worker-0")
    job.pass_time(10)
    job.pass_time(GRACE_SECONDS + NODE_LOST_AFTER + 30)
    assert deletions(job)[0] == ("worker-0", 0)
    assert [(cause, action) for cause, action, _ in job.ledger()] == [("NodeLost", "FreePods")]
    assert job.status.restarts.preemptions == 1
    assert job.status.phase == "Running"


def test_survivors_that_leave_for_a_lost_node_belong_to_its_incident():
    job = trained()
    job.lose_node("worker-0")
    job.pass_time(5)
    job.crash("master-0", 162)
    job.crash("worker-1", 162)
    job.pass_time(60)
    assert job.ledger() == [("NodeLost", "FreePods", True)]
    assert (job.status.restarts.failures, job.status.restarts.preemptions) == (0, 1)


def test_a_freed_pod_is_asked_for_until_it_is_gone_and_told_once():
    job = trained()
    job.lose_node("worker-0")
    job.pass_time(NODE_LOST_AFTER, operator=True)
    for _ in range(5):
        job.now += 60.0
        facts = job.facts()
        job.carry_out(facts, decide(facts, job.now), dies_after_write=True)
    assert decide(job.facts(), job.now + 59.0).actions == ()
    assert decide(job.facts(), job.now + 60.0).actions
    assert decide(job.facts(), job.now).events == ()
    assert job.status.restarts.preemptions == 1


def test_reporting_only_frees_nothing():
    job = trained(policy={"on_node_lost": "Report", "on_hung": "Report"})
    job.lose_node("worker-0")
    job.pass_time(100)
    assert job.actions == []


def test_a_pod_that_was_stuck_when_the_user_paused_is_freed_and_not_counted():
    job = trained()
    job.user_changes(suspend=True)
    job.unheard_nodes.add(job.pods["worker-0"].node)
    job.pass_time(GRACE_SECONDS + NODE_LOST_AFTER + 5)
    assert deletions(job) == [("worker-0", 0)]
    assert job.status.phase == "Suspended"
    assert (job.status.restarts.failures, job.status.restarts.preemptions) == (0, 0)


@pytest.mark.parametrize("condition", ["Succeeded", "Failed"])
def test_pods_that_run_on_after_the_end_are_deleted_once(condition):
    job = trained()
    job.job = replace(job.job, conditions={condition: ("True", "", "", job.now)})
    job.pass_time(55)
    assert job.actions == []
    job.pass_time(30)
    assert sorted(deletions(job)) == [("master-0", None), ("worker-0", None), ("worker-1", None)]
    assert job.ledger()[-1][:2] == ("Unknown", "CleanUp")
    assert job.told().count("CleanedUp") == 1
    assert job.pods == {}
    assert job.status.phase == condition


@pytest.mark.parametrize(("policy", "clean_pod_policy"), [({"on_finished": "Report"}, "None"), ({}, "Running")])
def test_pods_after_the_end_are_left_to_whom_they_belong(policy, clean_pod_policy):
    job = trained(policy=policy)
    job.job = replace(job.job, conditions={"Succeeded": ("True", "", "", job.now)}, clean_pod_policy=clean_pod_policy)
    job.pass_time(120)
    assert job.actions == []


def test_pods_of_a_job_that_is_not_at_its_end_are_not_cleaned_up():
    job = trained()
    job.training_operator_is_there = False
    job.crash("master-0", 0)
    job.pass_time(50)
    assert job.status.phase == "Succeeded"
    job.pass_time(100)
    assert job.actions == []


def test_a_pod_that_does_not_end_on_a_node_that_is_well_says_nothing_of_the_node():
    job = trained()
    job.unending_pods = {"worker-0"}
    job.delete_pod("worker-0")
    job.pass_time(GRACE_SECONDS + NODE_LOST_AFTER + 1)
    assert deletions(job)[0] == ("worker-0", 0)
    assert [(cause, action) for cause, action, _ in job.ledger()] == [("PodDeleted", "FreePods")]
    told = next(event.message for _, event in job.events if event.reason.value == "PodsFreed")
    assert "did not end within 20s after its grace period, though nobody says that its node" in told
    assert "NodeLost" not in job.status.message


def test_a_job_in_foreground_deletion_says_so_and_its_stuck_pods_are_freed():
    job = trained()
    job.lose_node("worker-0")
    job.delete_job_in_foreground()
    job.pass_time(3)
    status = job.status
    assert (status.phase, status.reason, status.progress.eta) == ("Pending", "JobNotFound", "")
    assert "is being deleted" in status.message
    job.pass_time(GRACE_SECONDS + NODE_LOST_AFTER)
    assert job.pods == {}
    assert deletions(job) == [("worker-0", 0)]
    assert (job.status.restarts.failures, job.status.restarts.preemptions) == (0, 0)
    writes = job.writes
    job.pass_time(100)
    assert job.writes == writes
