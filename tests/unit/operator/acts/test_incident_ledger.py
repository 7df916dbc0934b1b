"""What is lost at about the same time is one incident with one cause, counted once to the right budget."""

import pytest
from simulated_job import LEAVE_SECONDS, START_SECONDS, SimulatedJob

from ddp_operator.decide.decide import decide
from ddp_operator.decide.incidents import GAP_SECONDS

RECOVERY_SECONDS = 20


def trained(seconds=30, **options):
    job = SimulatedJob(**options)
    job.pass_time(seconds)
    assert job.status.phase == "Running"
    return job


def crash_all_with_echoes(job):
    job.crash("worker-0", 160)
    job.crash("master-0", 162)
    job.crash("worker-1", 162)


def echoes_first(job):
    job.crash("master-0", 162)
    job.pass_time(1)
    job.crash("worker-1", 162)
    job.pass_time(1)
    job.crash("worker-0", 137)


def evicted_then_echo(job):
    job.crash("master-0", 162)
    job.pass_time(1)
    job.evict("worker-0")


def vanishes_unseen(job):
    del job.pods["worker-1"]


def restarts_in_place(job):
    job.crash_in_place("worker-0", 139)


def fails_twice_apart(job):
    job.crash("worker-0", 160)
    job.pass_time(40)
    job.crash("worker-0", 160)


def killed_and_a_plain_peer_notices(job):
    job.crash("worker-0", 137)
    job.pass_time(2)
    job.crash("master-0", 1)


def vanishes_and_a_plain_peer_notices(job):
    vanishes_unseen(job)
    job.pass_time(2)
    job.crash("master-0", 1)


def aborts_after_a_plain_error(job):
    job.crash("worker-0", 134)
    job.pass_time(2)
    job.crash("master-0", 1)


STORIES = [
    (crash_all_with_echoes, [("Crash", "worker-0")], (1, 0)),
    (echoes_first, [("Crash", "worker-0")], (1, 0)),
    (evicted_then_echo, [("Evicted", "worker-0")], (0, 1)),
    (vanishes_unseen, [("PodDeleted", "worker-1")], (0, 1)),
    (restarts_in_place, [("Crash", "worker-0")], (1, 0)),
    (fails_twice_apart, [("Crash", "worker-0"), ("Crash", "worker-0")], (2, 0)),
]


@pytest.mark.parametrize(("story", "causes", "counts"), STORIES, ids=[row[0].__name__ for row in STORIES])
def test_an_incident_has_one_root_cause_and_is_counted_once(story, causes, counts):
    job = trained()
    story(job)
    job.pass_time(RECOVERY_SECONDS)
    assert [(entry.cause.value, entry.pod.removeprefix("demo-")) for entry in job.status.ledger] == causes
    assert (job.status.restarts.failures, job.status.restarts.preemptions) == counts
    assert job.status.phase == "Running"
    assert all(entry.recovered_at for entry in job.status.ledger)
    assert job.told().count("Restarted") == len(causes)


PLAIN_PROGRAMS = [
    (killed_and_a_plain_peer_notices, [("Crash", "worker-0")], (1, 0)),
    (vanishes_and_a_plain_peer_notices, [("PodDeleted", "worker-1")], (0, 1)),
    (aborts_after_a_plain_error, [("UserError", "master-0")], (1, 0)),
]


@pytest.mark.parametrize(("story", "causes", "counts"), PLAIN_PROGRAMS, ids=[row[0].__name__ for row in PLAIN_PROGRAMS])
def test_a_plain_program_that_ends_with_1_because_a_peer_was_taken_is_not_the_cause(story, causes, counts):
    job = trained(is_foreign=True)
    story(job)
    job.pass_time(1)
    assert [(entry.cause.value, entry.pod.removeprefix("demo-")) for entry in job.status.ledger] == causes
    assert (job.status.restarts.failures, job.status.restarts.preemptions) == counts


def test_recovery_names_the_steps_that_were_done_again():
    job = trained(37)
    reached, durable = job.step, job.durable_step
    assert reached > durable > 0
    job.crash("master-0", 160)
    job.pass_time(RECOVERY_SECONDS)
    entry = job.status.ledger[-1]
    assert (entry.step, entry.durable_step, entry.lost_steps) == (reached, durable, reached - durable)


def test_an_incident_stays_open_until_a_step_was_made():
    job = trained()
    job.crash("worker-0", 160)
    job.pass_time(LEAVE_SECONDS + START_SECONDS)
    assert job.status.phase == "Restarting"
    assert job.status.ledger[-1].recovered_at is None
    assert job.status.incident is not None
    job.pass_time(RECOVERY_SECONDS)
    assert job.status.incident is None


