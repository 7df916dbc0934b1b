"""Step time, its histogram and the time that is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.telemetry.pace import BUCKETS_SECONDS, Pace


def run(pace, *ends):
    for end in ends:
        pace.stepped(end)


def test_the_first_step_is_not_counted_since_it_carries_the_start():
    pace = Pace()
    run(pace, 100.0)
    assert pace.step_seconds is None
    assert sum(pace.histogram()["counts"]) == 0


def test_steady_steps_give_their_length():
    pace = Pace()
    run(pace, *(step * 0.3 for step in range(50)))
    assert pace.step_seconds == pytest.approx(0.3)
    assert pace.histogram()["sum"] == pytest.approx(49 * 0.3)
    assert pace.histogram()["counts"][BUCKETS_SECONDS.index(0.5)] == 49


def test_an_evaluation_between_steps_is_not_step_time():
    pace = Pace()
    run(pace, 0.0, 1.0)
    pace.paused(1.0)
    run(pace, 61.0, 62.0)
    assert pace.step_seconds == pytest.approx(1.0)


def test_a_change_of_speed_is_followed_within_the_smoothing_window():
    pace = Pace()
    run(pace, *(step * 0.1 for step in range(100)))
    now = 9.9
    for _ in range(200):
        now += 0.2
        pace.stepped(now)
    assert pace.step_seconds == pytest.approx(0.2, rel=0.05)


def test_a_clock_set_back_counts_as_a_tiny_step_and_not_a_negative_one():
    pace = Pace()
    run(pace, 100.0, 40.0, 41.0)
    assert pace.step_seconds is not None
    assert pace.step_seconds >= 0


@pytest.mark.parametrize(
    ("step", "left"),
    [(0, 100 * 2.0 + 5 * 30.0), (20, 80 * 2.0 + 4 * 30.0), (99, 1 * 2.0 + 1 * 30.0), (100, 0.0), (140, 0.0)],
)
def test_what_is_left_counts_steps_and_the_evaluations_to_come(step, left):
    pace = Pace()
    run(pace, 0.0, 2.0)
    pace.evaluated(30.0)
    assert pace.eta_seconds(step, total_steps=100, steps_per_evaluation=20) == pytest.approx(left)


def test_what_is_left_is_unknown_before_the_first_whole_step_and_without_a_plan():
    pace = Pace()
    assert pace.eta_seconds(0, 100, 20) is None
    run(pace, 0.0, 2.0)
    assert pace.eta_seconds(0, 0, 20) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(0, 50))
def test_the_histogram_counts_every_whole_step_once(times, step):
    pace = Pace()
    run(pace, *times)
    assert sum(pace.histogram()["counts"]) == len(times) - 1
    eta = pace.eta_seconds(step, 50, 7)
    assert eta is None or eta >= 0


def test_one_step_that_was_held_up_is_not_a_usual_one_and_is_soon_forgotten():
    pace, now = Pace(), 0.0
    pace.stepped(now)
    for seconds in [0.3] * 20 + [40.0] + [0.3] * 100:
        now += seconds
        pace.stepped(now)
        assert pace.usual_step_seconds == pytest.approx(0.3)
    assert pace.step_seconds < 3
