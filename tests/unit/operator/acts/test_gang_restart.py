"""A hang, or a gang that is half dead, is restarted in steps that a successor finishes and nobody else's wish is lost to."""

from dataclasses import replace
from itertools import pairwise

import pytest
from simulated_job import SimulatedJob

from ddp_operator.decide.decide import decide
from ddp_operator.decide.decision import DeletePod, ResumeJob, SuspendJob
from ddp_operator.decide.facts import ProgressLook

HUNG_SECONDS = 65
RECOVERY_SECONDS = 30


def hung(**options):
    job = SimulatedJob(**options)
    job.pass_time(30)
    job.is_hung = True
    return job


def test_a_hang_pauses_and_resumes_the_job_once():
    job = hung()
    job.pass_time(HUNG_SECONDS)
    assert job.status.ledger[-1].action == "GangRestart"
    job.pass_time(RECOVERY_SECONDS)
    assert (len(job.done(SuspendJob)), len(job.done(ResumeJob))) == (1, 1)
    assert job.status.phase == "Running"
    assert job.status.intent is None
    assert job.ledger() == [("Hang", "GangRestart", True)]
    restarts = job.status.restarts
    assert (restarts.by_operator, restarts.failures, restarts.preemptions) == (1, 1, 0)
    assert job.job.generation == 3
    job.pass_time(300)
    assert len(job.done(SuspendJob)) == 1


def test_the_intent_is_written_before_the_job_is_paused():
    job = hung()
    seen = []
    for _ in range(HUNG_SECONDS + RECOVERY_SECONDS):
        job.pass_time(1)
        seen.append((job.status.phase.value, job.status.intent is not None, job.job.suspend))
    assert [row for row in seen if row[2] and not row[1]] == []
    phases = [phase for i, (phase, *_) in enumerate(seen) if i == 0 or seen[i - 1][0] != phase]
    assert phases == ["Running", "Hung", "Restarting", "Running"]


@pytest.mark.parametrize("killed_at", range(12))
def test_a_successor_finishes_what_was_begun(killed_at):
    """The operator dies between its status and its action at one second, and is away for ten."""
    job = hung()
    job.pass_time(HUNG_SECONDS - 5 + killed_at, operator=True)
    job.pass_time(1, operator=False)
    facts = job.facts()
    job.carry_out(facts, decide(facts, job.now), dies_after_write=True)
    job.pass_time(10, operator=False)
    job.pass_time(HUNG_SECONDS + RECOVERY_SECONDS)
    assert job.status.phase == "Running"
    assert not job.job.suspend
    assert job.status.restarts.by_operator == 1
    assert job.ledger() == [("Hang", "GangRestart", True)]


def test_a_pause_of_the_user_during_a_restart_is_not_undone():
    job = hung()
    job.pass_time_until_paused()
    job.user_changes(suspend=False)
    job.user_changes(suspend=True)
    job.pass_time(RECOVERY_SECONDS)
    assert job.job.suspend
    assert (job.status.intent, job.status.phase) == (None, "Suspended")
    assert job.done(ResumeJob) == []


def test_a_pause_of_the_user_just_before_ours_is_not_undone():
    job = hung()
    for _ in range(300):
        job.pass_time(1, operator=False)
        facts = job.facts()
        decision = decide(facts, job.now)
        if decision.actions:
            break
        job.carry_out(facts, decision)
    job.carry_out(facts, decision, dies_after_write=True)
    job.user_changes(suspend=True)
    for action in decision.actions:
        job._apply(action)
    job.pass_time(RECOVERY_SECONDS)
    assert job.job.suspend
    assert job.status.intent is None
    assert job.status.phase == "Suspended"


def test_an_edit_while_it_is_paused_by_us_does_not_leave_it_paused():
    job = hung()
    job.pass_time_until_paused()
    job.user_changes(replicas={"Master": 1, "Worker": 1})
    job.pass_time(RECOVERY_SECONDS)
    assert not job.job.suspend
    assert job.status.phase == "Running"


