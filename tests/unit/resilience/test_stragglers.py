"""Which ranks are named as slow, and how often."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.resilience.stragglers import LASTING_READINGS, READINGS, Stragglers

ENOUGH = LASTING_READINGS + READINGS
"""Readings after which a change has been seen and believed."""


class Gang:
    """Ranks whose own parts of a step are read every 0.2 s; readings differ a little from one another, as real ones do."""

    def __init__(self, ratio=1.5):
        self.stragglers = Stragglers(ratio)
        self.now, self.count = 0.0, 0

    def read(self, *seconds, times=1, every_seconds=0.2):
        found = []
        for _ in range(times):
            self.now += every_seconds
            self.count += 1
            jitter = 1 + 1e-4 * (self.count % 7)
            found += self.stragglers.look([value and value * jitter for value in seconds], self.now)
        return found


def test_rank_that_stays_slow_is_named_once_with_its_ratio():
    gang = Gang()
    ((rank, ratio),) = gang.read(0.1, 0.1, 0.2, 0.1, times=500)
    assert (rank, ratio) == (2, pytest.approx(2.0, rel=0.01))


def test_it_is_named_no_sooner_than_it_has_lasted():
    gang = Gang()
    assert gang.read(0.1, 0.1, 0.2, times=LASTING_READINGS - 1) == []
    assert len(gang.read(0.1, 0.1, 0.2)) == 1


def test_where_steps_take_seconds_ten_of_them_are_long_enough():
    gang = Gang()
    assert gang.read(4, 4, 8, times=4, every_seconds=8) == []
    assert len(gang.read(4, 4, 8, every_seconds=8)) == 1


@given(st.integers(0, 60), st.integers(1, READINGS // 2), st.floats(1.0, 1e6))
def test_a_few_slow_steps_however_slow_are_no_alarm(before, slow, factor):
    gang = Gang()
    found = gang.read(0.1, 0.1, 0.1, times=before)
    found += gang.read(0.1, 0.1 * factor, 0.1, times=slow)
    assert found + gang.read(0.1, 0.1, 0.1, times=100) == []


def test_one_slow_step_that_is_looked_at_for_minutes_is_no_alarm():
    gang = Gang()
    gang.read(0.1, 0.1, 0.1, times=100)
    for second in range(1000):
        assert gang.stragglers.look([0.1, 60.0, 0.1], 100.0 + second) == []


def test_recovered_rank_that_gets_slow_again_is_named_again():
    gang = Gang()
    assert len(gang.read(0.1, 0.1, 0.2, times=ENOUGH)) == 1
    assert gang.read(0.1, 0.1, 0.1, times=ENOUGH) == []
    assert len(gang.read(0.1, 0.1, 0.2, times=ENOUGH)) == 1


def test_rank_that_wavers_around_the_limit_is_named_once():
    gang = Gang()
    assert len(gang.read(0.1, 0.1, 0.16, times=ENOUGH)) == 1
    for _ in range(5):
        assert gang.read(0.1, 0.1, 0.14, times=ENOUGH) == []
        assert gang.read(0.1, 0.1, 0.16, times=ENOUGH) == []


def test_short_recovery_is_none():
    gang = Gang()
    assert len(gang.read(0.1, 0.1, 0.2, times=ENOUGH)) == 1
    assert gang.read(0.1, 0.1, 0.1, times=READINGS) == []
    assert gang.read(0.1, 0.1, 0.2, times=100) == []


def test_two_ranks_are_compared_with_each_other():
    gang = Gang()
    ((rank, ratio),) = gang.read(0.1, 0.16, times=100)
    assert (rank, ratio) == (1, pytest.approx(1.6, rel=0.01))


def test_every_third_step_that_is_quick_does_not_hide_a_slow_rank():
    gang = Gang()
    found = [rank for _ in range(50) for third in (0.3, 0.3, 0.1) for rank, _ in gang.read(0.1, 0.1, third)]
    assert found == [2]


def test_slow_stretches_do_not_add_up():
    gang = Gang()
    for _ in range(20):
        assert gang.read(0.1, 0.1, 0.2, times=15) == []
        assert gang.read(0.1, 0.1, 0.1, times=15) == []


def test_one_rank_is_compared_with_nobody():
    assert Gang().read(0.1, times=100) == []
    assert Gang().read(0.1, None, None, times=100) == []
    assert Stragglers(1.5).look([], 0.0) == []


def test_several_slow_ranks_are_all_named():
    found = Gang().read(0.1, 0.3, 0.1, 0.2, 0.1, times=100)
    assert [rank for rank, _ in found] == [1, 3]


def test_gang_that_is_slow_as_a_whole_has_no_straggler():
    gang = Gang()
    assert gang.read(0.1, 0.1, 0.1, times=100) == []
    assert gang.read(0.5, 0.5, 0.5, times=100) == []


@pytest.mark.parametrize("unknown", [None, 0.0, math.nan, math.inf, -1.0])
def test_unknown_seconds_count_for_nothing(unknown):
    gang = Gang()
    found = gang.read(0.1, unknown, 0.2, 0.1, times=100)
    assert [rank for rank, _ in found] == [2]
    assert Gang().read(0.1, unknown, times=100) == []


def test_rank_that_is_not_heard_of_is_not_named_for_its_past():
    gang = Gang()
    gang.read(0.1, 0.1, 0.2, times=LASTING_READINGS - 1)
    assert gang.read(0.1, 0.1, None, times=100) == []


def test_launch_jitter_of_a_fast_gpu_is_no_straggler():
    assert Gang().read(0.0002, 0.0002, 0.0009, times=100) == []


def test_another_world_size_starts_anew():
    gang = Gang()
    gang.read(0.1, 0.1, 0.2, times=LASTING_READINGS - 1)
    assert gang.read(0.1, 0.1, 0.2, 0.1, times=LASTING_READINGS - 1) == []
    assert [rank for rank, _ in gang.read(0.1, 0.1, 0.2, 0.1)] == [2]


@given(st.lists(st.lists(st.floats(0.09, 0.11), min_size=4, max_size=4), min_size=1, max_size=100))
def test_usual_noise_names_nobody(readings):
    stragglers = Stragglers(1.5)
    assert [found for i, seconds in enumerate(readings) if (found := stragglers.look(seconds, i * 0.2))] == []


@given(st.lists(st.tuples(st.floats(0.08, 0.12), st.floats(0.08, 0.12), st.floats(0.2, 0.4)), min_size=60, max_size=60))
def test_slow_rank_is_found_through_noise(readings):
    stragglers = Stragglers(1.5)
    found = [rank for i, seconds in enumerate(readings) for rank, _ in stragglers.look([*seconds, 0.1 + i * 1e-6], i * 0.2)]
    assert found == [2]
