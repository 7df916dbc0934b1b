"""A node that is told to stop: whom it waits for, and that everything on its way out is bounded by what is left of the grace."""

from __future__ import annotations

import math

import pytest

from ddp_trainer.checkpoint.snapshot import SnapshotMemory
from ddp_trainer.resilience.departure import LAST_SECONDS, Departure

GRACE_SECONDS = 20.0
TRAINING = {"attempt": 3, "phase": "training", "step": 7}


class Bench:
    """A departure with a clock of its own, and a real memory to ask the ranks through."""

    def __init__(self, grace_seconds=GRACE_SECONDS):
        self.now = 1000.0
        self.memory = SnapshotMemory(SnapshotMemory.create())
        self.departure = Departure(self, grace_seconds, clock=lambda: self.now)

    def may_go(self, lead=TRAINING, *, has_ranks=True, has_finished=False, attempt=3):
        return self.departure.may_go(has_ranks=has_ranks, has_finished=has_finished, lead=lead, attempt=attempt)


@pytest.fixture
def bench():
    made = Bench()
    made.departure.ask("SIGTERM")
    return made


def test_ranks_are_asked_and_have_half_of_the_grace_counted_from_the_signal(bench):
    bench.now += 6  # the agent was held up when the signal came
    assert not bench.may_go()
    assert bench.memory.leave_asked(3)
    bench.now += 3.9
    assert not bench.may_go()
    bench.now += 0.2
    assert bench.may_go()


def test_ranks_that_have_ended_are_not_waited_for(bench):
    assert bench.may_go(has_ranks=False)


@pytest.mark.parametrize("lead", [None, {**TRAINING, "attempt": 2}, {**TRAINING, "phase": "starting"}])
def test_ranks_that_have_done_nothing_new_are_not_waited_for(bench, lead):
    assert bench.may_go(lead)
    assert not bench.memory.leave_asked(3)


@pytest.mark.parametrize("phase", ["training", "evaluating", "saving"])
def test_ranks_that_have_are(bench, phase):
    assert not bench.may_go({**TRAINING, "phase": phase})


@pytest.mark.parametrize("words", [{"has_ranks": False, "has_finished": True}, {"lead": {**TRAINING, "phase": "finished"}}])
def test_a_node_whose_ranks_have_finished_or_are_just_ending_waits_as_long_as_it_can(bench, words):
    assert not bench.may_go(**words)
    assert not bench.memory.leave_asked(3), "there is nobody to ask"
    bench.now += GRACE_SECONDS - LAST_SECONDS - 0.1
    assert not bench.may_go(**words)
    bench.now += 0.2
    assert bench.may_go(**words)


def test_what_is_left_shrinks_from_the_signal_on_and_a_second_signal_gives_nothing_back(bench):
    assert bench.departure.left_seconds == bench.departure.write_seconds == GRACE_SECONDS - LAST_SECONDS
    bench.now += 11
    bench.departure.ask("SIGINT")
    assert bench.departure.asked_by == "SIGTERM"
    assert bench.departure.left_seconds == bench.departure.write_seconds == GRACE_SECONDS - LAST_SECONDS - 11
    bench.now += 100
    assert bench.departure.left_seconds == 0.0


def test_while_nobody_asks_there_is_no_hurry_and_a_write_still_leaves_time_for_a_signal():
    bench = Bench()
    assert not bench.departure.is_asked
    assert bench.departure.left_seconds == math.inf
    assert bench.departure.write_seconds == GRACE_SECONDS / 2


def test_a_short_grace_is_not_all_spent_on_the_end_of_the_process():
    bench = Bench(grace_seconds=1.0)
    bench.departure.ask("SIGTERM")
    assert bench.departure.left_seconds == pytest.approx(0.9)
