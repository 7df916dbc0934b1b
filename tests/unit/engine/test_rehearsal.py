"""A backward pass of zeros in the order of a real one leaves DDP as the real one does."""

from __future__ import annotations

import functools

import pytest
import torch
from gang import ranks
from torch import nn

from ddp_trainer.engine.rehearsal import arrivals, is_whole, rehearse


@functools.cache
def three():
    return ranks("engine_ranks:begun_thrice", 3, on_machine=1)  # over gloo, where a bucket's slices are summed in orders of their own


@functools.cache
def three_of_one_machine():
    return ranks("engine_ranks:begun_thrice", 3)


def model():
    return nn.Sequential(nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 3, 4]])
def test_zeros_arrive_in_the_order_asked_for_and_in_the_layout_of_their_parameters(order):
    network = model()
    with arrivals(network) as seen:
        rehearse(order, network).backward()
    assert seen == order
    for parameter in network.parameters():
        assert parameter.grad.stride() == parameter.stride()
        assert not parameter.grad.any()


def test_a_real_pass_is_seen_in_the_order_of_the_computation():
    network = model()
    with arrivals(network) as seen:
        network(torch.ones(2, 1, 4, 4)).sum().backward()
    assert is_whole(seen, network)
    assert {seen[0], seen[1]} == {4, 5}, "the last layer's come first"


def test_a_sparse_gradient_leaves_the_order_short():
    network = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    with arrivals(network) as seen:
        network(torch.tensor([1, 2])).sum().backward()
    assert not is_whole(seen, network)


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, inputs, _parameter):
        return inputs.clone()

    @staticmethod
    def backward(_ctx, gradient):
        return gradient, None


class _Ignoring(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.ignored = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def forward(self, inputs):
        return _NoGradient.apply(inputs * self.used, self.ignored)


def test_a_users_function_without_a_gradient_is_no_error():
    network = _Ignoring()
    with arrivals(network) as seen:
        network(torch.ones(2)).sum().backward()
    assert set(seen) <= {0, 1}
    assert 0 in seen


@pytest.mark.parametrize("order", [[], [0], [0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_an_order_of_another_model_is_not_whole(order):
    assert not is_whole(order, model())


def test_what_follows_is_equal_bit_for_bit_and_needs_neither_a_batch_nor_the_other_ranks():
    for real, rehearsed, _ in three():
        assert is_whole(real["order"], nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(8)))
        assert real["order"] != sorted(real["order"], reverse=True), "the definition's order would do"
        assert (real["passes"], rehearsed["passes"]) == (1, 0)
        assert (real["exchanged"] > 0, rehearsed["exchanged"]) == (True, 0)
        assert rehearsed["order"] == real["order"]
        assert rehearsed["parameters"] == real["parameters"]


def test_another_order_would_not_be_equal():
    real, _, wrong = three()[0]
    assert wrong["parameters"] != real["parameters"]


def test_on_one_machine_any_order_is_equal_since_the_sum_is_in_the_order_of_the_ranks():
    for real, rehearsed, wrong in three_of_one_machine():
        assert wrong["order"] != real["order"]
        assert real["parameters"] == rehearsed["parameters"] == wrong["parameters"]
