"""When a rank is said to stand still, in simulated time: no clock is read here."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_trainer.config import FaultToleranceSection
from ddp_trainer.resilience.watchdog import LATE_SECONDS, TRUSTED_STEPS, WINDOW_STEPS, Watchdog

POLICY = FaultToleranceSection(
    hang_floor_seconds=10, hang_factor=10, start_limit_seconds=900, evaluate_limit_seconds=300, save_limit_seconds=600
)
LOOK_SECONDS = 0.1
PUBLISH_SECONDS = 0.2


class Node:
    """Ranks in simulated time, and the watchdog that looks at them every 0.1 s. `now` is the watcher's clock, `wall` the ranks'."""

    def __init__(self, ranks=1, policy=POLICY):
        self.watchdog = Watchdog(policy)
        self.now, self.wall = 1000.0, 1.7e9
        self.facts = dict.fromkeys(range(ranks))
        self.published = dict.fromkeys(range(ranks), float("-inf"))
        self.step = 0
        self.stall = None

    def say(self, rank=0, **facts):
        before = self.facts[rank] or {"rank": 4 + rank, "pid": 100 + rank, "attempt": 1, "step": 0, "phase": "starting"}
        self.facts[rank] = {**before, **facts, "updated_at": self.wall}
        self.published[rank] = self.now

    def say_all(self, **facts):
        for rank in self.facts:
            self.say(rank, **facts)

    def look(self):
        self.stall = self.watchdog.look(self.facts, self.now)
        return self.stall

    def passes(self, seconds):
        """Time in which the ranks say nothing; the first alarm, if there is one."""
        end = self.now + seconds
        while self.now < end:
            passed = min(LOOK_SECONDS, end - self.now)
            self.now += passed
            self.wall += passed
            if self.look():
                return self.stall
        return None

    def gap(self, seconds):
        """The watcher does not look."""
        self.now += seconds
        self.wall += seconds

    def trains(self, steps, step_seconds, ranks=None):
        """Steps of all ranks in lockstep; a rank publishes at most every 0.2 s. The first alarm, if there is one."""
        for _ in range(steps):
            if stall := self.passes(step_seconds):
                return stall
            self.step += 1
            for rank in self.facts if ranks is None else ranks:
                is_first = self.facts[rank] is None or self.facts[rank]["phase"] != "training"
                if is_first or self.now - self.published[rank] >= PUBLISH_SECONDS:
                    self.say(rank, phase="training", step=self.step)
            if self.look():
                return self.stall
        return None

    def started(self, first_step_seconds=1.0):
        self.say_all(phase="starting", note="first step")
        self.look()
        assert self.trains(1, first_step_seconds) is None
        return self


def stands_still(node, limit_seconds, phase):
    """The rank is silent up to its limit without an alarm, and raises it right after."""
    assert node.passes(limit_seconds - 0.45) is None
    stall = node.passes(1.0)
    assert stall is not None
    assert (stall.phase, stall.limit_seconds) == (phase, pytest.approx(limit_seconds, rel=0.05))
    assert stall.still_seconds > stall.limit_seconds
    return stall


def test_rank_that_never_says_anything_has_the_limit_of_a_start():
    node = Node()
    node.look()
    stall = stands_still(node, 900, "starting")
    assert (stall.rank, stall.local_rank, stall.step) == (None, 0, 0)


def test_rank_that_starts_lives_as_long_as_its_progress_changes():
    node = Node()
    for done in range(20):
        node.say(note="decoding images", note_done=done)
        assert node.passes(800) is None
    assert node.passes(101).phase == "starting"


def test_first_step_may_take_as_long_as_a_start():
    node = Node()
    node.say(phase="starting", note="first step", step=500)
    assert node.trains(1, 890) is None


def test_training_rank_has_the_floor_where_steps_are_short():
    node = Node().started()
    assert node.trains(100, 0.05) is None
    stall = stands_still(node, 10, "training")
    assert (stall.rank, stall.local_rank) == (4, 0)
    assert 95 <= stall.step <= 101


def test_training_rank_has_ten_median_steps_where_they_are_long():
    node = Node().started(3)
    assert node.trains(10, 3) is None
    stands_still(node, 30, "training")


def test_one_long_step_does_not_stretch_the_limit():
    node = Node().started(2)
    assert node.trains(6, 2) is None
    assert node.trains(1, 15) is None
    assert node.trains(6, 2) is None
    stands_still(node, 20, "training")


def test_second_step_may_take_ten_times_the_first_before_the_median_is_trusted():
    node = Node().started(20)
    assert node.trains(1, 150) is None
    assert Node().started(20).trains(1, 250) is not None


def test_a_few_short_steps_are_not_yet_the_usual_ones():
    node = Node().started(20)
    assert node.trains(TRUSTED_STEPS - 1, 1) is None
    assert node.trains(1, 30) is None


def test_evaluating_rank_has_its_limit_per_batch():
    node = Node().started()
    node.trains(5, 1)
    for _ in range(5):
        node.say(phase="evaluating")
        assert node.passes(299) is None
    node.say()
    stands_still(node, 300, "evaluating")


def test_evaluation_before_the_first_step_may_compile():
    node = Node()
    node.say(phase="evaluating", step=500)
    assert node.passes(890) is None


def test_time_of_an_evaluation_is_not_step_time():
    node = Node().started()
    for _ in range(WINDOW_STEPS):
        assert node.trains(1, 1) is None
        node.say(phase="evaluating")
        assert node.passes(100) is None
    node.trains(1, 100)
    node.trains(TRUSTED_STEPS, 1)
    stands_still(node, 10, "training")


def test_saving_rank_that_repeats_itself_is_not_alive_for_it():
    node = Node().started()
    node.say(phase="saving", note_done=0)
    for _ in range(59):
        assert node.passes(10) is None
        node.say()
    assert node.passes(11).phase == "saving"


def test_saving_rank_that_gets_somewhere_lives():
    node = Node().started()
    for done in range(10):
        node.say(phase="saving", note_done=done)
        assert node.passes(500) is None


@pytest.mark.parametrize("phase", ["failed", "finished", "something new"])
def test_rank_in_a_phase_without_a_limit_never_stands_still(phase):
    node = Node().started()
    node.say(phase=phase)
    assert node.passes(5000) is None


def test_rank_that_ended_is_not_waited_for():
    node = Node(2).started()
    node.trains(5, 1)
    del node.facts[1]
    assert node.trains(20, 1) is None


def test_the_rank_that_stands_still_longest_is_named():
    node = Node(3).started()
    node.trains(5, 1)
    node.trains(2, 1, ranks=[0, 1])
    node.trains(1, 1, ranks=[0])
    stall = node.passes(20)
    assert (stall.rank, stall.local_rank) == (6, 2)


def test_of_ranks_that_stand_still_equally_long_the_first_is_named():
    node = Node(3).started()
    node.trains(5, 1)
    assert node.passes(20).local_rank == 0


def test_page_that_cannot_be_read_for_a_moment_is_no_sign_of_life_nor_of_death():
    node = Node().started()
    node.trains(20, 0.5)
    facts = dict(node.facts)
    for _ in range(3):
        assert node.passes(3) is None
        node.facts = {0: None}
        node.look()
        node.facts = dict(facts)
    assert node.passes(2) is not None
    node.facts = {0: None}
    assert node.look().step > 0


def test_new_attempt_starts_anew():
    node = Node().started()
    node.trains(20, 1)
    assert node.passes(20) is not None
    node.watchdog.reset()
    node.facts = {0: None}
    assert node.passes(800) is None
    node.say(attempt=2)
    assert node.passes(800) is None


@pytest.mark.parametrize("changed", [{"attempt": 2}, {"pid": 7}])
def test_another_process_in_the_same_place_is_not_measured_by_its_predecessor(changed):
    node = Node().started()
    node.trains(WINDOW_STEPS, 0.5)
    node.passes(3)
    node.say(phase="starting", step=0, **changed)
    assert node.passes(890) is None
    node.say(note="first step")
    node.step = 0
    assert node.trains(1, 20) is None
    assert node.trains(1, 100) is None


def test_process_that_is_first_seen_in_the_midst_of_training_is_given_time():
    node = Node().started()
    node.trains(WINDOW_STEPS, 0.5)
    node.step = 40
    node.say(pid=7, step=node.step)
    node.look()
    assert node.trains(3, 300) is None


def test_rank_that_joins_late_has_its_whole_start_before_it():
    node = Node().started()
    node.trains(1000, 1)
    node.facts[1], node.published[1] = None, float("-inf")
    for _ in range(8):
        assert node.passes(9) is None
        node.say()
    del node.facts[0]
    assert node.passes(800) is None


def test_steps_shorter_than_what_is_published_are_measured_each():
    node = Node(policy=POLICY.model_copy(update={"hang_floor_seconds": 0.5})).started()
    node.trains(200, 0.04)
    node.say()
    stands_still(node, 0.5, "training")


def test_the_same_facts_seen_twice_are_no_sign_of_life_even_in_a_new_object():
    node = Node().started()
    node.trains(20, 0.5)
    for _ in range(150):
        node.facts = {0: dict(node.facts[0])}
        node.passes(LOOK_SECONDS)
    assert node.stall is not None


def test_facts_that_the_caller_changes_in_place_are_seen_to_change():
    watchdog, facts = Watchdog(POLICY), {"phase": "training", "step": 1, "updated_at": 0.0}
    for second in range(3000):
        facts["step"] = second
        assert watchdog.look({0: facts}, float(second)) is None


def test_alarm_stays_while_the_rank_stands_still_and_goes_when_it_moves():
    node = Node().started()
    node.trains(10, 0.5)
    assert node.passes(20) is not None
    assert node.look() is not None
    node.step += 1
    node.say(step=node.step)
    assert node.look() is None


STEP_SECONDS = st.floats(0.02, 20.0)


@given(STEP_SECONDS, st.floats(0.02, 300.0), st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=40)  # each of them is some 1,000 looks
def test_machine_that_is_slowed_five_times_in_the_middle_raises_no_alarm(step_seconds, first_step_seconds, before, after):
    node = Node(2).started(max(step_seconds, first_step_seconds))
    assert node.trains(before, step_seconds) is None
    assert node.trains(after, 5 * step_seconds) is None


@given(st.floats(0.02, 1.5))
@settings(max_examples=20)  # each of them is some 10,000 looks
def test_machine_that_is_slowed_again_after_a_while_raises_no_alarm(step_seconds):
    node = Node().started(step_seconds)
    for slowdown in (1, 5, 25):
        steps = int(max(1.0, PUBLISH_SECONDS / (step_seconds * slowdown)) * WINDOW_STEPS) + 10
        assert node.trains(steps, step_seconds * slowdown) is None


@given(STEP_SECONDS, st.integers(TRUSTED_STEPS + 2, 20))
def test_hang_is_found_at_its_limit_and_not_before(step_seconds, steps):
    node = Node().started(step_seconds)
    assert node.trains(steps, step_seconds) is None
    limit_seconds = max(10.0, 10 * step_seconds)
    assert node.passes(0.85 * limit_seconds - 2 * PUBLISH_SECONDS) is None
    assert node.passes(0.3 * limit_seconds + 2 * PUBLISH_SECONDS) is not None


@given(STEP_SECONDS, st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=10))
def test_clock_of_the_ranks_that_is_set_raises_no_alarm_and_hides_none(step_seconds, jumps):
    node = Node().started(step_seconds)
    assert node.trains(5, step_seconds) is None
    for jump in jumps:
        node.wall += jump
        assert node.trains(1, step_seconds) is None
    node.wall -= 1e6
    assert node.passes(20 * step_seconds + 20) is not None


@given(
    st.floats(0.02, 5.0),
    st.lists(st.tuples(st.floats(LATE_SECONDS * 1.01, 1e5), st.floats(0.0, 1.0)), min_size=1, max_size=8),
    st.integers(0, 5),
)
def test_gaps_in_the_watchers_own_looks_never_count_against_the_ranks(step_seconds, gaps, before):
    """The machine is suspended, in the midst of steps: neither the first nor a later one hangs, however often it happens."""
    node = Node(2)
    node.say_all(phase="starting", note="first step")
    node.look()
    assert node.trains(before, step_seconds) is None
    for gap_seconds, part in gaps:
        assert node.passes(part * step_seconds) is None
        node.gap(gap_seconds)
        assert node.look() is None
        assert node.passes((1 - part) * step_seconds) is None
        node.step += 1
        node.say_all(phase="training", step=node.step)
        assert node.look() is None
    assert node.trains(10, step_seconds) is None


def test_a_gap_within_the_first_step_does_not_make_the_next_one_a_hang():
    node = Node()
    node.say(phase="starting", note="first step")
    node.look()
    node.passes(0.5)
    node.gap(60)
    assert node.trains(1, 0.5) is None
    assert node.trains(3, 300) is None


def test_time_before_a_gap_counts_when_the_rank_is_still_silent_after_it():
    node = Node().started()
    node.trains(10, 0.5)
    assert node.passes(6) is None
    node.gap(1000)
    assert node.look() is None
    stall = node.passes(6)
    assert 10 < stall.still_seconds < 11


def test_steps_that_were_made_while_nobody_looked_do_not_spoil_the_median():
    """Only the watcher was stopped: thousands of steps in no counted time are not what a step takes."""
    node = Node().started(2)
    node.trains(5, 2)
    for _ in range(WINDOW_STEPS):
        node.gap(100)
        node.step += 50
        node.say(step=node.step)
        assert node.look() is None
    stands_still(node, 20, "training")


@given(st.lists(st.floats(0.0, LATE_SECONDS), min_size=1, max_size=200))
def test_looks_that_are_a_little_late_count(pauses):
    node = Node().started()
    node.trains(10, 0.5)
    passed, stall = 0.0, None
    for pause in pauses:
        node.gap(pause)
        passed += pause
        stall = node.look()
    assert (stall is not None) == (passed > 10.0) or passed == pytest.approx(10.0, abs=0.5)


def test_policy_is_what_decides():
    policy = POLICY.model_copy(update={"hang_floor_seconds": 2.0, "hang_factor": 4.0})
    node = Node(policy=policy).started()
    node.trains(10, 0.1)
    stands_still(node, 2, "training")
    node = Node(policy=policy).started(2)
    node.trains(10, 2)
    stands_still(node, 8, "training")
