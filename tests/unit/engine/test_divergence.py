"""Numbers that are not finite are found in few of the gradients, and reported with the steps that they may have come from."""

from __future__ import annotations

import pytest
import torch
from small_training import Diary, training
from torch import nn

from ddp_trainer import engine
from ddp_trainer.engine.divergence import finite_gradients, probes_of
from ddp_trainer.errors import DivergedError


def without_biases() -> nn.Sequential:
    """A norm between two convolutions, as in a ResNet: none of the weights has a bias beside it."""
    return nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))


@pytest.mark.parametrize("name", ["0.weight", "1.weight", "1.bias", "3.weight"])
def test_one_number_that_is_not_finite_in_a_probe_is_found(name):
    model = without_biases()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    assert finite_gradients(probes_of(model))
    model.get_parameter(name).grad.view(-1)[-1] = torch.nan
    assert not finite_gradients(probes_of(model))


def test_a_parameter_that_is_not_trained_is_no_probe():
    model = without_biases()
    first, last = (list(model.parameters())[i] for i in (0, -1))
    first.requires_grad_(False)
    assert not any(p is first for p in probes_of(model))
    assert any(p is last for p in probes_of(model))


def test_a_bad_step_that_only_the_report_finds_may_be_any_since_the_last_report():
    # as on a GPU, where bad steps are counted on the device and nobody looks before the report
    run = training(telemetry__log_every_steps=4)
    run.step = 4
    run.sums[2] = 1
    with pytest.raises(DivergedError, match=r"not finite at or before step 8; lower optim\.lr \(now 0\.1\)") as caught:
        engine.train(run, Diary().hooks())
    assert caught.value.window == (4, 8)
