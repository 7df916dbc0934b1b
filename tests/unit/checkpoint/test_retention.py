"""Which checkpoints may go: a table of cases, and what holds for every run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.checkpoint.retention import Retention


def plain(*steps):
    return {step: {} for step in steps}


def loss(**values):
    return {int(name[1:]): {"loss": value} for name, value in values.items()}


CASES = {
    "fewer than are kept": (Retention(3), plain(1, 2), {2}, []),
    "nothing at all": (Retention(3), plain(), set(), []),
    "the oldest go": (Retention(2), plain(1, 2, 3, 4), {4}, [1, 2]),
    "by number, not by order": (Retention(1), plain(10, 9, 100), {100}, [9, 10]),
    "milestones stay": (Retention(1, every=10), plain(5, 10, 15, 20, 25), {25}, [5, 15]),
    "step 0 is a milestone": (Retention(1, every=10), plain(0, 5, 7), {7}, [5]),
    "the lowest loss stays": (Retention(1, best="loss"), loss(_1=0.5, _2=0.1, _3=0.3, _4=0.2), {4}, [1, 3]),
    "any loss is better low": (Retention(1, best="test_loss"), {1: {"test_loss": 0.1}, 2: {"test_loss": 0.2}, 3: {}}, {3}, [2]),
    "the highest accuracy stays": (Retention(1, best="accuracy"), {1: {"accuracy": 0.9}, 2: {"accuracy": 0.1}, 3: {}}, {3}, [2]),
    "of equals the newer stays": (Retention(1, best="loss"), loss(_1=0.1, _2=0.1, _3=0.2), {3}, [1]),
    "a metric that nobody measured": (Retention(1, best="accuracy"), loss(_1=0.1, _2=0.2), {2}, [1]),
    "without a wish metrics do not count": (Retention(1), loss(_1=0.1, _2=0.2), {2}, [1]),
    "the newest verified one stays though newer ones are there": (Retention(2), plain(1, 2, 3, 4), {1, 2}, [1]),
    "verified ones that are gone do not count": (Retention(1), plain(2, 3), {1, 9}, [2]),
    "nothing is known to be good": (Retention(2), plain(1, 2, 3), set(), [1]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_retention_removes(case):
    policy, checkpoints, verified, expected = CASES[case]
    assert policy.removable(checkpoints, verified) == expected


SPARE = {
    "all but the newest verified one, the oldest first": (Retention(3), plain(1, 2, 3, 4), {2, 3}, [1, 2, 4]),
    "the newest, if none is known to be good": (Retention(3), plain(1, 2, 3), set(), [1, 2]),
    "never a milestone": (Retention(3, every=2), plain(1, 2, 3, 4, 5), {5}, [1, 3]),
    "never the best": (Retention(3, best="loss"), loss(_1=0.1, _2=0.2, _3=0.3), {3}, [2]),
    "nothing from one": (Retention(3), plain(1), set(), []),
}


@pytest.mark.parametrize("case", SPARE)
def test_what_a_full_disk_takes(case):
    policy, checkpoints, verified, expected = SPARE[case]
    assert policy.spare(checkpoints, verified) == expected


steps = st.integers(0, 60)
runs = st.dictionaries(steps, st.fixed_dictionaries({}, optional={"loss": st.floats(0, 1), "accuracy": st.floats(0, 1)}), max_size=20)
policies = st.builds(Retention, st.integers(1, 5), st.none() | st.integers(1, 20), st.sampled_from([None, "loss", "accuracy", "absent"]))


@given(policies, runs, st.sets(steps))
def test_whatever_was_saved_what_was_promised_stays(policy, checkpoints, verified):
    removable, spare = policy.removable(checkpoints, verified), policy.spare(checkpoints, verified)
    there = sorted(checkpoints)
    good = [step for step in there if step in verified]
    promised = {step for step in there if policy.every and step % policy.every == 0} | set(good[-1:])
    if policy.best:
        values = [metrics[policy.best] for metrics in checkpoints.values() if policy.best in metrics]
        wanted = min(values, default=None) if policy.best == "loss" else max(values, default=None)
        left = [step for step in there if step not in spare]
        assert wanted is None or wanted in [checkpoints[step].get(policy.best) for step in left]
    for gone in (removable, spare):
        assert gone == sorted(set(gone))
        assert set(gone) <= set(there)
        assert not set(gone) & promised
        assert not there or set(gone) < set(there)  # something is always left
    assert not set(removable) & set(there[-policy.keep :])
    assert set(removable) <= set(spare) | set(there[-1:])


@given(policies, runs, st.sets(steps))
def test_a_second_look_removes_nothing_more(policy, checkpoints, verified):
    gone = policy.removable(checkpoints, verified)
    left = {step: metrics for step, metrics in checkpoints.items() if step not in gone}
    assert policy.removable(left, verified) == []
