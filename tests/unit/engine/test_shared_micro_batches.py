"""Three real ranks share four micro-batches: the sums are those of one rank, and all leave together."""

from __future__ import annotations

import functools

import pytest
import torch
from engine_ranks import shared_training
from gang import ranks
from small_training import ALONE

from ddp_trainer.distributed import Group

STEPS, LEAVE_AT = 6, 3


@functools.cache
def three():
    return ranks("engine_ranks:sharing", 3, steps=STEPS, leave_at=LEAVE_AT)


@functools.cache
def alone():
    return shared_training(Group(ALONE, torch.device("cpu"), "gloo"), STEPS)


def test_the_parameters_are_those_of_one_rank_up_to_rounding():
    assert len({str(rank["parameters"]) for rank in three()}) == 1, "ranks disagree"
    for name, expected in alone()["parameters"].items():
        assert torch.allclose(torch.tensor(three()[0]["parameters"][name]), torch.tensor(expected), rtol=1e-4, atol=1e-6), name


def test_each_sample_is_computed_once_and_the_last_rank_has_two_of_the_four_shares():
    asked = [
        [rank["asked"][step * share : (step + 1) * share] for rank, share in zip(three(), (1, 1, 2), strict=True)] for step in range(STEPS)
    ]
    whole = alone()["asked"]
    for step, by_rank in enumerate(asked):
        assert [batch for share in by_rank for batch in share] == whole[4 * step : 4 * step + 4]


def test_the_loss_is_the_mean_over_samples_and_not_over_ranks():
    for rank in three():
        assert rank["losses"] == pytest.approx(alone()["losses"], rel=1e-4)


def test_every_rank_knows_how_long_each_of_them_took_for_its_part():
    for step in zip(*(rank["own_seconds"] for rank in three()), strict=True):
        assert step[0] == step[1] == step[2]
        assert len(step[0]) == 3
    assert all(seconds > 0 for seconds in three()[0]["own_seconds"][-1])


def test_when_the_last_rank_is_asked_all_keep_the_same_step_and_leave():
    assert [rank["leaving"] for rank in three()] == [{"left": LEAVE_AT, "kept": [[LEAVE_AT]], "stepped": [1, 2, 3]}] * 3
