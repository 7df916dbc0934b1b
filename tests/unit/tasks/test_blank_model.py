"""A model for a saved state is built without values of its own where its task allows it, and is the saved one once it has them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.config import validate
from ddp_trainer.engine.building import build_optimizer
from ddp_trainer.tasks.blank import all_in_state, build_model
from ddp_trainer.tasks.cifar10 import Cifar10
from ddp_trainer.tasks.registry import load_task


def task_of(model="resnet18", stem="imagenet", task=None, cache_dir=None):
    sections = {"model": {"name": model, "stem": stem}, "data": {"cache_dir": str(cache_dir)}}
    return task(validate(sections, "the test")) if task else load_task(validate(sections, "the test"))


def built(task, layout=torch.channels_last, *, is_blank):
    torch.manual_seed(7)
    return build_model(task, is_blank=is_blank).to(memory_format=layout)


def state_of(model):
    return RunState(model, build_optimizer(validate({}, "the test"), model), {})


class WithAnOddHead(Cifar10):
    """The model has a tensor that no state holds, and says so by not being marked."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.register_buffer("noise", torch.rand(3), persistent=False)
        return model


class Wrapped(Cifar10):
    """Looks like the marked method, and does more."""

    @functools.wraps(Cifar10.build_model)
    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.register_buffer("noise", torch.rand(3), persistent=False)
        return model


class Truncated(Cifar10):
    """Draws again until all of a parameter is within bounds, as vision transformers do, in both of torch's ways."""

    @all_in_state
    def build_model(self) -> nn.Module:
        model = nn.Linear(64, 64)
        nn.init.trunc_normal_(model.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.trunc_normal_(model.bias, std=0.02, a=0.03, b=0.2)
        return model


class MarkedSmall(Cifar10):
    @all_in_state
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 30 * 30, len(self.classes)))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("model", "stem"), [("resnet18", "cifar"), ("resnet50", "imagenet"), ("resnext50_32x4d", "imagenet")])
def test_a_built_in_model_is_the_saved_one_once_it_has_its_state(cache_dir, model, stem, layout):
    task = task_of(model, stem, cache_dir=cache_dir)
    saved = built(task, layout, is_blank=False)
    with torch.no_grad():
        for buffer in saved.buffers():
            buffer.add_(1)  # not what any model begins with
    blank = built(task, layout, is_blank=True)
    with torch.no_grad():
        for tensor in (*blank.parameters(), *blank.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)  # the worst that fresh memory may hold
    state_of(blank).restore(state_of(saved).tensors())
    for (name, tensor), (_, other) in zip(
        [*saved.named_parameters(), *saved.named_buffers()], [*blank.named_parameters(), *blank.named_buffers()], strict=True
    ):
        assert torch.equal(tensor, other), name
        assert tensor.stride() == other.stride(), name  # the layout decides which kernels run, and so how sums are rounded
        assert tensor.requires_grad == other.requires_grad, name


@pytest.mark.parametrize("task", [None, MarkedSmall])
def test_a_marked_task_draws_nothing_for_a_saved_state(cache_dir, task):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    build_model(task_of(task=task, cache_dir=cache_dir), is_blank=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fresh_run_has_its_first_values(cache_dir):
    task = task_of(cache_dir=cache_dir)
    torch.manual_seed(7)
    expected = task.build_model()
    model = built(task, is_blank=False)
    assert all(torch.equal(mine, other) for mine, other in zip(model.parameters(), expected.parameters(), strict=True))


def test_a_draw_that_is_repeated_until_it_is_within_bounds_comes_to_an_end_whatever_memory_held(cache_dir, monkeypatch):
    fresh = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **words: fresh(*shape, **words).fill_(1e30))
    assert torch.empty(1).item() == pytest.approx(1e30)
    model = build_model(task_of(task=Truncated, cache_dir=cache_dir), is_blank=True)
    assert (model.weight.shape, model.bias.shape) == ((64, 64), (64,))


@pytest.mark.parametrize("task", [WithAnOddHead, Wrapped])
def test_one_that_overrides_a_marked_method_is_built_in_full(cache_dir, task):
    task = task_of(task=task, cache_dir=cache_dir)
    full, restarted = built(task, is_blank=False), built(task, is_blank=True)
    assert torch.equal(restarted.noise, full.noise)
    assert all(torch.equal(mine, other) for mine, other in zip(restarted.parameters(), full.parameters(), strict=True))
