"""When a state is saved, and what a failing save does to the training."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_checkpoints import manifest_of

from ddp_trainer.checkpoint.saver import Saver
from ddp_trainer.checkpoint.schedule import Due
from ddp_trainer.config import CheckpointSection
from ddp_trainer.errors import DataError, DivergedError


def due(every_steps=None, every_seconds=None, total=100):
    return Due(CheckpointSection(every_steps=every_steps, every_seconds=every_seconds), total)


@pytest.mark.parametrize(
    ("policy", "step", "last", "seconds", "answer"),
    [
        # by steps: at multiples, counted from zero and not from the last save
        (due(every_steps=10), 9, 0, 999, False),
        (due(every_steps=10), 10, 0, 0, True),
        (due(every_steps=10), 11, 10, 999, False),
        (due(every_steps=10), 20, 13, 0, True),
        (due(every_steps=10), 25, 13, 0, True),  # the multiple was missed: as soon as possible
        # by time
        (due(every_seconds=15), 3, 2, 14.9, False),
        (due(every_seconds=15), 3, 2, 15.0, True),
        # both: whichever comes first
        (due(every_steps=10, every_seconds=15), 4, 2, 15, True),
        (due(every_steps=10, every_seconds=15), 10, 9, 1, True),
        (due(every_steps=10, every_seconds=15), 11, 10, 1, False),
        # the end, and what is saved already
        (due(every_steps=1000), 100, 99, 0, True),
        (due(every_steps=1000), 101, 99, 0, True),
        (due(every_steps=10), 100, 100, 999, False),
        (due(every_seconds=15), 50, 50, 999, False),
        (due(every_seconds=15), 50, 60, 999, False),
    ],
)
def test_a_state_is_due_by_steps_by_time_and_at_the_end(policy, step, last, seconds, answer):
    assert policy(step, last, seconds) is answer


@given(st.integers(1, 50), st.integers(1, 300), st.integers(0, 299))
def test_by_steps_at_most_that_many_steps_are_ever_at_risk(every, total, start):
    policy, last = due(every_steps=every, total=total), min(start, total)
    for step in range(last + 1, total + 1):
        if policy(step, last, 0.0):
            last = step
        assert step - last < every
    assert last == total


# --- the saver -----------------------------------------------------------------------------------------------------------------------


class OneTensor:
    def tensors(self):
        return {"model.weight": torch.zeros(2)}


@dataclass
class Bench:
    """A saver on a real store, with a clock that stands still unless told."""

    store: object
    now: float = 0.0
    told: list = field(default_factory=list)

    def saver(self, describe, policy, last_step=0):
        return Saver(
            store=self.store,
            state=OneTensor(),
            due=policy,
            describe=describe,
            saving=lambda: self.told.append("saving"),
            saved=lambda manifest, seconds: self.told.append((manifest.step, seconds)),
            last_step=last_step,
            clock=lambda: self.now,
        )


@pytest.fixture
def bench(store):
    return Bench(store)


def test_offers_become_checkpoints_exactly_when_they_are_due(bench):
    saver = bench.saver(manifest_of, due(every_seconds=10, total=6))
    for step in range(1, 7):
        bench.now += 4.0
        saver.offer(step)
    assert bench.store.steps() == [3, 6]
    assert [entry for entry in bench.told if entry != "saving"] == [(3, 0.0), (6, 0.0)]


def test_a_rank_without_a_store_saves_nothing(bench):
    bench.store = None
    bench.saver(manifest_of, due(every_steps=1)).offer(1)
    assert bench.told == []


def refuse(step, files):
    raise OSError(28, "No space left on device")


def test_a_full_disk_during_training_is_a_warning_and_is_tried_again_at_the_next_interval(bench, caplog):
    saver = bench.saver(refuse, due(every_seconds=10))
    bench.now = 10.0
    with caplog.at_level(logging.WARNING):
        saver.offer(5)
        saver.offer(6)  # not at once: the interval begins again
    assert bench.told == ["saving"]
    assert [record.message for record in caplog.records] == [caplog.messages[0]]
    assert "free space" in caplog.messages[0]
    assert caplog.messages[0].endswith("training goes on")
    saver.describe = manifest_of
    bench.now = 20.0
    saver.offer(7)
    assert bench.store.steps() == [7]


def test_a_full_disk_at_the_last_step_is_an_error(bench):
    saver = bench.saver(refuse, due(every_steps=50))
    with pytest.raises(DataError, match="No space left on device"):
        saver.offer(100)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_saved(store, poison):
    class Poisoned:
        def tensors(self):
            return {"model.weight": torch.tensor([1.0, poison, 2.0])}

    saver = Saver(store, Poisoned(), due(every_steps=1), manifest_of, lambda: None, lambda *_: None, last_step=0)
    with pytest.raises(DivergedError, match=r"model\.weight is not finite after step 1: not saved"):
        saver.offer(1)
    assert store.steps() == []
