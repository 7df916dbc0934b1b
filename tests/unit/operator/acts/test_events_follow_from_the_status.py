"""What was told of a status can be told again from it alone, as the same fact: the next leader posts what is missing, and no more."""

from dataclasses import replace

import pytest
from simulated_job import SimulatedJob

from ddp_operator.decide import announce
from ddp_operator.decide.decide import decide


def hangs(job):
    job.is_hung = True


def loses_a_node(job):
    job.lose_node("worker-0")


def crashes(job):
    job.crash("worker-0", 160)


def is_too_long(job):
    job.spec = job.spec.model_copy(update={"policy": job.spec.policy.model_copy(update={"active_deadline": "40s"})})


def ends(job):
    job.job = replace(job.job, conditions={"Succeeded": ("True", "", "", job.now)})


STORIES = [
    (hangs, {"Hung", "GangRestart", "PhaseChanged", "Restarted"}),
    (loses_a_node, {"PodsFreed", "PhaseChanged", "Restarted"}),
    (crashes, {"PhaseChanged", "Restarted"}),
    (is_too_long, {"Stopped", "Failed"}),
    (ends, {"Succeeded", "CleanedUp"}),
]


@pytest.mark.parametrize(("story", "told"), STORIES, ids=[story.__name__ for story, _ in STORIES])
def test_each_fact_that_was_told_is_told_by_the_status_as_long_as_it_is_young(story, told):
    job = SimulatedJob()
    job.pass_time(30)
    story(job)
    seen = set()
    for _ in range(150):
        job.pass_time(1, operator=False)
        facts = job.facts()
        decision = job.carry_out(facts, decide(facts, job.now))
        again = {(event.reason, event.is_warning, event.fact) for event in announce.recent(job.status, job.now)}
        assert {(event.reason, event.is_warning, event.fact) for event in decision.events} <= again
        seen |= {event.reason.value for event in decision.events}
    assert told <= seen
    assert announce.recent(job.status, job.now + announce.RECENT_SECONDS + 151) == ()


def test_facts_of_different_times_are_different():
    job = SimulatedJob()
    job.pass_time(30)
    for _ in range(2):
        job.crash("worker-0", 160)
        job.pass_time(200)
    facts = [event.fact for _, event in job.events]
    assert len(facts) == len(set(facts)) > 6


def test_a_run_that_waits_for_its_first_pods_tells_nothing():
    job = SimulatedJob()
    job.has_room = False
    job.pass_time(10)
    assert job.status.phase == "Pending"
    assert announce.recent(job.status, job.now) == ()
