"""Words that ride on the gradients: every rank hears the same in the same step, and the gradients do not notice."""

from __future__ import annotations

import functools

import pytest
import torch
from gang import ranks
from torch import nn

from ddp_trainer.exchange.piggyback import Piggyback, Words

QUIET = {"keep": False, "leave": False}


@functools.cache
def gang(world_size):
    """What every rank has to tell: one start for all tests."""
    last = str(world_size - 1)
    said = [
        {},
        {"0": {"keep": True}},
        {},
        {last: {"leave": True}},
        {str(rank): {"keep": True, "leave": True} for rank in range(world_size)},
        {"0": {"keep": True}, last: {"leave": True}},
        {},
    ]
    apart = 1 if world_size == 2 else None  # two of them over gloo, four through memory
    return ranks("engine_ranks:everything", world_size, on_machine=apart, said=said)


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_wish_of_any_one_rank_is_heard_by_all_in_the_step_in_which_it_is_said_and_in_no_other(world_size):
    both = {"keep": True, "leave": True}
    expected = [QUIET | wish | {"own_seconds": [0.0] * world_size} for wish in ({}, {"keep": True}, {}, {"leave": True}, both, both, {})]
    assert [rank["heard"] for rank in gang(world_size)] == [expected] * world_size


@pytest.mark.parametrize(("world_size", "kind"), [(2, "real"), (2, "accumulated"), (2, "whole"), (4, "whole")])
def test_the_gradients_are_bit_for_bit_those_without_words(world_size, kind):
    """Of four ranks only whole numbers: gloo's order of summation depends on a number's place in the bucket, which words move."""
    for rank in gang(world_size):
        assert [step["with"] for step in rank[kind]] == [step["without"] for step in rank[kind]]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("kind", ["real", "accumulated", "whole"])
def test_all_ranks_have_the_same_gradients_and_hear_how_long_each_of_them_took(world_size, kind):
    own = pytest.approx([0.5 + rank for rank in range(world_size)])
    for steps in zip(*(rank[kind] for rank in gang(world_size)), strict=True):
        assert len({step["with"] for step in steps}) == 1
        assert all(step["heard"] == {"keep": True, "leave": False, "own_seconds": own} for step in steps)


def test_a_backward_pass_in_which_nothing_was_said_leaves_nothing_to_hear():
    words = Piggyback(nn.Linear(2, 1), rank=0, group_size=2, device=torch.device("cpu"))
    words(torch.ones(3, 2)).sum().backward()
    assert words.heard() == Words()


def test_what_was_heard_is_not_heard_again():
    words = Piggyback(nn.Linear(2, 1), rank=0, group_size=2, device=torch.device("cpu"))
    words.say(words(torch.ones(3, 2)).sum(), Words(leave=True)).backward()
    assert words.heard().leave
    assert words.heard() == Words()


def test_saying_something_changes_neither_loss_nor_gradient():
    model, inputs = nn.Linear(2, 1), torch.ones(3, 2)
    words = Piggyback(model, rank=1, group_size=3, device=torch.device("cpu"))
    loss = words(inputs).square().mean()
    said = words.say(loss, Words(keep=True, own_seconds=(0.25,)))
    assert torch.equal(said, loss)
    said.backward()
    with_words = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(inputs).square().mean().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(with_words, model.parameters(), strict=True))
    assert words.words.grad.tolist() == [1.0, 0.0, 0.0, 0.25, 0.0]
