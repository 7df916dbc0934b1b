"""When a state is kept: on disk by steps, by time and at the end; in memory as often as costs next to nothing."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ddp_trainer.checkpoint.schedule import FEWEST, MEMORY_COST_RATIO, Schedule
from ddp_trainer.config import CheckpointSection


def schedule(total=100, step_seconds=0.0, stalls=(), **policy):
    made = Schedule(CheckpointSection(**{"every_seconds": None, **policy}), total, step_seconds)
    for stall in stalls:
        made.stalled(stall)
    return made


@pytest.mark.parametrize(
    ("policy", "step", "last", "seconds", "answer"),
    [
        # by steps: at multiples, counted from zero and not from the last save
        ({"every_steps": 10}, 9, 0, 999, False),
        ({"every_steps": 10}, 10, 0, 0, True),
        ({"every_steps": 10}, 11, 10, 999, False),
        ({"every_steps": 10}, 20, 13, 0, True),
        ({"every_steps": 10}, 25, 13, 0, True),  # the multiple was missed: as soon as possible
        # by time
        ({"every_seconds": 15}, 3, 2, 14.9, False),
        ({"every_seconds": 15}, 3, 2, 15.0, True),
        # both: whichever comes first
        ({"every_steps": 10, "every_seconds": 15}, 4, 2, 15, True),
        ({"every_steps": 10, "every_seconds": 15}, 10, 9, 1, True),
        ({"every_steps": 10, "every_seconds": 15}, 11, 10, 1, False),
        # the end, and what is saved already
        ({"every_steps": 1000}, 100, 99, 0, True),
        ({"every_steps": 1000}, 101, 99, 0, True),
        ({"every_steps": 10}, 100, 100, 999, False),
        ({"every_seconds": 15}, 50, 50, 999, False),
        ({"every_seconds": 15}, 50, 60, 999, False),
    ],
)
def test_a_state_must_become_durable_by_steps_by_time_and_at_the_end(policy, step, last, seconds, answer):
    assert schedule(**policy).durable_is_due(step, last, seconds) is answer


@given(st.integers(1, 50), st.integers(1, 300), st.integers(0, 299))
def test_by_steps_at_most_that_many_steps_are_ever_at_risk(every, total, start):
    policy, last = schedule(total, every_steps=every), min(start, total)
    for step in range(last + 1, total + 1):
        if policy.durable_is_due(step, last, 0.0):
            last = step
        assert step - last < every
    assert last == total


@pytest.mark.parametrize(
    ("stall", "mtbf", "most", "seconds"),
    [
        (0.02, 3600, 15, 12.0),  # sqrt(2 * 0.02 * 3600)
        (0.5, 3600, 100, 60.0),
        (0.5, 3600, 15, 15),  # the cap: never more work at risk than that
        (0.002, 3600, 15, sqrt(14.4)),  # a cheap snapshot is taken more often
        (0.02, 60, 15, sqrt(2.4)),  # a shaky cluster, too
    ],
)
def test_auto_is_the_interval_of_young_and_daly_for_the_measured_stall_with_a_cap(stall, mtbf, most, seconds):
    made = schedule(every_seconds="auto", mtbf_seconds=mtbf, max_lost_seconds=most, stalls=[stall])
    assert made.durable_every_seconds == pytest.approx(seconds)
    assert made.durable_is_due(2, 1, seconds * 1.001)
    assert not made.durable_is_due(2, 1, seconds * 0.999)


@pytest.mark.parametrize("policy", [{"every_seconds": 15}, {"every_seconds": "auto", "max_lost_seconds": 15, "mtbf_seconds": 1e9}])
@pytest.mark.parametrize(("step", "persist", "seconds"), [(1.0, 1.5, 11.5), (0, 2, 13), (4, 9, 7.5), (100, 100, 7.5)])
def test_what_is_at_risk_is_the_interval_two_steps_and_the_write_unless_those_take_most_of_it(policy, step, persist, seconds):
    made = schedule(**policy, stalls=[0.02], step_seconds=step)
    made.persist_seconds = persist
    assert made.durable_every_seconds == seconds


@given(st.floats(0.01, 3), st.floats(0, 3), st.floats(0.5, 60), st.sampled_from([2, 3]))
def test_no_more_work_is_ever_at_risk_than_is_allowed(step_seconds, persist_seconds, most, steps_to_keep):
    assume(steps_to_keep * step_seconds + persist_seconds <= most / 2)
    made = Schedule(CheckpointSection(every_seconds=most), 10**9, step_seconds, persist_seconds, steps_to_keep)
    kept_at, said, at_risk = 0.0, [False] * (steps_to_keep - 1), []
    for step in range(1, 200):  # what is said before a step is done after it, or after the next one on a GPU
        said.append(made.durable_is_due(step, 0, (step - 1) * step_seconds - kept_at))
        if said[-(steps_to_keep - 1)]:
            at_risk.append(step * step_seconds - kept_at + persist_seconds)
            kept_at, said = step * step_seconds, [False] * (steps_to_keep - 1)
    assert max(at_risk, default=0) <= most * (1 + 1e-9)


def test_auto_before_anything_was_measured_is_the_cap():
    assert schedule(every_seconds="auto", max_lost_seconds=7).durable_every_seconds == 7


def test_a_stall_that_met_a_busy_moment_changes_nothing():
    calm, busy = [0.02] * 5, [0.02, 0.02, 9.0, 0.02, 0.02]
    assert schedule(stalls=busy).stall_seconds == schedule(stalls=calm).stall_seconds == 0.02


def test_a_stall_that_stays_long_is_believed():
    assert schedule(stalls=[0.02] * 9 + [0.5] * 3).stall_seconds == 0.5


@given(st.floats(1e-6, 100), st.floats(1e-6, 100))
def test_snapshots_in_memory_cost_at_most_a_hundredth_and_are_as_frequent_as_that_allows(stall, step_seconds):
    every = schedule(step_seconds=step_seconds, stalls=[stall] * FEWEST).memory_every_steps
    assert stall <= MEMORY_COST_RATIO * every * step_seconds * (1 + 1e-9)
    assert every == 1 or stall > MEMORY_COST_RATIO * (every - 1) * step_seconds * (1 - 1e-9)


@pytest.mark.parametrize("known", [{}, {"step_seconds": 0.1}, {"stalls": [0.1] * 9}, {"step_seconds": 0.1, "stalls": [0.9, 0.1]}])
def test_while_costs_are_not_known_every_step_is_kept_so_that_they_become_known(known):
    assert schedule(**known).memory_every_steps == 1


@pytest.mark.parametrize(("every", "kept"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (0, [])])
def test_a_number_of_steps_is_obeyed_whatever_it_costs_and_zero_is_never(every, kept):
    made, last, found = schedule(memory_every_steps=every, step_seconds=0.001, stalls=[100.0]), 0, []
    for step in range(1, 8):
        if made.memory_is_due(step, last):
            last = step
            found.append(step)
    assert found == kept
