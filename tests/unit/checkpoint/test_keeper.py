"""What the training loop's `keep` does: a copy into the node's memory, and on rank 0 the request to make it durable."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from ddp_trainer.checkpoint.image import tensors_of
from ddp_trainer.checkpoint.keeper import Keeper
from ddp_trainer.checkpoint.schedule import Schedule
from ddp_trainer.checkpoint.snapshot import SnapshotMemory
from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.config import CheckpointSection


@dataclass
class Bench:
    """A keeper on a real memory, with a clock that stands still unless told."""

    now: float = 100.0
    told: list = field(default_factory=list)
    memory: SnapshotMemory | None = field(default_factory=lambda: SnapshotMemory(SnapshotMemory.create()))

    def __post_init__(self):
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.state = RunState(self.model, self.optimizer, {})
        self.do_step()

    def do_step(self):
        self.model(torch.ones(4, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def keeper(self, *, leads=True, total=100, last_step=0, **policy):
        return Keeper(
            memory=self.memory,
            state=self.state,
            schedule=Schedule(CheckpointSection(**{"every_seconds": None, "memory_every_steps": 0, **policy}), total),
            describe=lambda step, stall_seconds: {"step": step, "stall_seconds": stall_seconds},
            kept=lambda step, seconds, _every_steps: self.told.append((step, seconds)),
            leads=leads,
            last_step=last_step,
            last_durable_step=last_step,
            clock=lambda: self.now,
        )

    def offer(self, keeper, step, seconds=0.0, do_step=True):
        """As the loop does: a step, then the wish, then the keeping; the step that is wanted durable."""
        self.now += seconds
        if do_step:
            self.do_step()
        if keeper.is_due(step):
            keeper.keep(step)
        return self.wanted()

    def wanted(self):
        found = self.memory.wanted()
        return found and found.step


@pytest.fixture
def bench():
    return Bench()


def test_what_is_kept_is_the_state_after_the_step_bit_for_bit(bench):
    keeper = bench.keeper()
    for step in range(1, 5):
        bench.do_step()
        expected = {name: tensor.clone() for name, tensor in bench.state.tensors().items()}
        keeper.keep(step)
        bench.do_step()  # training goes on at once
        newest = bench.memory.newest()
        found = tensors_of(bench.memory.files(newest))
        assert newest.step == step
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [step for step, _ in bench.told] == [1, 2, 3, 4]


def test_states_become_durable_by_time_and_the_interval_begins_at_the_start_and_with_every_request(bench):
    keeper = bench.keeper(every_seconds=10)
    wanted = [bench.offer(keeper, step, seconds=4.0) for step in range(1, 8)]
    assert wanted == [None, None, 3, 3, 3, 6, 6]
    assert keeper.last_asked == keeper.last_durable_step == 6


def test_states_become_durable_by_steps_and_at_the_end(bench):
    keeper = bench.keeper(every_steps=4, total=10)
    assert [bench.offer(keeper, step) for step in range(1, 11)] == [None, None, None, 4, 4, 4, 4, 8, 8, 10]


def test_after_a_resume_the_count_goes_on_where_the_disk_is(bench):
    keeper = bench.keeper(every_steps=4, last_step=9)
    assert [bench.offer(keeper, step) for step in range(10, 13)] == [None, None, 12]
    assert keeper.last_asked == 12
    assert bench.keeper(last_step=9).last_asked is None, "what lies on disk was not asked for here"


def test_snapshots_in_memory_do_not_ask_for_the_disk(bench):
    keeper = bench.keeper(memory_every_steps=2, every_steps=5)
    assert [bench.offer(keeper, step) for step in range(1, 10)] == [None, None, None, None, 5, 5, 5, 5, 5]
    assert [step for step, _ in bench.told] == [2, 4, 5, 7, 9]


def test_a_state_that_is_kept_because_another_rank_wished_it_is_durable_if_that_is_due(bench):
    keeper = bench.keeper(every_seconds=10)
    keeper.keep(1)
    assert bench.wanted() is None
    bench.now += 10
    keeper.keep(2)
    assert bench.wanted() == 2


def test_durability_can_be_asked_for_when_nothing_is_due(bench):
    keeper = bench.keeper()
    keeper.keep(5, durable=True)
    assert (bench.wanted(), keeper.last_asked, keeper.last_durable_step) == (5, 5, 5)


def test_what_is_secured_before_an_evaluation_waits_for_it_until_it_becomes_durable(bench):
    keeper = bench.keeper(every_seconds=10)
    bench.now += 10
    keeper.secure(5)
    assert (bench.memory.newest().step, bench.wanted()) == (5, None)
    keeper.keep(5)
    assert bench.wanted() == 5
    assert [step for step, _ in bench.told] == [5, 5]


def test_a_state_that_is_there_is_not_secured_again(bench):
    keeper = bench.keeper(last_step=4)
    keeper.secure(4)  # resumed there
    keeper.keep(6)
    keeper.secure(6)
    assert [step for step, _ in bench.told] == [6]


def test_only_rank_0_asks_for_the_disk_and_the_others_only_keep(bench):
    keeper = bench.keeper(leads=False, every_steps=1)
    keeper.keep(1)
    keeper.keep(100, durable=True)
    assert bench.memory.wanted_number() == 0
    assert bench.memory.newest().step == 100
    assert keeper.last_asked is None


def test_a_rank_without_a_memory_does_nothing_but_stays_in_step(bench):
    bench.memory = None
    keeper = bench.keeper(leads=False, every_steps=1)
    keeper.keep(1)
    assert bench.told == []
    assert keeper.last_step == 1
    assert keeper.last_durable_step == 0


def test_the_time_that_training_stands_still_is_measured_told_and_fed_to_the_schedule(bench):
    class Slow(RunState):
        def copy_to(self, views):
            bench.now += 0.25
            super().copy_to(views)

    bench.state = Slow(bench.model, bench.optimizer, {})
    keeper = bench.keeper()
    keeper.keep(1)
    assert bench.told == [(1, 0.25)]
    assert bench.memory.newest().meta["stall_seconds"] == 0.25
    assert keeper.schedule.stall_seconds == 0.25
    keeper.keep(2, 0.5)
    assert bench.told[-1][1] == 0.75, "what it took to make all ranks' states equal before is part of it"


def test_making_room_for_the_first_snapshot_is_not_what_a_snapshot_costs(bench, monkeypatch):
    reserve = bench.memory.reserve

    def slowly(*arguments, **named):
        bench.now += 9
        reserve(*arguments, **named)

    monkeypatch.setattr(bench.memory, "reserve", slowly)
    keeper = bench.keeper()
    keeper.keep(1)
    keeper.keep(2)
    assert bench.told == [(1, 0.0), (2, 0.0)]


def test_a_snapshot_before_the_first_step_has_been_done_does_not_stand_in_the_way_of_later_ones():
    """A run whose first steps are passed over has an optimizer without momentum until it does one."""
    bench = Bench()
    bench.optimizer.state.clear()
    keeper = bench.keeper()
    keeper.keep(1)
    bench.do_step()
    keeper.keep(2)
    found = tensors_of(bench.memory.files(bench.memory.newest()))
    assert found.keys() == bench.state.tensors().keys()


def test_while_rank_0_writes_and_the_writer_holds_one_there_is_still_the_newest_to_fall_back_to(bench):
    seen = []

    class Watched(RunState):
        def copy_to(self, views):
            newest = bench.memory.newest()
            seen.append(newest and newest.step)
            super().copy_to(views)

    bench.state = Watched(bench.model, bench.optimizer, {})
    keeper = bench.keeper()
    keeper.keep(1, durable=True)
    held = bench.memory.wanted()
    bench.memory.hold(held)
    for step in range(2, 8):
        keeper.keep(step)
        assert bench.memory.is_intact(held)
    assert seen == [None, 1, 2, 3, 4, 5, 6]


def test_a_slot_in_which_somebody_died_is_whole_again_whatever_he_left_there(bench):
    keeper = bench.keeper(memory_every_steps=1)
    for step in range(1, 7):
        bench.offer(keeper, step)
        for slot in range(3):
            if slot != bench.memory.newest().slot:
                bench.memory.block(slot)[:] = b"\xc1" * len(bench.memory.block(slot))
    found = tensors_of(bench.memory.files(bench.memory.newest()))
    assert torch.equal(found["model.weight"], bench.model.weight)
