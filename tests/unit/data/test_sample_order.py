"""The order of samples, the stream of batches and their division among ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.data.order import evaluation_slice, global_batch, micro_batch, micro_batches_of, order
from ddp_trainer.errors import ConfigError

GOLDEN_ORDER = [4, 9, 7, 1, 8, 3, 6, 0, 2, 5]
GOLDEN_LATER_ORDER = [4, 0, 6, 1, 5, 8, 3, 7, 9, 2]

seeds = st.integers(0, 2**63)
sizes = st.integers(1, 300)


@given(seeds, st.integers(0, 10**9), sizes)
def test_order_of_every_epoch_is_a_permutation(seed, epoch, size):
    assert sorted(order(seed, epoch, size)) == list(range(size))


def test_order_changes_with_seed_and_with_epoch():
    orders = [order(seed, epoch, 5000).tobytes() for seed in range(8) for epoch in range(8)]
    assert len(set(orders)) == 64


def test_order_is_the_same_on_every_machine_and_version():
    # a change here makes every interrupted run continue with other samples: then raise the checkpoint format instead
    assert order(0, 0, 10).tolist() == GOLDEN_ORDER
    assert order(7, 3, 10).tolist() == GOLDEN_LATER_ORDER


def test_neighbours_in_the_data_set_are_not_neighbours_in_the_order():
    places = np.argsort(order(3, 5, 10_000))
    distance = np.abs(np.diff(places)).mean() / 10_000
    assert 0.32 < distance < 0.35  # 1/3 for independent places


@given(seeds, sizes, st.integers(1, 700), st.integers(1, 5))
def test_every_sample_occurs_exactly_once_in_every_epoch_of_the_stream(seed, size, batch, epochs):
    steps = -(-epochs * size // batch)
    pieces = [global_batch(seed, size, batch, step) for step in range(steps)]
    assert all(len(indices) == batch == len(of) for indices, of in pieces)
    indices, of_epoch = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    assert indices.dtype == of_epoch.dtype == torch.int64
    for epoch in range(epochs):
        assert indices[of_epoch == epoch].tolist() == order(seed, epoch, size).tolist()
    assert (of_epoch.diff() >= 0).all()


def test_a_batch_may_straddle_two_epochs():
    indices, epochs = global_batch(0, size=10, batch=4, step=2)
    assert epochs.tolist() == [0, 0, 1, 1]
    assert indices.tolist() == [*order(0, 0, 10)[8:], *order(0, 1, 10)[:2]]


def test_a_step_far_ahead_needs_none_of_the_steps_before_it():
    _, epochs = global_batch(0, size=50_000, batch=512, step=10**9)
    assert epochs[0] == 10**9 * 512 // 50_000


def test_a_batch_is_the_callers_own():
    first, _ = global_batch(1, 100, 10, 0)
    expected = first.clone()
    first.zero_()
    assert torch.equal(global_batch(1, 100, 10, 0)[0], expected)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_micro_batches_partition_the_global_batch(world_size):
    batch, parts = 64, 4
    places = list(range(batch))
    dealt = [
        place
        for rank in range(world_size)
        for m in micro_batches_of(rank, world_size, parts)
        for place in places[micro_batch(m, parts, batch)]
    ]
    assert dealt == places


@given(st.integers(1, 32), st.integers(0, 40), st.integers(1, 16))
def test_every_rank_gets_consecutive_micro_batches_and_nobody_more_than_one_more(world_size, more, per_micro_batch):
    parts = world_size + more
    batch = parts * per_micro_batch
    shares = [micro_batches_of(rank, world_size, parts) for rank in range(world_size)]
    assert [m for share in shares for m in share] == list(range(parts))
    assert {len(share) for share in shares} <= {parts // world_size, -(-parts // world_size)}
    assert {len(range(batch)[micro_batch(m, parts, batch)]) for m in range(parts)} == {per_micro_batch}


def test_more_ranks_than_micro_batches_are_refused_on_every_rank_alike():
    for rank in range(5):
        with pytest.raises(
            ConfigError, match=r"data\.micro_batches is 4, too few for 5 ranks; start no more than 4 of them, or begin anew"
        ):
            micro_batches_of(rank, 5, 4)


@given(st.integers(1, 64), st.integers(0, 1000))
def test_evaluation_counts_every_image_exactly_once_over_all_ranks(world_size, size):
    shares = [evaluation_slice(rank, world_size, size) for rank in range(world_size)]
    assert [i for share in shares for i in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
