"""Where a run goes on from: the newest state of any node's memory, or of the disk; and every rank gets the same bits."""

from __future__ import annotations

import functools

import pytest
import torch
from gang import ranks
from hypothesis import given
from hypothesis import strategies as st
from restore_ranks import STATES, digest, empty, keep, meta_of, poisoned, put_on_disk, state_of

from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.distributed import Group, Place
from ddp_trainer.errors import DataError
from ddp_trainer.resilience import restore
from ddp_trainer.resilience.restore import NOTHING, Choice, Holding, choose
from ddp_trainer.telemetry.events import EVENTS_FILE, read_events

ALONE = Group(Place(0, 1, 0, 1, "", 0, ""), torch.device("cpu"), "gloo")
NONE = Holding(NOTHING, 0)
T, F = True, False


@pytest.mark.parametrize(
    ("what", "held", "choice"),
    [
        ("one node has something", [Holding(3, 1)], Choice(3, 0, (T,))),
        ("nobody has anything", [NONE, NONE], Choice(NOTHING, 0, (F, F))),
        ("the newest step", [Holding(3, 9), Holding(5, 1), Holding(4, 9)], Choice(5, 1, (F, T, F))),
        ("a replaced node holds nothing", [NONE, Holding(5, 1), Holding(5, 1)], Choice(5, 1, (F, T, T))),
        ("the beginning is a state, too", [NONE, Holding(0, 1)], Choice(0, 1, (F, T))),
        ("what most hold", [Holding(5, 2), Holding(5, 1), Holding(5, 1)], Choice(5, 1, (F, T, T), disagrees=True)),
        ("of two halves the lowest rank's", [Holding(5, 2), Holding(5, 1)], Choice(5, 0, (T, F), disagrees=True)),
        ("... not the lowest checksum", [NONE, Holding(5, 9), Holding(5, 1)], Choice(5, 1, (F, T, F), disagrees=True)),
        ("a majority of an older step does not count", [Holding(4, 1)] * 3 + [Holding(5, 2)], Choice(5, 3, (F, F, F, T))),
        (
            "the same bits of an older step do not count",
            [Holding(4, 2), Holding(5, 2), Holding(5, 1), Holding(4, 1)],
            Choice(5, 1, (F, T, F, F), disagrees=True),
        ),
    ],
)
def test_the_choice_is_the_newest_step_then_the_majority_then_the_lowest_rank(what, held, choice):
    assert choose(held) == choice


holdings = st.just(NONE) | st.builds(Holding, step=st.integers(0, 3), checksum=st.integers(0, 2))


@given(st.lists(holdings, min_size=1, max_size=9))
def test_whatever_is_held_nothing_newer_and_no_larger_majority_is_passed_over(held):
    choice = choose(held)
    assert choice.step == max(one.step for one in held)
    assert len(choice.has) == len(held)
    if choice.step == NOTHING:
        assert not any(choice.has)
        return
    assert choice.source == choice.has.index(True)
    taken = held[choice.source]
    assert choice.has == tuple(one == taken for one in held)
    newest = [one for one in held if one.step == choice.step]
    assert all(newest.count(taken) >= newest.count(one) for one in newest)
    assert choice.disagrees == (len(set(newest)) > 1)


# --- one rank, a real memory ---------------------------------------------------------------------------------------------------------


def refuse(_above):
    raise AssertionError("the disk was read")


def test_the_memory_is_enough_and_the_disk_is_not_even_read():
    memory, kept = empty(), state_of(1)
    keep(memory, kept, 7)
    origin = restore.find(ALONE, memory, newest_on_disk=7, load=refuse)
    assert (origin.source, origin.is_sent, origin.meta) == ("memory", False, meta_of(7))
    fresh = state_of(2, steps=0)
    restore.put(origin, fresh, ALONE)
    assert digest(fresh) == digest(kept)


def test_the_restored_state_is_no_view_of_the_memory_which_is_written_to_soon():
    memory, kept = empty(), state_of(1)
    keep(memory, kept, 7)
    fresh = state_of(2, steps=0)
    restore.put(restore.find(ALONE, memory, NOTHING, refuse), fresh, ALONE)
    for seed in (3, 4):
        keep(memory, state_of(seed), 8)
    assert digest(fresh) == digest(kept)


def test_a_newer_checkpoint_on_disk_is_loaded_with_what_its_manifest_says(tmp_path):
    memory, store, kept = empty(), CheckpointStore(tmp_path), state_of(9)
    keep(memory, state_of(1), 7)
    put_on_disk(store, kept, 9)
    origin = restore.find(ALONE, memory, 9, lambda above: store.load_newest(newer_than=above))
    assert (origin.source, origin.meta["step"], origin.meta["history"]) == ("disk", 9, [[1, {"accuracy": 0.25}]])
    assert (origin.meta["skipped"], origin.meta["wall_seconds"], origin.meta["micro_batches"]) == ([[2, 3]], 2.0, 4)
    fresh = state_of(2, steps=0)
    restore.put(origin, fresh, ALONE)
    assert digest(fresh) == digest(kept)


@pytest.mark.parametrize(("in_memory", "taken"), [((), ("disk", 5)), ((7,), ("memory", 7))])
def test_what_was_set_aside_on_the_way_is_told_whatever_is_taken_instead(tmp_path, in_memory, taken):
    store = CheckpointStore(tmp_path / "checkpoints", tell=functools.partial(restore.tell_of_bad, tmp_path))
    for step in (5, 9):
        put_on_disk(store, state_of(step), step)
    (store.folder(9) / "model.safetensors").write_bytes(b"rubbish")
    memory = empty()
    for step in in_memory:
        keep(memory, state_of(step), step)
    origin = restore.find(ALONE, memory, 9, lambda above: store.load_newest(newer_than=above))
    assert (origin.source, origin.meta["step"]) == taken
    (event,) = read_events(tmp_path / EVENTS_FILE)
    assert (event["kind"], event["step"], event["path"]) == ("quarantine", 9, str(store.root / "quarantine"))


