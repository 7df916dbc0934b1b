"""Budgets and deadlines end a run by a pause of ours; a resume by the user begins a new life; Kueue's jobs are only reported."""

from dataclasses import replace

import pytest
from simulated_job import SimulatedJob

from ddp_operator.decide import announce
from ddp_operator.decide.decide import decide
from ddp_operator.decide.decision import ResumeJob, SuspendJob


def crashes_too_often(job):
    for _ in range(3):
        job.crash("worker-0", 160)
        job.pass_time(30)


def is_preempted_too_often(job):
    for _ in range(3):
        job.evict("worker-0")
        job.pass_time(30)


def fails_without_a_newer_step(job):
    for _ in range(3):
        job.crash("worker-0", 160)
        job.pass_time(7)


def never_gathers(job):
    job.pass_time(120)


def trains_too_long(job):
    job.pass_time(120)


STOPS = [
    (crashes_too_often, {"max_restarts": 2}, True, "RestartBudgetUsedUp"),
    (is_preempted_too_often, {"max_preemptions": 2}, True, "RestartBudgetUsedUp"),
    (fails_without_a_newer_step, {"no_progress_restarts": 3}, True, "NoProgress"),
    (never_gathers, {"pending_deadline": "90s"}, False, "PendingDeadlineExceeded"),
    (trains_too_long, {"active_deadline": "2m"}, True, "DeadlineExceeded"),
]
IDS = [row[0].__name__ for row in STOPS]


def played(story, policy, has_room, **options):
    job = SimulatedJob(policy=policy, **options)
    job.has_room = has_room
    job.pass_time(20)
    story(job)
    return job


@pytest.mark.parametrize(("story", "policy", "has_room", "cause"), STOPS, ids=IDS)
def test_a_run_is_stopped_once_and_says_why(story, policy, has_room, cause):
    job = played(story, policy, has_room)
    job.pass_time(20)
    assert (job.status.phase, job.status.reason, job.status.stopped_by_us) == ("Failed", cause, cause)
    assert job.job.suspend
    assert job.pods == {}
    assert (len(job.done(SuspendJob)), job.done(ResumeJob)) == (1, [])
    assert job.status.stopped_generation == job.job.generation == 2
    assert job.ledger()[-1][:2] == (cause, "Stop")
    assert job.told().count("Stopped") == 1
    assert job.told().count("Failed") == 1
    writes = job.writes
    job.pass_time(100)
    assert job.writes == writes


def test_who_tells_no_steps_is_not_said_to_make_none():
    """A foreign image, or telemetry behind a NetworkPolicy: the durable step is not known, and not 0."""
    job = SimulatedJob(is_foreign=True, policy={"no_progress_restarts": 3})
    job.pass_time(20)
    for _ in range(5):
        job.crash("worker-0", 160)
        job.pass_time(200)
    assert job.status.restarts.failures == 5
    assert (job.status.phase, job.actions) == ("Running", [])


def test_a_run_that_was_heard_and_makes_no_first_checkpoint_is_stopped():
    job = SimulatedJob(policy={"no_progress_restarts": 3})
    job.pass_time(10)
    for _ in range(3):
        job.crash("worker-0", 160)
        job.pass_time(11)
    assert job.status.reason == "NoProgress"
    assert job.status.checkpoint is None


def test_a_pause_that_is_refused_is_not_called_done():
    job = SimulatedJob(policy={"active_deadline": "60s"})
    job.only_write_until("stopped_by_us")
    decision = decide(job.facts(), job.now)
    assert decision.status.message.startswith("the operator is stopping it, and its pods may still train: it was active for longer")
    first, again = (announce.refused(decision.status, action, "admission webhook says no") for action in decision.actions * 2)
    assert first == again
    assert (first.reason, first.is_warning, bool(first.fact)) == ("Stopped", True, True)
    assert "SuspendJob of demo is refused, and is tried again: admission webhook says no" in first.message
    job.pass_time(30)
    assert job.job.suspend
    assert job.status.message.startswith("stopped by the operator: it was active for longer")


