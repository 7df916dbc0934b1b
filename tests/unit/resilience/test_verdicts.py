"""What happens after a fault: the decision table, and what holds for any sequence of faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.config import FaultToleranceSection
from ddp_trainer.errors import CONFIG_ERROR, DATA_ERROR, DIVERGED, EXITS, NO_PROGRESS, PEER_LOST, RANK_CRASHED, USER_ERROR
from ddp_trainer.resilience.fault import ECHO, FAILED_COLLECTIVE, Fault
from ddp_trainer.resilience.verdict import FINAL_CAUSES, Record, judge

POLICY = FaultToleranceSection(max_restarts=10, no_progress_restarts=3)
PEER_CAUSES = ["peer_loss", "preemption", "hang", ECHO]


def fault(cause="crash", step=7, message="killed by SIGKILL", rank=1):
    return Fault(cause, 0, rank, 137, step, message)


def judged(faults, policy=POLICY, record=None):
    """The verdicts over (fault, durable step) pairs, up to the first that ends the run."""
    record, verdicts = record or Record(), []
    for one, durable in faults:
        verdict = judge(one, durable, record, policy)
        verdicts.append(verdict)
        record = verdict.record
        if verdict.leave:
            break
    return verdicts


@pytest.mark.parametrize(
    ("what", "faults", "leave", "restarts"),
    [
        ("bad configuration", [(fault("config_error"), 5)], CONFIG_ERROR, 0),
        ("bad data", [(fault("data_error"), 5)], DATA_ERROR, 0),
        ("divergence", [(fault("diverged"), 5)], DIVERGED, 0),
        ("one crash", [(fault(), 5)], None, 1),
        ("one exception", [(fault("user_error", message="ValueError: x"), 5)], None, 1),
        ("crashes with a newer checkpoint each", [(fault(step=s), s) for s in range(1, 30)], RANK_CRASHED, 10),
        ("crashes at one checkpoint", [(fault(step=s), 5) for s in range(30)], NO_PROGRESS, 3),
        ("crashes before any checkpoint", [(fault(step=s), 0) for s in range(30)], NO_PROGRESS, 3),
        ("the same exception", [(fault("user_error", 7, "ValueError: x"), s) for s in range(30)], USER_ERROR, 2),
        ("exceptions at one checkpoint", [(fault("user_error", s, "ValueError: x"), 5) for s in range(30)], USER_ERROR, 3),
        ("ever new exceptions with progress", [(fault("user_error", s, f"ValueError: {s}"), s) for s in range(30)], USER_ERROR, 10),
        ("the same crash, which is no exception", [(fault(step=7), s) for s in range(30)], RANK_CRASHED, 10),
        ("ranks that lose each other at one checkpoint", [(fault(FAILED_COLLECTIVE), 5)] * 30, PEER_LOST, 3),
        ("ranks that lose each other, with progress", [(fault(FAILED_COLLECTIVE), s) for s in range(200)], None, 200),
        *((f"{cause} again and again", [(fault(cause), 5)] * 200, None, 200) for cause in PEER_CAUSES),
    ],
)
def test_a_sequence_of_faults_ends_as_the_table_says(what, faults, leave, restarts):
    verdicts = judged(faults)
    assert verdicts[-1].leave is leave
    assert sum(verdict.leave is None for verdict in verdicts) == restarts


def test_no_restart_at_all_is_a_policy_too():
    assert judge(fault(), 5, Record(), FaultToleranceSection(max_restarts=0)).leave is RANK_CRASHED


def test_an_exception_is_identical_only_at_the_same_step_with_the_same_words():
    alternating = [(fault("user_error", 7, f"ValueError: {i % 2}"), i) for i in range(9)]
    moving = [(fault("user_error", i, "ValueError: x"), i) for i in range(9)]
    interrupted = [(fault("user_error", 7, "ValueError: x") if i % 2 else fault(), i) for i in range(9)]
    assert all(verdict.leave is None for faults in (alternating, moving, interrupted) for verdict in judged(faults))


def test_progress_between_two_faults_begins_the_count_without_progress_anew():
    durable = [5, 5, 5, 6, 6, 6, 7, 7, 7]
    verdicts = judged([(fault(step=i), step) for i, step in enumerate(durable)])
    assert all(verdict.leave is None for verdict in verdicts)
    assert len(verdicts) == 9


def test_a_checkpoint_that_was_lost_is_not_progress():
    verdicts = judged([(fault(step=i), durable) for i, durable in enumerate([9, 8, 7, 6, 5])])
    assert verdicts[-1].leave is NO_PROGRESS


def test_peer_faults_between_crashes_do_not_use_up_anything():
    record = judge(fault(), 5, Record(), POLICY).record
    for cause in PEER_CAUSES:
        assert judge(fault(cause), 5, record, POLICY).record == record


@pytest.mark.parametrize("cause", sorted(FINAL_CAUSES))
def test_a_final_cause_ends_the_run_whatever_budget_is_left(cause):
    verdict = judge(fault(cause), 99, Record(), FaultToleranceSection(max_restarts=1000, no_progress_restarts=1000))
    assert verdict.leave is not None
    assert not verdict.leave.retried


# --- any fault, any record, any policy -----------------------------------------------------------------------------------------------

faults = st.builds(
    Fault,
    cause=st.sampled_from([e.cause for e in EXITS]) | st.just(ECHO) | st.text(max_size=5),
    node=st.integers(0, 8),
    rank=st.none() | st.integers(0, 8),
    exit=st.integers(0, 255),
    step=st.integers(0, 3),
    message=st.text(max_size=2),
)
records = st.builds(
    Record,
    crashes=st.integers(0, 20),
    without_progress=st.integers(0, 20),
    durable_step=st.integers(-1, 20),
    last_error=st.tuples(st.integers(-1, 3), st.text(max_size=2)),
    identical_errors=st.integers(0, 5),
)
policies = st.builds(FaultToleranceSection, max_restarts=st.integers(0, 20), no_progress_restarts=st.integers(1, 20))


@given(faults, st.integers(0, 20), records, policies)
def test_there_is_a_verdict_for_everything_and_it_names_the_fault(one, durable, record, policy):
    verdict = judge(one, durable, record, policy)
    assert verdict.leave is None or verdict.leave in EXITS
    assert one.message in verdict.reason
    if one.cause in FINAL_CAUSES:
        assert verdict.leave is not None
    elif one.cause not in {"crash", "user_error"}:
        assert verdict.leave is None


@given(
    st.lists(
        st.tuples(st.builds(replace, faults, cause=st.sampled_from(["crash", "user_error"])), st.integers(0, 3)), min_size=40, max_size=40
    ),
    policies,
)
def test_no_sequence_of_crashes_goes_on_for_ever(sequence, policy):
    verdicts = judged(sequence, policy)
    assert verdicts[-1].leave is not None
    assert len(verdicts) <= policy.max_restarts + 1