def test_a_run_whose_checkpoints_were_all_set_aside_is_refused_at_every_start(tmp_path):
    store = CheckpointStore(tmp_path)
    put_on_disk(store, poisoned(state_of(9)), 9)
    for _ in range(2):
        newest = max(store.steps(), default=NOTHING)
        with pytest.raises(DataError, match=r"none of the 1 checkpoints .* run\.resume=never"):
            restore.find(ALONE, empty(), newest, lambda above: store.load_newest(newer_than=above))


@pytest.mark.parametrize("name", ["model.1.running_mean", "model.0.weight", "optimizer.3.bias.momentum_buffer", "ema.0.weight"])
def test_a_state_in_memory_that_is_not_finite_is_passed_over_for_the_one_before_it_and_written_over_first(name):
    memory, good = empty(), state_of(1)
    keep(memory, good, 7)
    keep(memory, poisoned(state_of(2), name), 8)
    origin = restore.find(ALONE, memory, NOTHING, refuse)
    assert (origin.source, origin.meta["step"]) == ("memory", 7)
    fresh = state_of(3, steps=0)
    restore.put(origin, fresh, ALONE)
    assert digest(fresh) == digest(good)
    keep(memory, state_of(4), 8)
    assert [snapshot.step for snapshot in memory.snapshots()] == [8, 7], "a rank that dies in that write has the good one to go back to"


def test_large_numbers_whose_sum_overflows_are_a_state_like_any_other():
    memory, large = empty(), state_of(1)
    large.tensors()["model.3.weight"].fill_(3e38)
    keep(memory, large, 7)
    assert restore.find(ALONE, memory, NOTHING, refuse).meta["step"] == 7


def test_a_checkpoint_that_is_not_finite_is_set_aside_for_an_older_one(tmp_path):
    told = []
    store = CheckpointStore(tmp_path, tell=lambda *words: told.append(words))
    put_on_disk(store, state_of(5), 5)
    put_on_disk(store, poisoned(state_of(9)), 9)
    origin = restore.find(ALONE, empty(), 9, lambda above: store.load_newest(newer_than=above))
    assert (origin.meta["step"], told) == (5, [(9, "model.1.running_var is not finite")])


def test_with_nothing_anywhere_the_run_begins_at_step_0_with_what_the_model_is():
    origin = restore.find(ALONE, empty(), NOTHING, lambda _above: None)
    assert (origin.source, origin.meta["step"], origin.is_sent) == ("nothing", 0, False)
    fresh = state_of(2, steps=0)
    before = digest(fresh)
    restore.put(origin, fresh, ALONE)
    assert digest(fresh) == before


def test_a_state_of_another_model_is_refused_in_a_sentence():
    memory = empty()
    keep(memory, state_of(1, width=5), 7)
    with pytest.raises(DataError, match=r"the state of step 7 does not fit this model: .*; give another --run-dir, or the model it was of"):
        restore.put(restore.find(ALONE, memory, NOTHING, refuse), state_of(2, width=4, steps=0), ALONE)


# --- two real ranks ------------------------------------------------------------------------------------------------------------------


@functools.cache
def two():
    return ranks("restore_ranks:found", 2)


@pytest.mark.parametrize(
    ("what", "source", "step", "seed", "is_sent"),
    [
        ("rank 0 lacks it", "memory", 7, 71, True),
        ("rank 1 lacks it", "memory", 7, 70, True),
        ("rank 1 has an older one", "memory", 7, 70, True),
        ("both have it", "memory", 7, 70, False),
        ("both have it, differing in bits", "memory", 7, 70, True),
        ("the disk is newer", "disk", 9, 90, True),
        ("the disk is older", "memory", 7, 70, True),
        ("the disk is newer and bad", "memory", 7, 70, False),
        ("only the disk has something", "disk", 9, 90, True),
        ("rank 0's newest is not finite", "memory", 7, 70, False),
        ("nobody's newest is finite", "memory", 7, 70, False),
        ("nothing in memory is finite", "disk", 5, 50, True),
    ],
)
def test_all_ranks_get_the_newest_state_bit_for_bit_whoever_had_it(what, source, step, seed, is_sent):
    for rank in two():
        assert (rank[what]["source"], rank[what]["step"], rank[what]["sent"]) == (source, step, is_sent)
        assert rank[what]["state"] == digest(state_of(seed))
        assert rank[what]["history"] == ([[1, {"accuracy": 0.25}]] if source == "disk" else [[step, {"accuracy": 0.5}]])


def test_with_nothing_anywhere_all_ranks_begin_with_rank_0s_model():
    first, second = (rank["nothing anywhere"] for rank in two())
    assert (first["source"], first["step"], first["history"]) == ("nothing", 0, None)
    assert first["before"] != second["before"]
    assert first["state"] == second["state"] == first["before"]


def test_only_rank_0_reads_the_disk_and_only_what_is_newer_than_the_memories():
    assert {what: seen["loads"] for what, seen in two()[0].items() if seen["loads"]} == {
        "the disk is newer": [7],
        "the disk is newer and bad": [7],
        "only the disk has something": [NOTHING],
        "nothing in memory is finite": [NOTHING],
        "nothing anywhere": [NOTHING],
    }
    assert all(seen["loads"] == [] for seen in two()[1].values())
    assert two()[0].keys() == STATES.keys()
