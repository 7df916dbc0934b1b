"""Whatever users, faults and the death of operators do to each other, in any order: nobody's wish is undone and nothing is counted twice.

Beside the operator stands a second one that has fallen behind: it decides on old facts, and its writes arrive late or twice.
"""

from dataclasses import replace

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated_job import USER, SimulatedJob

from ddp_operator.api.trainingrun import LEDGER_ENTRIES
from ddp_operator.decide.decide import decide
from ddp_operator.decide.decision import ResumeJob, SuspendJob

REPLICAS = ["master-0", "worker-0", "worker-1"]
replicas = st.sampled_from(REPLICAS)


class AnyOrder(RuleBasedStateMachine):
    """One job that is given a hard life."""

    @initialize(queue=st.sampled_from(["", "", "team-a"]), budget=st.sampled_from([2, 100]), gives_deadline=st.booleans())
    def begin(self, queue, budget, gives_deadline):
        policy = {"max_restarts": budget, "max_preemptions": 2 * budget, "active_deadline": "10m" if gives_deadline else None}
        self.job = SimulatedJob(queue=queue, policy=policy)
        self.job.pass_time(25)
        self.old = []
        self.wants_pause = False
        self.before = self.job.status
        self.life = (None, 0)

    # --- time and operators

    @rule(seconds=st.integers(1, 90))
    def time_passes(self, seconds):
        self.job.pass_time(seconds, every_seconds=3)

    @rule(seconds=st.integers(1, 40))
    def the_operator_is_away(self, seconds):
        self.job.pass_time(seconds, operator=False)

    @rule()
    def the_operator_looks_twice(self):
        self.job.look_and_act()
        self.job.look_and_act()

    @rule(actions=st.integers(0, 1))
    def the_operator_dies_in_the_middle(self, actions):
        facts = self.job.facts()
        self.job.carry_out(facts, decide(facts, self.job.now), dies_after_write=actions == 0, dies_after_actions=actions)

    @rule()
    def another_operator_has_seen_this(self):
        facts = self.job.facts()
        self.old = [*self.old[-3:], (facts, decide(facts, self.job.now))]

    @precondition(lambda self: self.old)
    @rule(which=st.integers(0, 3))
    def it_acts_late(self, which):
        """Its write conflicts if anything was written since, else it is as good as ours; its actions carry a uid and a generation."""
        facts, decision = self.old[which % len(self.old)]
        self.job.carry_out(facts, decision)

    @precondition(lambda self: self.old)
    @rule(which=st.integers(0, 3))
    def it_decides_on_an_old_job(self, which):
        """The job is read from a cache that lags; the run itself is fresh."""
        facts, _ = self.old[which % len(self.old)]
        fresh = self.job.facts()
        mixed = replace(fresh, job=facts.job)
        self.job.carry_out(mixed, decide(mixed, self.job.now))

    # --- faults

    @rule(replica=replicas, code=st.sampled_from([160, 162, 137, 143]))
    def a_container_ends(self, replica, code):
        self.job.crash(replica, code)

    @rule(replica=replicas)
    def a_pod_is_evicted(self, replica):
        self.job.evict(replica)

    @rule(replica=replicas)
    def a_pod_vanishes(self, replica):
        self.job.pods.pop(replica, None)

    @rule(replica=replicas)
    def a_node_is_lost(self, replica):
        self.job.lose_node(replica)

    @rule()
    def training_hangs(self):
        self.job.is_hung = True

    @rule(there=st.booleans())
    def the_training_operator_comes_and_goes(self, there):
        self.job.training_operator_is_there = there

    @rule(has_room=st.booleans())
    def room_comes_and_goes(self, has_room):
        self.job.has_room = has_room

    # --- users

    @rule()
    def the_user_pauses(self):
        if not self.job.job.suspend:
            self.job.user_changes(suspend=True)
            self.wants_pause = True

    @rule()
    def the_user_resumes(self):
        if self.job.job.suspend:
            self.job.user_changes(suspend=False)
        self.wants_pause = False

    @rule()
    def the_user_edits(self):
        self.job.user_changes(claims=(f"claim-{self.job.job.generation}",))

    @rule()
    def the_chart_is_upgraded(self):
        self.job.new_job()
        self.wants_pause = False

    # --- what always holds

    @invariant()
    def a_pause_of_the_user_is_never_undone(self):
        if self.wants_pause and self.job.job.suspend_manager == USER:
            assert self.job.job.suspend
        if self.wants_pause:
            assert self.job.job.suspend or self.job.job.suspend_manager != USER

    @invariant()
    def nothing_is_paused_by_us_without_a_word_in_the_status(self):
        job, status = self.job.job, self.job.status
        if job.suspend and job.suspend_manager == "ddp-operator" and status.job_uid == job.uid:
            assert status.intent is not None or status.stopped_by_us is not None

    @invariant()
    def kueue_s_field_is_never_touched(self):
        if self.job.queue:
            assert self.job.done(SuspendJob) == self.job.done(ResumeJob) == []

    @invariant()
    def one_incident_is_restarted_once(self):
        """Each restart that was begun has a ledger entry of its own; a repeated request is the same one, by uid and generation."""
        restarts = {(action.uid, action.generation) for action in self.job.done(SuspendJob) if "started again" in action.why}
        assert len(restarts) <= sum(entry.action == "GangRestart" for entry in self.job.status.ledger)

    @invariant()
    def budgets_never_go_back_within_a_life(self):
        status = self.job.status
        spent, began = status.restarts, [entry for entry in status.ledger if entry.action == "Stop"]
        life = (status.job_uid, len(began) if status.stopped_by_us is None else len(began) - 1)
        if life == self.life[0]:
            assert spent.failures + spent.preemptions >= self.life[1]
        self.life = (life, spent.failures + spent.preemptions)

    @invariant()
    def the_ledger_is_whole(self):
        ledger = self.job.status.ledger
        assert len(ledger) <= LEDGER_ENTRIES
        assert [entry.at for entry in ledger] == sorted(entry.at for entry in ledger)
        old = self.before.ledger
        if len(ledger) < LEDGER_ENTRIES:
            assert [entry.at for entry in ledger[: len(old)]] == [entry.at for entry in old]
        self.before = self.job.status

    @invariant()
    def a_decision_is_a_fixed_point(self):
        facts = self.job.facts()
        for _ in range(4):
            decision = decide(facts, self.job.now)
            if decision.status == facts.status:
                break
            facts = replace(facts, status=decision.status)
        assert decision.status == facts.status
        assert decision.events == ()

    def teardown(self):
        """When all is well again, it trains, is paused by the user, or is stopped for a reason that is written down."""
        if not hasattr(self, "job"):
            return
        job = self.job
        job.training_operator_is_there = job.has_room = True
        job.pass_time(260, every_seconds=4)
        phase = job.status.phase
        if job.job.suspend and job.job.suspend_manager == USER:
            assert phase in {"Suspended", "Failed", "Pending"}
        elif phase == "Failed":
            assert job.status.stopped_by_us is not None
        else:
            assert phase == "Running", job.status.message
            assert job.status.intent is None
            assert job.status.incident is None


AnyOrder.TestCase.settings = settings(max_examples=20, stateful_step_count=14, phases=[Phase.explicit, Phase.reuse, Phase.generate])
TestAnyOrder = AnyOrder.TestCase