@pytest.mark.parametrize(("story", "policy", "has_room", "cause"), STOPS, ids=IDS)
def test_one_less_stops_nothing(story, policy, has_room, cause):
    more = {key: value + 1 if isinstance(value, int) else "1h" for key, value in policy.items()}
    job = played(story, more, has_room)
    assert job.status.phase != "Failed"
    assert job.actions == []


@pytest.mark.parametrize(("story", "policy", "has_room", "cause"), STOPS, ids=IDS)
def test_a_resume_by_the_user_begins_a_new_life(story, policy, has_room, cause):
    job = played(story, policy, has_room)
    job.pass_time(40)
    job.has_room = True
    job.user_changes(suspend=False)
    job.pass_time(20)
    assert job.status.phase == "Running"
    assert (job.status.stopped_by_us, job.status.restarts.failures, job.status.restarts.preemptions) == (None, 0, 0)
    assert cause in [entry.cause for entry in job.status.ledger]


@pytest.mark.parametrize(("story", "policy", "has_room", "cause"), STOPS, ids=IDS)
@pytest.mark.parametrize("options", [{"queue": "team-a"}, {}], ids=["kueue", "report"])
def test_where_it_may_not_be_stopped_it_is_reported_once(story, policy, has_room, cause, options):
    only_report = {} if options else {"on_budget": "Report", "on_deadline": "Report"}
    job = played(story, {**policy, **only_report}, has_room, **options)
    assert job.status.overdue == cause
    job.pass_time(20)
    assert job.done(SuspendJob) == []
    assert job.status.phase != "Failed"
    told = [event.message for _, event in job.events if event.reason.value == "Stopped"]
    assert len(told) == 1
    assert ("Workload" in told[0]) == bool(options)


@pytest.mark.parametrize("seconds_away", [0, 5])
def test_a_stop_that_was_only_written_is_carried_out_by_a_successor(seconds_away):
    job = SimulatedJob(policy={"active_deadline": "60s"})
    job.only_write_until("stopped_by_us")
    assert not job.job.suspend
    job.pass_time(seconds_away, operator=False)
    job.pass_time(5)
    assert job.job.suspend
    assert job.status.phase == "Failed"
    assert len(job.status.ledger) == 1


@pytest.mark.parametrize("seconds_away", [0, 60])
def test_a_change_before_the_stop_arrives_does_not_undo_it(seconds_away):
    job = SimulatedJob(policy={"active_deadline": "60s"})
    job.only_write_until("stopped_by_us")
    job.user_changes(replicas={"Master": 1, "Worker": 1})  # an autoscaler
    job.pass_time(seconds_away, operator=False)
    job.pass_time(5)
    assert job.job.suspend
    assert [row[1] for row in job.ledger()] == ["Stop"]
    assert job.status.stopped_by_us == job.status.reason == "DeadlineExceeded"
    assert job.status.stopped_generation == job.job.generation
    job.pass_time(40)
    job.user_changes(suspend=False)
    job.pass_time(5)
    assert job.status.stopped_by_us is None


def test_two_changes_before_the_stop_arrives_do_not_undo_it_where_the_field_is_ours():
    job = SimulatedJob(policy={"active_deadline": "60s"})
    job.job = replace(job.job, suspend_manager="ddp-operator")  # from a restart before
    job.only_write_until("stopped_by_us")
    for workers in (1, 2):
        job.user_changes(replicas={"Master": 1, "Worker": workers})
    job.pass_time(5)
    assert job.job.suspend


def fought(job, seconds):
    """Something holds the job to `suspend: false`."""
    for _ in range(seconds):
        job.pass_time(1)
        if job.job.suspend:
            job.pass_time(3)
            job.user_changes(suspend=False)


def crashes_while_fought(job):
    fought(job, 20)
    for _ in range(3):
        job.crash("worker-0", 160)
        fought(job, 30)


