"""The state of a run comes back bit for bit, in the memory layout it had, and a state that does not fit is refused with its name."""

from __future__ import annotations

import pytest
import torch
from small_checkpoints import manifest_of
from torch import nn

from ddp_trainer.checkpoint.image import Image, tensors_of
from ddp_trainer.checkpoint.manifest import BadCheckpointError
from ddp_trainer.checkpoint.state import RunState


def network(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, 2))


def trained(steps=2, width=4, optimizer=torch.optim.SGD, **settings):
    """A channels_last network after some real steps, with an average beside it."""
    torch.manual_seed(0)
    model = network(width).to(memory_format=torch.channels_last)
    settings = settings or {"lr": 0.1, "momentum": 0.9}
    run = RunState(model, optimizer(model.parameters(), **settings), {n: p.detach().clone() for n, p in model.named_parameters()})
    for step in range(steps):
        train_a_step(run, step)
    return run


def train_a_step(run, step):
    torch.manual_seed(step)
    run.model(torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)).square().mean().backward()
    run.optimizer.step()
    run.optimizer.zero_grad()
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            run.ema[name].lerp_(parameter, 0.1)


def layouts(run):
    """Strides of every live tensor of the state."""
    return {name: tensor.stride() for name, tensor in run._live()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weights_momentum_and_average_come_back_bit_for_bit_and_keep_their_strides():
    saved = trained()
    fresh = trained(steps=0)
    fresh.restore(saved.tensors())
    assert same(fresh.tensors(), saved.tensors())
    assert layouts(fresh) == layouts(saved)


def test_the_convolutions_are_channels_last_in_this_test():
    run = trained()
    momentum = run.optimizer.state[run.model[0].weight]["momentum_buffer"]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (run.model[0].weight, momentum, run.ema["0.weight"]))
    assert not run.model[0].weight.is_contiguous()


def test_a_restored_run_trains_on_as_the_undisturbed_one():
    undisturbed, resumed = trained(), trained(steps=0)
    resumed.restore(undisturbed.tensors())
    for step in range(2, 5):
        train_a_step(undisturbed, step)
        train_a_step(resumed, step)
    assert same(resumed.tensors(), undisturbed.tensors())


def in_memory(run):
    """A copy of the state as snapshots have it: in a block of memory that is the files of a checkpoint."""
    image = Image.of(run.tensors())
    block = memoryview(bytearray(image.bytes))
    image.write_headers(block)
    run.copy_to(image.views(block))
    return {name: block[start:end] for name, start, end in image.extents()}


def test_a_state_goes_through_memory_unchanged():
    saved, fresh = trained(), trained(steps=0)
    fresh.restore(tensors_of(in_memory(saved)))
    assert same(fresh.tensors(), saved.tensors())
    assert layouts(fresh) == layouts(saved)


def test_a_state_goes_through_the_store_unchanged(store):
    saved, fresh = trained(), trained(steps=0)
    store.commit({name: [content] for name, content in in_memory(saved).items()}, lambda files: manifest_of(2, files), 1)
    fresh.restore(store.load_newest().tensors)
    assert same(fresh.tensors(), saved.tensors())
    assert layouts(fresh) == layouts(saved)


def test_what_was_copied_does_not_change_when_training_goes_on():
    run = trained()
    expected = {name: tensor.clone() for name, tensor in run.tensors().items()}
    copied = tensors_of(in_memory(run))
    train_a_step(run, 9)
    assert same(copied, expected)
    assert not same(run.tensors(), expected), "the live state was to change"


def test_an_optimizer_with_counters_of_its_own_comes_back_too():
    saved = trained(optimizer=torch.optim.AdamW, lr=0.01)
    fresh = trained(steps=0, optimizer=torch.optim.AdamW, lr=0.01)
    fresh.restore(saved.tensors())
    assert same(fresh.tensors(), saved.tensors())
    assert layouts(fresh) == layouts(saved)


def shapes(run):
    return {name: tuple(tensor.shape) for name, tensor in run.tensors().items()}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_rank_that_has_no_file_makes_the_same_slots_from_their_shapes(optimizer):
    settings = {"lr": 0.1, "momentum": 0.9} if optimizer is torch.optim.SGD else {"lr": 0.1}
    saved, other = trained(optimizer=optimizer, **settings), trained(steps=0, optimizer=optimizer, **settings)
    slots = {name: shape for name, shape in shapes(saved).items() if name.startswith("optimizer.")}
    assert not shapes(other).keys() & slots.keys()
    other.make_slots(slots)
    assert list(shapes(other).items()) == list(shapes(saved).items()), "in one order, since they are sent in it"
    assert layouts(other) == layouts(saved)


def test_slots_that_are_there_are_left_as_they_are():
    run = trained()
    before = {name: tensor.clone() for name, tensor in run.tensors().items()}
    run.make_slots({name: shape for name, shape in shapes(run).items() if name.startswith("optimizer.")})
    assert same(run.tensors(), before)


def test_the_norm_statistics_and_their_counter_are_part_of_the_state():
    assert {"model.1.running_mean", "model.1.running_var", "model.1.num_batches_tracked"} <= trained().tensors().keys()


def refusals():
    right = trained().tensors()
    yield "another width", trained(width=5).tensors(), r"0\.(weight|bias).* is \(5,.*\) in the file, \(4,.*\) in the model"
    yield "a missing name", {n: t for n, t in right.items() if n != "model.3.bias"}, r"1 names do not match, such as model\.3\.bias"
    yield "a name too many", right | {"model.9.bias": torch.zeros(1)}, r"1 names do not match, such as model\.9\.bias"
    yield "no average", {n: t for n, t in right.items() if not n.startswith("ema.")}, "6 names do not match, such as ema"
    stray = {"optimizer.9.bias.momentum_buffer": torch.zeros(1)}
    yield "a slot of nobody", right | stray, "9.bias.momentum_buffer belongs to no parameter"


@pytest.mark.parametrize("which", range(5))
def test_a_state_that_does_not_fit_is_refused_with_the_name(which):
    _, tensors, sentence = list(refusals())[which]
    with pytest.raises(BadCheckpointError, match=sentence):
        trained().restore(tensors)