def test_an_edit_after_the_intent_drops_it_and_the_same_hang_is_restarted_and_counted_once():
    job = hung()
    job.pass_time(HUNG_SECONDS - 5)
    job.only_write_until("intent")
    job.user_changes(clean_pod_policy="All")
    job.look_and_act()
    assert job.status.intent is None
    assert job.done(SuspendJob) == []
    assert job.ledger() == [("Hang", "None", False)]
    job.pass_time(RECOVERY_SECONDS)
    assert job.status.phase == "Running"
    assert len(job.done(SuspendJob)) == 1
    assert job.ledger() == [("Hang", "GangRestart", True)]
    assert (job.status.restarts.failures, job.status.restarts.by_operator) == (1, 1)


def test_a_restart_during_which_somebody_edits_the_job_is_not_called_given_up():
    job = hung()
    job.pass_time_until_paused()
    job.user_changes(clean_pod_policy="All")
    job.pass_time(RECOVERY_SECONDS)
    assert job.status.restarts.by_operator == 1
    assert not [event for _, event in job.events if "given up" in event.message]


@pytest.mark.parametrize("on_node_lost", ["FreePods", "Report"])
def test_a_pod_that_cannot_go_holds_the_restart_up_for_minutes_only_and_is_named(on_node_lost):
    """A finalizer, or a deletion that the API server refuses."""
    job = hung(policy={"on_node_lost": on_node_lost})
    job.training_operator_is_there = False
    asked = []
    job.pass_time_until_paused()
    paused_at = job.now
    apply = job._apply

    def refuse(action):
        if not isinstance(action, DeletePod):
            apply(action)
        elif action.pod == "demo-worker-1":
            asked.append(job.now)
        else:
            apply(action)

    job._apply = refuse
    while job.job.suspend:
        assert job.now < paused_at + 20 + 30 + 300 + 10
        job.pass_time(1)
    assert job.now > paused_at + 20 + 30 + 300
    assert "worker-1" in job.pods
    assert len([event for _, event in job.events if "demo-worker-1" in event.message and "did not go" in event.message]) == 1
    assert 4 <= len(asked) <= 6
    assert min(after - before for before, after in pairwise(asked)) >= 60


def test_reporting_only_leaves_a_hung_job_alone():
    job = hung(policy={"on_hung": "Report"})
    job.pass_time(HUNG_SECONDS + RECOVERY_SECONDS)
    assert job.status.phase == "Hung"
    assert job.actions == []
    assert job.told().count("Hung") == 1


def test_a_job_of_kueue_is_restarted_by_deleting_its_pods():
    job = hung(queue="team-a")
    job.pass_time(HUNG_SECONDS)
    job.pass_time(RECOVERY_SECONDS)
    assert job.done(SuspendJob) == job.done(ResumeJob) == []
    assert {action.pod for action in job.done(DeletePod)} == {"demo-master-0", "demo-worker-0", "demo-worker-1"}
    assert {action.grace_seconds for action in job.done(DeletePod)} == {None}
    assert job.job.generation == 1
    assert job.status.phase == "Running"
    assert job.status.restarts.by_operator == 1
    assert job.ledger() == [("Hang", "GangRestart", True)]


def test_pods_that_do_not_end_are_freed_so_that_the_restart_goes_on():
    job = hung()
    job.pass_time_until_paused()
    node = job.pods["worker-0"].node
    job.unheard_nodes.add(node)
    job.pass_time(30 + 20 + RECOVERY_SECONDS)
    assert [action.grace_seconds for action in job.done(DeletePod)][:1] == [0]
    assert job.status.phase == "Running"
    assert not job.job.suspend


def test_pods_that_nobody_tells_to_leave_are_told_by_us():
    job = hung()
    job.pass_time(HUNG_SECONDS - 10)
    job.training_operator_is_there = False
    job.pass_time_until_paused()
    job.pass_time(70)
    assert {action.grace_seconds for action in job.done(DeletePod)} == {None}
    assert not job.job.suspend
    job.training_operator_is_there = True
    job.pass_time(RECOVERY_SECONDS)
    assert job.status.phase == "Running"