def test_waiting_for_room_costs_nothing_however_often_survivors_come_back():
    job = trained(policy={"max_restarts": 3})
    job.has_room = False
    job.evict("worker-0")
    for _ in range(10):
        job.pass_time(150)
        job.crash("master-0", 162)
        job.crash("worker-1", 162)
    job.has_room = True
    job.pass_time(RECOVERY_SECONDS)
    assert job.status.phase == "Running"
    assert job.ledger() == [("Evicted", "None", True)]
    assert (job.status.restarts.failures, job.status.restarts.preemptions) == (0, 1)


def test_a_crash_loop_is_many_incidents_although_no_step_is_made_in_between():
    job = trained()
    for _ in range(3):
        job.crash("worker-0", 160)
        job.pass_time(LEAVE_SECONDS + START_SECONDS + 1)
        assert job.status.phase == "Restarting"
    assert job.status.restarts.failures == 3


def test_all_pods_that_leave_again_and_again_for_lost_peers_are_counted():
    job = trained()
    for _ in range(4):
        for replica in ("master-0", "worker-0", "worker-1"):
            job.crash(replica, 162)
        job.pass_time(LEAVE_SECONDS + START_SECONDS + 4)
    assert job.status.restarts.failures == 4


def test_a_foreign_job_has_recovered_when_all_pods_have_run_for_a_while():
    job = SimulatedJob(is_foreign=True)
    job.pass_time(30)
    job.crash("worker-0", 139)
    job.pass_time(60)
    assert job.ledger() == [("Crash", "None", False)]
    job.pass_time(100)
    assert job.ledger() == [("Crash", "None", True)]
    assert job.status.ledger[0].lost_steps is None


def test_a_foreign_job_that_lost_a_pod_is_restarting_because_of_that():
    job = SimulatedJob(is_foreign=True)
    job.pass_time(30)
    del job.pods["worker-1"]
    job.has_room = False
    job.pass_time(200)
    assert (job.status.phase, job.status.reason) == ("Restarting", "PodDeleted")
    job.has_room = True
    job.pass_time(10)
    assert job.status.phase == "Running"


def test_a_foreign_job_that_never_ran_or_was_resumed_is_pending():
    job = SimulatedJob(is_foreign=True, has_room=False)
    job.pass_time(30)
    job.delete_pod("worker-1")
    job.pass_time(5)
    assert job.status.phase == "Pending"
    job.has_room = True
    job.pass_time(30)
    job.user_changes(suspend=True)
    job.pass_time(10)
    job.user_changes(suspend=False)
    job.pass_time(2)
    assert job.status.phase == "Pending"


def test_a_pause_by_the_user_is_no_incident():
    job = trained()
    job.user_changes(suspend=True)
    job.pass_time(20)
    assert (job.status.phase, job.pods) == ("Suspended", {})
    job.user_changes(suspend=False)
    job.pass_time(RECOVERY_SECONDS)
    assert job.status.phase == "Running"
    assert job.status.ledger == []


def test_a_pause_that_nobody_saw_is_no_incident():
    job = trained()
    job.user_changes(suspend=True)
    job.pass_time(10, operator=False)
    job.user_changes(suspend=False)
    job.pass_time(5, operator=False)
    job.pass_time(RECOVERY_SECONDS)
    assert job.status.ledger == []
    assert job.status.phase == "Running"
    job.crash("worker-0", 160)
    job.pass_time(RECOVERY_SECONDS)
    assert job.ledger() == [("Crash", "None", True)]


def test_scaling_down_is_no_incident():
    job = trained()
    job.user_changes(replicas={"Master": 1, "Worker": 1})
    job.delete_pod("worker-1")
    job.pass_time(RECOVERY_SECONDS)
    del job.pods["worker-0"]
    job.user_changes(replicas={"Master": 1, "Worker": 0})
    job.pass_time(RECOVERY_SECONDS)
    assert [entry.pod for entry in job.status.ledger if entry.pod == "demo-worker-0"] == []


def test_a_new_job_begins_a_new_life_and_keeps_the_ledger():
    job = trained()
    job.crash("worker-0", 160)
    job.pass_time(RECOVERY_SECONDS)
    job.new_job()
    job.pass_time(2)
    assert job.status.phase == "Pending"
    assert (job.status.restarts.failures, job.status.timing.running_at) == (0, None)
    job.pass_time(RECOVERY_SECONDS)
    assert job.ledger() == [("Crash", "None", True)]
    assert job.status.phase == "Running"


def counted(job):
    restarts = job.status.restarts
    return restarts.total, restarts.in_process, restarts.failures + restarts.preemptions