def test_a_controller_that_resumes_at_once_gets_no_fresh_budgets_and_is_not_fought_for_ever():
    job = SimulatedJob(policy={"max_restarts": 2})
    crashes_while_fought(job)
    fought(job, 100)
    assert len(job.done(SuspendJob)) == 2
    assert (job.status.restarts.failures, job.status.overdue, job.status.stopped_by_us) == (3, "RestartBudgetUsedUp", None)
    assert job.status.phase == "Running"
    told = [event.message for _, event in job.events if event.reason.value == "Stopped"]
    assert len(told) == 3
    assert "at once" in told[-1]
    job.crash("worker-0", 160)
    fought(job, 60)
    assert len(job.done(SuspendJob)) == 2


def test_a_controller_that_resumes_at_once_does_not_move_the_pending_deadline():
    job = SimulatedJob(policy={"pending_deadline": "90s"})
    job.has_room = False
    fought(job, 120)
    assert len(job.done(SuspendJob)) == 2
    assert job.status.overdue == "PendingDeadlineExceeded"


def test_a_resume_in_good_time_after_a_hasty_one_is_a_new_life():
    job = SimulatedJob(policy={"active_deadline": "60s"})
    for _ in range(100):
        job.pass_time(1)
        if job.job.suspend:
            break
    job.user_changes(suspend=False)
    job.pass_time(5)
    assert job.job.suspend
    assert "it was resumed within 30s of a stop, which renews no budget: it was active for longer" in job.status.message
    assert [event.message for _, event in job.events if event.reason.value == "Stopped"][-1].startswith("DeadlineExceeded: it was resumed")
    job.pass_time(60)
    job.user_changes(suspend=False)
    job.pass_time(30)
    assert (job.status.overdue, job.status.stopped_by_us, job.status.phase) == (None, None, "Running")


def test_a_pause_stops_the_clock_of_the_active_deadline():
    job = SimulatedJob(policy={"active_deadline": "100s"})
    job.pass_time(50)
    job.user_changes(suspend=True)
    job.pass_time(300)
    job.user_changes(suspend=False)
    job.pass_time(40)
    assert job.status.phase == "Running"
    job.pass_time(40)
    assert (job.status.phase, job.status.reason) == ("Failed", "DeadlineExceeded")


def test_a_run_that_was_never_placed_keeps_the_words_of_the_scheduler():
    """Its pods go with the stop, and their conditions with them."""
    job = SimulatedJob(policy={"pending_deadline": "90s"})
    job.has_room = False
    job.pass_time(20)
    words = "0/3 nodes are available: 2 Insufficient cpu"
    job.pods = {
        name: replace(pod, unscheduled_reason="Unschedulable", unscheduled_message=words + ". preemption: none.")
        for name, pod in job.pods.items()
    }
    job.pass_time(120)
    assert (job.status.reason, job.pods) == ("PendingDeadlineExceeded", {})
    assert words in job.status.message
    assert words in job.status.ledger[-1].message


def test_a_pause_begins_the_pending_deadline_anew():
    job = SimulatedJob(policy={"pending_deadline": "100s"})
    job.has_room = False
    job.pass_time(80)
    job.user_changes(suspend=True)
    job.pass_time(200)
    job.user_changes(suspend=False)
    job.pass_time(80)
    assert job.status.phase == "Pending"
    job.pass_time(30)
    assert job.status.reason == "PendingDeadlineExceeded"


def test_the_active_deadline_holds_on_a_hung_job_that_may_not_be_restarted():
    job = SimulatedJob(policy={"active_deadline": "5m", "on_hung": "Report"})
    job.pass_time(30)
    job.is_hung = True
    job.pass_time(200)
    assert job.status.phase == "Hung"
    job.pass_time(100)
    assert (job.status.phase, job.status.reason) == ("Failed", "DeadlineExceeded")


def test_a_pause_of_the_user_is_not_stopped_or_resumed():
    job = SimulatedJob(policy={"active_deadline": "60s"})
    job.pass_time(30)
    job.user_changes(suspend=True)
    job.pass_time(300)
    assert job.status.phase == "Suspended"
    assert job.actions == []