def test_a_half_dead_gang_is_restarted():
    job = SimulatedJob()
    job.pass_time(30)
    job.training_operator_is_there = False  # nobody replaces what fails
    job.crash("worker-0", 160)
    job.pass_time(50)
    assert job.done(SuspendJob) == []
    job.pass_time(20)
    assert len(job.done(SuspendJob)) == 1
    job.training_operator_is_there = True
    job.pass_time(RECOVERY_SECONDS)
    assert job.status.phase == "Running"
    assert job.ledger() == [("Crash", "GangRestart", True)]
    assert job.status.restarts.failures == 1


def test_a_half_dead_gang_is_left_alone_by_an_operator_that_has_not_asked_it_yet():
    job = SimulatedJob()
    job.pass_time(30)
    job.training_operator_is_there = False
    job.crash("worker-0", 160)
    job.pass_time(50)
    later = job.now + 30
    asked = replace(job.facts(), progress=replace(job.progress, asked_at=later))
    assert [type(action) for action in decide(asked, later).actions] == [SuspendJob]
    assert decide(replace(job.facts(), progress=ProgressLook()), later).actions == ()


def test_of_a_half_dead_gang_that_does_not_answer_a_new_operator_waits_for_its_own_bound():
    """That a pod has ended long ago tells nothing of the others: node 0 may be heard again with the next question."""
    job = SimulatedJob()
    job.pass_time(30)
    job.training_operator_is_there = False
    job.crash("worker-0", 160)
    job.pass_time(3600, operator=False)
    job.progress = ProgressLook()
    job.look_and_act()
    job.now += 3600.0

    def refused_for(seconds):
        look = ProgressLook(asked_at=job.now, error="connection refused", unanswered_since=job.now - seconds)
        return decide(replace(job.facts(), progress=look), job.now).actions

    assert [len(refused_for(seconds)) for seconds in (0, 59, 61)] == [0, 0, 1]


def test_a_wrong_clock_of_the_operator_restarts_no_foreign_gang_of_which_a_pod_has_just_failed():
    job = SimulatedJob(is_foreign=True, restart_policy="OnFailure")
    job.pass_time(30)
    job.training_operator_is_there = False
    job.crash("worker-0", 1)
    job.now += 7200.0
    job.look_and_act()
    job.pass_time(58)
    assert job.actions == []
    job.pass_time(5)
    assert len(job.done(SuspendJob)) == 1


def test_workers_of_a_foreign_program_may_end_before_their_master():
    job = SimulatedJob(is_foreign=True, restart_policy="OnFailure")
    job.pass_time(30)
    job.crash("worker-0", 0)
    job.pass_time(300)
    assert job.actions == []


def test_hangs_without_progress_in_between_use_up_the_budget_and_stop():
    job = SimulatedJob(policy={"no_progress_restarts": 2})
    job.pass_time(30)
    for _ in range(300):
        job.is_hung = True
        job.pass_time(1)
    assert job.status.phase == "Failed"
    assert job.status.reason == "NoProgress"
    assert job.job.suspend
    assert job.status.restarts.by_operator == 1


class NeverHeard(SimulatedJob):
    """A network policy stands between the operator and node 0."""

    def _train(self):
        """It does, and nobody knows."""

    def _scrape(self):
        since = self.progress.unanswered_since or self.now
        if "master-0" in self.pods:
            self.progress = ProgressLook(asked_at=self.now, unanswered_since=since, error="connection refused")


def test_a_run_that_is_never_heard_comes_to_run_and_is_left_alone():
    job, phases = NeverHeard(), []
    for _ in range(3 * HUNG_SECONDS):
        job.pass_time(1)
        phases += [job.status.phase] if job.status.phase not in phases[-1:] else []
    assert phases == ["Pending", "Starting", "Running"]
    assert "progress is not known" in job.status.message
    assert job.actions == []
    del job.pods["worker-1"]
    job.pass_time(1)
    assert (job.status.phase, job.status.reason) == ("Restarting", "PodDeleted")