def test_what_the_trainer_counted_before_this_life_is_not_counted_to_it():
    job = trained(restarts={"preemption": 7})
    assert counted(job) == (0, 0, 0)
    job.restarts = {"preemption": 7, "crash": 2}
    job.pass_time(RECOVERY_SECONDS)
    assert counted(job) == (2, 2, 0)
    job.evict("worker-0")
    job.restarts = {"preemption": 8, "crash": 2}
    job.pass_time(RECOVERY_SECONDS)
    assert counted(job) == (3, 2, 1)
    job.new_job()
    job.pass_time(2)
    assert counted(job) == (0, 0, 0)
    job.restarts = {"preemption": 9, "crash": 2}  # the end of the job before, which only its successor could count
    job.pass_time(RECOVERY_SECONDS)
    assert counted(job) == (0, 0, 0)
    job.restarts = {"preemption": 9, "crash": 3}
    job.pass_time(RECOVERY_SECONDS)
    assert counted(job) == (1, 1, 0)


def test_an_upgraded_operator_keeps_the_counts_of_the_one_before():
    """Its predecessor knew no former lives, and had counted all that the trainer did."""
    job = trained(restarts={"crash": 3})
    old = job.status.restarts.model_copy(update={"total": 3, "in_process": 3, "in_former_lives": None})
    job.status = job.status.model_copy(update={"restarts": old})
    job.restarts = {"crash": 3}
    job.pass_time(RECOVERY_SECONDS)
    assert counted(job) == (3, 3, 0)
    job.restarts = {"crash": 4}
    job.pass_time(RECOVERY_SECONDS)
    assert counted(job) == (4, 4, 0)


def test_the_ledger_keeps_the_newest_thirty_two():
    job = trained(policy={"no_progress_restarts": 0, "max_restarts": 1000})
    for i in range(40):
        job.crash(f"worker-{i % 2}", 160)
        job.pass_time(12)
    assert len(job.status.ledger) == 32
    assert job.status.restarts.failures == 40
    assert [entry.at for entry in job.status.ledger] == sorted(entry.at for entry in job.status.ledger)


def test_an_older_view_of_a_pod_counts_nothing():
    job = trained()
    old = dict(job.pods)
    job.crash("worker-0", 160)
    job.pass_time(RECOVERY_SECONDS)
    new, job.pods = job.pods, old
    job.look_and_act()
    job.pods = new
    job.pass_time(3)
    assert job.ledger() == [("Crash", "None", True)]


def test_a_permanent_failure_stands_in_the_ledger_and_ends_the_run():
    job = trained()
    job.crash("worker-0", 2, '{"cause": "config_error", "exit": 2, "message": "no such model"}')
    job.pass_time(3)
    assert job.ledger() == [("ConfigError", "None", False)]
    assert (job.status.phase, job.status.reason) == ("Failed", "ConfigError")
    assert job.status.restarts.failures == 1


def test_success_is_no_loss_although_workers_are_deleted_later():
    job = trained()
    job.crash("master-0", 0)
    job.pass_time(2)
    job.delete_pod("worker-0")
    job.pass_time(10)
    assert job.status.phase == "Succeeded"
    assert job.status.ledger == []


def test_more_replicas_than_are_remembered_are_counted_once_or_not_at_all():
    job = SimulatedJob(workers=300)
    job.pass_time(20)
    job.training_operator_is_there = False
    for replica in list(job.pods):
        job.crash(replica, 160)
    job.pass_time(5)
    assert len(job.status.incarnations) == 256
    assert job.status.restarts.failures == 1


def test_an_older_view_of_the_job_concludes_nothing():
    job = trained()
    old = job.job
    job.user_changes(suspend=True)
    job.pass_time(20)
    job.job, new = old, job.job
    decision = decide(job.facts(), job.now)
    assert (decision.status, decision.actions, decision.events) == (job.status, (), ())
    job.job = new
    assert job.status.phase == "Suspended"


def gathered_before_the_clock_was_set_back(**options):
    """A pod was lost and replaced on a clock that was an hour ahead; now it is right."""
    job = trained(**options)
    job.crash("worker-0", 160)
    job.pass_time(1)
    while job.status.incident.gathered_at is None:
        job.pass_time(1)
    job.is_hung = True
    job.now -= 3600.0
    job._formed_at -= 3600.0
    return job


@pytest.mark.parametrize("options", [{}, {"is_foreign": True}], ids=["ours", "foreign"])
def test_an_incident_closes_although_the_clock_was_set_back(options):
    job = gathered_before_the_clock_was_set_back(**options)
    job.pass_time(3)
    assert job.status.incident is not None, "what was heard on the clock of before is no step after the loss"
    job.is_hung = False
    job.pass_time(int(GAP_SECONDS) + 5)
    assert job.status.incident is None
    assert job.status.ledger[0].recovered_at is not None


def test_a_loss_after_the_clock_was_set_back_is_not_of_the_incident_before():
    job = gathered_before_the_clock_was_set_back()
    job.pass_time(3)
    job.crash("worker-1", 160)
    job.pass_time(3)
    assert job.status.restarts.failures == 2
