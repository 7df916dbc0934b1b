"""A block of memory is the checkpoint's files, byte for byte: what a reader of safetensors sees is what was copied into it."""

from __future__ import annotations

import mmap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from ddp_trainer.checkpoint.image import Image, tensors_of

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def state(shapes, dtypes=(torch.float32,)):
    made = {}
    for i, shape in enumerate(shapes):
        dtype = dtypes[i % len(dtypes)]
        file = ("model", "optimizer", "ema")[i % 3]
        made[f"{file}.layer{i}.weight"] = (torch.randn(shape) * 50).to(dtype)
    return made


def filled(tensors):
    image = Image.of(tensors)
    block = memoryview(mmap.mmap(-1, image.bytes))
    image.write_headers(block)
    views = image.views(block)
    for name, tensor in tensors.items():
        views[name].copy_(tensor)
    return image, block


def content(image, block):
    return {name: block[start:end] for name, start, end in image.extents()}


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=9), st.permutations(DTYPES))
def test_safetensors_itself_reads_each_file_of_the_block(shapes, dtypes):
    tensors = state(shapes, dtypes)
    image, block = filled(tensors)
    seen = {}
    for file, data in content(image, block).items():
        for name, tensor in load(bytes(data)).items():
            seen[f"{file.removesuffix('.safetensors')}.{name}"] = tensor
    assert seen.keys() == tensors.keys()
    assert all(torch.equal(seen[name], tensors[name]) and seen[name].dtype == tensors[name].dtype for name in tensors)


def test_a_block_is_read_in_place_and_holds_channels_last_weights_in_their_logical_order():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    momentum = {"optimizer.conv.weight.momentum_buffer": weight * 2}
    image, block = filled({"model.conv.weight": weight, "model.steps": torch.tensor(7), **momentum})
    found = tensors_of(content(image, block))
    assert torch.equal(found["model.conv.weight"], weight)
    assert torch.equal(found["optimizer.conv.weight.momentum_buffer"], weight * 2)
    assert found["model.steps"].shape == ()
    found["model.steps"].fill_(8)
    assert int(image.views(block)["model.steps"]) == 8, "the tensors lie in the block, they are no copies"


@pytest.mark.parametrize(
    "other",
    [
        {"model.a": torch.zeros(3, 2)},
        {"model.b": torch.zeros(2, 3)},
        {"model.a": torch.zeros(2, 3, dtype=torch.float64)},
        {"ema.a": torch.zeros(2, 3)},
    ],
)
def test_the_fingerprint_tells_other_names_shapes_and_types_apart(other):
    mine = {"model.a": torch.zeros(2, 3)}
    assert Image.of(mine).fingerprint == Image.of({"model.a": torch.ones(2, 3)}).fingerprint
    assert Image.of(mine).fingerprint != Image.of(other).fingerprint
