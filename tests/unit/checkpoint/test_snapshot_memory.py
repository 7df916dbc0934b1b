"""The memory tier: whoever dies in the middle of a snapshot, the last complete one is there, and nobody overwrites what is needed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddp_trainer.checkpoint.image import Image, tensors_of
from ddp_trainer.checkpoint.snapshot import SnapshotMemory
from ddp_trainer.errors import DataError

TAKER = Path(__file__).with_name("snapshot_taker.py")
IMAGE = Image.of({"model.w": torch.zeros(1000), "optimizer.w.m": torch.zeros(1000)})


def memory(slots=3, image=IMAGE):
    made = SnapshotMemory(SnapshotMemory.create())
    made.reserve(image, slots)
    return made


def take(where, step, durable=False):
    def fill(slot):
        for view in IMAGE.views(where.block(slot)).values():
            view.fill_(step)

    return where.write(fill, lambda: {"step": step}, durable=durable)


def value(where, snapshot):
    found = tensors_of(where.files(snapshot))
    assert {float(t.min()) for t in found.values()} == {float(t.max()) for t in found.values()}, "torn"
    return float(found["model.w"][0])


def test_another_process_view_sees_the_newest_snapshot_complete():
    mine = memory()
    assert mine.newest() is None
    for step in range(1, 8):
        take(mine, step)
        theirs = SnapshotMemory(mine.descriptor)
        assert theirs.newest().step == step
        assert value(theirs, theirs.newest()) == step


def test_the_same_bits_have_the_same_checksum_and_one_flipped_bit_another():
    a, b = memory(), memory(slots=2)
    take(a, 1)
    one, two = take(a, 5), take(b, 5)
    assert a.checksum(one) == b.checksum(two)
    b.files(two)["optimizer.safetensors"][-1] ^= 1
    assert a.checksum(one) != b.checksum(two)


def test_a_description_of_ten_thousand_metrics_has_room():
    mine, metrics = memory(), {f"recall/of-the-class-{number:05}": 1 / 3 for number in range(10_000)}
    mine.write(lambda _: None, lambda: {"step": 7, "metrics": metrics}, durable=False)
    assert SnapshotMemory(mine.descriptor).newest().meta["metrics"] == metrics


def test_a_snapshot_that_waits_for_the_writer_or_is_held_by_it_is_not_overwritten():
    mine = memory(slots=3)
    held = take(mine, 1, durable=True)
    mine.hold(mine.wanted())
    waiting = take(mine, 2, durable=True)
    for step in range(3, 9):
        take(mine, step)
        assert mine.is_intact(held)
        assert mine.is_intact(waiting)
        assert mine.wanted().step == 2
        assert mine.newest().step == step
    mine.hold(None)
    newer = take(mine, 9, durable=True)
    assert mine.wanted().step == 9, "a newer request replaces the one that waits"
    for step in range(10, 14):
        take(mine, step)
    assert mine.is_intact(newer)
    assert not mine.is_intact(held)


def test_with_two_slots_the_newest_complete_snapshot_survives_every_write():
    mine = memory(slots=2)
    take(mine, 1)
    for step in range(2, 6):
        before = mine.newest()

        def die(slot):
            raise RuntimeError("killed in the middle")

        with pytest.raises(RuntimeError):
            mine.write(die, lambda: {"step": 99}, durable=False)
        assert mine.newest() == before
        take(mine, step)
        assert mine.newest().step == step


def test_what_is_held_survives_a_restart_of_the_ranks_and_goes_with_another_model():
    mine = memory(slots=2)
    take(mine, 7)
    again = SnapshotMemory(mine.descriptor)
    again.reserve(IMAGE, 2)
    assert again.newest().step == 7
    again.reserve(Image.of({"model.other": torch.zeros(5000)}), 2)
    assert again.newest() is None
    assert mine.newest() is None
    mine.reserve(IMAGE, 2)
    take(mine, 8)
    assert value(again, again.newest()) == 8


def test_what_is_forgotten_is_gone_for_all_and_leaves_what_was_written_over_it_alone():
    mine = memory(slots=2)
    first = take(mine, 7)
    take(mine, 8)
    theirs = SnapshotMemory(mine.descriptor)
    assert [snapshot.step for snapshot in theirs.snapshots()] == [8, 7]
    mine.forget(mine.newest())
    assert theirs.newest() == first
    take(mine, 9)
    take(mine, 10)
    mine.forget(first)
    assert [snapshot.step for snapshot in theirs.snapshots()] == [10, 9]


def test_leaving_and_attempts_are_told_across_processes():
    mine = memory()
    theirs = SnapshotMemory(mine.descriptor)
    mine.begin_attempt(4)
    assert theirs.attempt() == 4
    assert not theirs.leave_asked(4)
    mine.ask_to_leave(4)
    assert theirs.leave_asked(4)
    assert not theirs.leave_asked(5), "ranks of a later attempt were not asked"


def test_too_little_memory_is_one_sentence(monkeypatch):
    mine = SnapshotMemory(SnapshotMemory.create())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DataError, match="no memory for 3 snapshots of 0 MB on this node: No space left on device; give it more"):
        mine.reserve(IMAGE, 3)


@pytest.fixture(scope="module")
def takers():
    """A memory, and a process that forks takers of snapshots into it."""
    descriptor = SnapshotMemory.create()
    command = [sys.executable, TAKER, str(descriptor)]
    with subprocess.Popen(command, pass_fds=[descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        yield descriptor, program
        program.kill()


def start_taker(program, stop_in_fill_of=-1):
    """Its pid; what follows in the program's output are the steps that it has taken."""
    program.stdin.write(f"{stop_in_fill_of}\n")
    program.stdin.flush()
    return int(program.stdout.readline())


def steps_until_killed(program):
    return [int(step) for step in iter(program.stdout.readline, f"ended {signal.SIGKILL:d}\n")]


def check(descriptor, at_least):
    where = SnapshotMemory(descriptor)
    newest = where.newest()
    assert newest.step >= at_least
    found = tensors_of(where.files(newest))
    assert torch.equal(found["model.w"], torch.full_like(found["model.w"], newest.step))
    assert torch.equal(found["optimizer.w.momentum_buffer"], torch.full_like(found["model.w"], -newest.step))
    return newest.step


def test_a_rank_killed_in_the_middle_of_a_snapshot_leaves_the_one_before(takers):
    descriptor, program = takers
    newest = SnapshotMemory(descriptor).newest()
    before = newest.step if newest else 0
    start_taker(program, stop_in_fill_of=before + 5)
    assert steps_until_killed(program) == [before + 1, before + 2, before + 3, before + 4]
    assert check(descriptor, 4) == before + 4


def test_ranks_killed_at_random_never_leave_a_torn_snapshot(takers):
    descriptor, program = takers
    reached, chance = 0, random.Random(3)
    for _ in range(6):
        pid = start_taker(program)
        for _ in range(chance.randrange(2, 400)):
            said = int(program.stdout.readline())
        os.kill(pid, signal.SIGKILL)
        steps_until_killed(program)
        reached = check(descriptor, max(said, reached))
