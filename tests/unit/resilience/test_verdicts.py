"""What happens after a fault: the decision table, and what holds for any sequence of faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.config import FaultToleranceSection
from ddp_trainer.errors import (
    BY_CAUSE,
    CONFIG_ERROR,
    DATA_ERROR,
    DIVERGED,
    EXITS,
    HANG,
    NO_PROGRESS,
    PEER_LOST,
    PREEMPTED,
    RANK_CRASHED,
    USER_ERROR,
)
from ddp_trainer.resilience.fault import ECHO, FAILED_COLLECTIVE, REJOIN, Fault
from ddp_trainer.resilience.verdict import COUNTED_CAUSES, FINAL_CAUSES, HOST_CAUSES, Record, judge

POLICY = FaultToleranceSection(max_restarts=10, no_progress_restarts=3, max_hangs=5)
SKIPPING = FaultToleranceSection(on_divergence="skip", max_skips=3)
PEER_CAUSES = ["peer_loss", "preemption", REJOIN, ECHO]


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
        ("hangs with a newer checkpoint each", [(fault("hang"), s) for s in range(1, 30)], HANG, 5),
        ("hangs at one checkpoint", [(fault("hang"), 5)] * 30, HANG, 3),
        ("hangs and crashes in turn, with progress", [(fault("hang" if s % 2 else "crash", s), s) for s in range(1, 30)], HANG, 10),
        ("crashes and hangs at one checkpoint", [(fault("crash" if s % 2 else "hang", s), 5) for s in range(30)], NO_PROGRESS, 3),
        *((f"{cause} again and again", [(fault(cause), 5)] * 200, None, 200) for cause in PEER_CAUSES),
    ],
)
def test_a_sequence_of_faults_ends_as_the_table_says(what, faults, leave, restarts):
    verdicts = judged(faults)
    assert verdicts[-1].leave is leave
    assert sum(verdict.leave is None for verdict in verdicts) == restarts


def test_no_restart_at_all_is_a_policy_too():
    assert judge(fault(), 5, Record(), FaultToleranceSection(max_restarts=0)).leave is RANK_CRASHED
    assert judge(fault("hang"), 5, Record(), FaultToleranceSection(max_hangs=0)).leave is HANG


@pytest.mark.parametrize("cause", ["hang", FAILED_COLLECTIVE])
def test_the_same_at_the_same_step_again_in_new_containers_is_no_progress(cause):
    first = judged([(fault(cause), 5)] * 9)
    assert first[-1].leave.retried, "other machines are tried"
    record, leaves = first[-1].record, []
    for _ in range(len(first)):  # containers, each of which leaves at once
        (again,) = judged([(fault(cause, message="in other words"), 5)] * 9, record=replace(record, crashes=0, hangs=0))
        record, leaves = again.record, [*leaves, again.leave]
    assert all(leave.retried for leave in leaves[:-1]), "one more at the same step may be the same bad machine"
    assert leaves[-1] is NO_PROGRESS
    (elsewhere,) = judged([(fault(cause, step=8), 5)], record=first[-1].record)
    assert elsewhere.leave.retried
    assert judged([(fault(cause), 6)], record=first[-1].record)[0].leave is None, "there has been progress in between"


def test_hangs_leave_for_new_containers_and_name_the_budget_that_they_used_up():
    last = judged([(fault("hang", message="rank 2 stands still"), step) for step in range(9)])[-1]
    assert last.leave.code == 161
    assert last.leave.retried
    assert last.reason == "rank 1 (node 0): rank 2 stands still (all 5 restarts after hangs used up)"


def test_a_divergence_is_passed_over_as_often_as_allowed_and_then_ends_the_run():
    verdicts = judged([(replace(fault("diverged"), window=(s, s + 1)), 5) for s in range(9)], SKIPPING)
    assert [verdict.leave for verdict in verdicts] == [None, None, None, DIVERGED]
    assert [verdict.record.skips for verdict in verdicts] == [1, 2, 3, 3]


def test_passing_over_a_divergence_uses_up_no_other_budget():
    record = judge(fault(), 5, Record(), SKIPPING).record
    assert judge(fault("diverged"), 5, record, SKIPPING).record == replace(record, skips=1)


def test_a_preemption_re_forms_the_others_or_takes_them_along():
    others_wait, all_leave = POLICY, FaultToleranceSection(on_preemption="leave")
    assert judge(fault("preemption"), 5, Record(), others_wait).leave is None
    verdict = judge(fault("preemption"), 5, Record(crashes=2), all_leave)
    assert (verdict.leave, verdict.record) == (PREEMPTED, Record(crashes=2))
    assert judge(fault("peer_loss"), 5, Record(), all_leave).leave is None, "only who was asked to go takes the others along"


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


# --- an error of a host -------------------------------------------------------------------------------------------------------------


def elsewhere(cause, step=0, node=3):
    return Fault(cause, node, node, BY_CAUSE[cause].code, step, "/mnt/data is not there")


@pytest.mark.parametrize("cause", sorted(HOST_CAUSES))
def test_one_bad_replacement_does_not_end_a_run_that_has_a_checkpoint(cause):
    verdict = judge(elsewhere(cause), 500, Record(), POLICY)
    assert (verdict.leave, verdict.record.crashes, verdict.record.without_progress) == (None, 1, 1)
    assert judge(elsewhere(cause), 0, Record(durable_step=40), POLICY).leave is None


@pytest.mark.parametrize("cause", sorted(HOST_CAUSES))
def test_the_same_words_are_final_before_the_first_checkpoint_and_always_from_node_0(cause):
    own = BY_CAUSE[cause]
    assert judge(elsewhere(cause), 0, Record(), POLICY).leave is own
    assert judge(elsewhere(cause, step=2), 0, Record(durable_step=0), POLICY).leave is own, "no memory for snapshots, at the first of them"
    assert judge(elsewhere(cause, step=400, node=0), 500, Record(durable_step=490), POLICY).leave is own


@pytest.mark.parametrize("cause", sorted(HOST_CAUSES))
def test_a_bad_host_that_stays_leaves_for_other_machines_and_at_last_with_its_own_code(cause):
    first = judged([(elsewhere(cause), 500)] * 9)
    assert [verdict.leave for verdict in first] == [None, None, None, RANK_CRASHED]
    assert first[-1].reason == "rank 3 (node 3): /mnt/data is not there (3 restarts without a newer checkpoint)"
    record, leaves = first[-1].record, []
    for step in range(4):  # containers, each of which leaves at once; the words need not come at the same step
        (again,) = judged([(elsewhere(cause, step=step), 500)] * 9, record=replace(record, crashes=0, hangs=0))
        record, leaves = again.record, [*leaves, again.leave]
    assert leaves == [RANK_CRASHED, RANK_CRASHED, RANK_CRASHED, BY_CAUSE[cause]]
    assert judged([(elsewhere(cause), 501)], record=first[-1].record)[0].leave is None, "there has been progress in between"


@pytest.mark.parametrize("cause", sorted(HOST_CAUSES))
def test_errors_of_a_host_with_progress_in_between_use_up_the_restarts_like_crashes(cause):
    verdicts = judged([(elsewhere(cause, step=s), s) for s in range(1, 30)])
    assert verdicts[-1].leave is RANK_CRASHED
    assert len(verdicts) == POLICY.max_restarts + 1
    mixed = judged([(elsewhere(cause) if s % 2 else fault(), s) for s in range(1, 30)])
    assert len(mixed) == POLICY.max_restarts + 1


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
    hangs=st.integers(0, 5),
    skips=st.integers(0, 5),
)
policies = st.builds(
    FaultToleranceSection,
    max_restarts=st.integers(0, 20),
    no_progress_restarts=st.integers(1, 20),
    max_hangs=st.integers(0, 5),
    on_divergence=st.sampled_from(["stop", "skip"]),
    max_skips=st.integers(0, 5),
    on_preemption=st.sampled_from(["reform", "leave"]),
)


@given(faults, st.integers(0, 20), records, policies)
def test_there_is_a_verdict_for_everything_and_it_names_the_fault(one, durable, record, policy):
    verdict = judge(one, durable, record, policy)
    assert verdict.leave is None or verdict.leave in EXITS
    assert one.message in verdict.reason
    if one.cause == "diverged":
        assert (verdict.leave is None) == (policy.on_divergence == "skip" and record.skips < policy.max_skips)
    elif one.cause == "preemption":
        assert (verdict.leave is None) == (policy.on_preemption == "reform")
    elif one.cause in FINAL_CAUSES and (one.node == 0 or max(durable, record.durable_step) <= 0):
        assert verdict.leave is one.leaves_with
    elif one.cause not in COUNTED_CAUSES:
        assert verdict.leave is None


@given(
    st.lists(
        st.tuples(
            st.builds(replace, faults, cause=st.sampled_from(["crash", "user_error", "hang", "diverged", "data_error"])), st.integers(0, 3)
        ),
        min_size=40,
        max_size=40,
    ),
    policies,
)
def test_no_sequence_of_crashes_hangs_and_divergences_goes_on_for_ever(sequence, policy):
    verdicts = judged(sequence, policy)
    assert verdicts[-1].leave is not None
    assert len(verdicts) <= policy.max_restarts + policy.max_hangs + policy.max_skips + 1
