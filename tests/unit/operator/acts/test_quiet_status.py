"""What does not change is not written; what only counts up is written at most six times a minute; what happens is written at once."""

import itertools
from dataclasses import replace

import pytest
from simulated_job import SimulatedJob
from small_facts import NOW, a_document, a_look, a_run

from ddp_operator.api.words import ConditionType, EventReason
from ddp_operator.decide.decide import decide
from ddp_operator.decide.facts import ProgressLook


def trained(seconds=30, **options):
    job = SimulatedJob(**options)
    job.pass_time(seconds)
    return job


def test_a_training_run_is_written_at_most_six_times_a_minute():
    job = trained()
    for _ in range(3):
        writes = job.writes
        job.pass_time(60)
        assert 5 <= job.writes - writes <= 6
    assert job.status.progress.step >= job.step - 11


def test_looks_at_odd_times_do_not_write_more_often():
    job = trained()
    times = []
    for i in range(600):
        job.now += 0.37
        job.progress = replace(job.progress, document=replace(job.progress.document, step=100 + i), heard_at=job.now)
        writes = job.writes
        job.look_and_act()
        if job.writes > writes:
            times.append(job.now)
    assert len(times) >= 15
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 10.0


@pytest.mark.parametrize("shape", ["trains no more", "pending", "suspended", "finished", "foreign"])
def test_a_run_to_which_nothing_happens_is_not_written(shape):
    job = SimulatedJob(is_foreign=shape == "foreign", policy={"hung_after": "1h"})
    job.has_room = shape != "pending"
    job.pass_time(30)
    if shape == "suspended":
        job.user_changes(suspend=True)
    if shape == "finished":
        for replica in list(job.pods):
            job.crash(replica, 0)
    job.is_hung = True
    job.pass_time(60)
    writes = job.writes
    job.pass_time(400)
    assert job.writes == writes


def test_a_change_of_phase_is_written_at_once_with_the_numbers_of_the_moment():
    job = trained()
    writes = job.writes
    job.crash("worker-0", 160)
    job.look_and_act()
    assert job.writes == writes + 1
    assert job.status.phase == "Restarting"
    assert job.status.progress.step == job.step


@pytest.mark.parametrize("shape", ["pod lost", "suspended", "hung"])
def test_a_rate_and_an_end_are_told_only_while_it_trains(shape):
    job = trained(policy={"on_hung": "Report"})
    told = job.status.progress
    assert (told.samples_per_second, told.eta) == ("100", "1h")
    if shape == "pod lost":
        job.has_room = False
        job.crash("worker-0", 160)
    job.is_hung = shape == "hung"
    if shape == "suspended":
        job.user_changes(suspend=True)
    job.pass_time(100)
    assert job.status.phase in {"Restarting", "Suspended", "Hung"}
    after = job.status.progress
    assert (after.samples_per_second, after.eta, after.step > 0) == ("", "", True)
    writes = job.writes
    job.pass_time(100)
    assert job.writes == writes


def test_a_clock_that_was_set_back_holds_nothing_up():
    job = trained()
    job.now -= 3600.0
    job.progress = replace(job.progress, document=replace(job.progress.document, step=500), heard_at=job.now)
    writes = job.writes
    job.look_and_act()
    assert job.writes == writes + 1


def test_held_numbers_are_looked_at_when_they_may_be_written():
    job = trained()
    while decide(job.facts(), job.now).status != job.status:
        job.pass_time(1)
    job.progress = replace(job.progress, document=replace(job.progress.document, step=500))
    decision = decide(job.facts(), job.now)
    assert decision.status == job.status
    assert decision.look_again_seconds <= 11.0
    later = job.now + decision.look_again_seconds
    assert decide(job.facts(), later).status.progress.step == 500


@pytest.mark.parametrize(
    ("shape", "at_most"),
    [("trains", 60), ("hangs", 60), ("waits", 15), ("finished", 300)],
)
def test_it_looks_again_before_a_bound_is_over_and_not_all_the_time(shape, at_most):
    job = SimulatedJob()
    job.has_room = shape != "waits"
    job.pass_time(30)
    if shape == "finished":
        for replica in list(job.pods):
            job.crash(replica, 0)
        job.pass_time(30)
    assert 1.0 <= decide(job.facts(), job.now).look_again_seconds <= at_most


def test_only_looking_when_told_to_still_finds_the_hang_in_time():
    job = trained()
    job.is_hung = True
    hung_at, looks = job.now, 0
    while job.status.phase != "Hung":
        wait = decide(job.facts(), job.now).look_again_seconds
        job.now += wait
        job._scrape()
        job.look_and_act()
        looks += 1
        assert job.now - hung_at < 70
    assert looks < 12


def test_a_node_0_that_goes_on_not_answering_is_looked_at_after_each_question():
    """Only the time of the question moves then, which marks no run: a hang of 30 s was told after 93 s."""
    job = trained()
    job.is_hung = True
    job.pass_time(45)
    asked = {"asked_at": job.now, "error": "did not answer within 2 s"}
    job.progress = replace(job.progress, **asked, unanswered_since=job.now - 40, heard_at=job.now - 45, answered_at=job.now - 45)
    job.now += 30  # beyond the bound since it was heard; the question that tells comes when nothing else does
    job.look_and_act()
    assert job.status.phase == "Running"
    assert decide(job.facts(), job.now).look_again_seconds <= 15.0


def test_a_new_operator_keeps_what_was_said_of_a_filling_volume_and_does_not_say_it_again():
    full = a_look(a_document(volume_free_bytes=1 << 30))
    told = decide(a_run(progress=full), NOW)
    assert [event.reason for event in told.events].count(EventReason.VOLUME_FILLING) == 1
    new = decide(a_run(progress=ProgressLook(), status=told.status), NOW + 30)
    assert {c.type: c.reason for c in new.status.conditions}[ConditionType.STORAGE_HEALTHY] == "VolumeFilling"
    assert new.status.claims == told.status.claims
    again = decide(a_run(progress=full, status=new.status), NOW + 40)
    assert not [event for event in (*new.events, *again.events) if event.reason is EventReason.VOLUME_FILLING]
