"""Augmentation by batch: what it does to pixels, and what alone decides about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_trainer.data.augment import Augmentation, draw
from ddp_trainer.data.cache import Decoded
from ddp_trainer.data.images import ImageDataset
from ddp_trainer.data.order import global_batch, micro_batch, micro_batches_of

ALL = Augmentation(seed=11, size=32, flip=True, crop_padding=4, cutout=8)


def train_set(decoded: Decoded, **changes) -> ImageDataset:
    return ImageDataset.of(decoded, decoded.train, Augmentation(**{"seed": 11, "size": 32, **changes}))


def normalised(decoded: Decoded, pixels: np.ndarray) -> np.ndarray:
    return (pixels.astype(np.float64) - decoded.mean) / decoded.std


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_samples_look_the_same_at_any_world_size(decoded, world_size):
    dataset = train_set(decoded, crop_padding=4, cutout=8)
    indices, epochs = global_batch(11, len(dataset), 64, step=78)
    assert set(epochs.tolist()) == {0, 1}
    whole, labels = dataset.batch(indices, epochs)
    parts = [
        dataset.batch(indices[micro_batch(m, 4, 64)], epochs[micro_batch(m, 4, 64)])
        for rank in range(world_size)
        for m in micro_batches_of(rank, world_size, 4)
    ]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole)
    assert torch.equal(torch.cat([targets for _, targets in parts]), labels)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_sample_looks_the_same_in_any_batch(decoded, data):
    dataset = train_set(decoded, crop_padding=4, cutout=8)
    numbers = data.draw(st.lists(st.integers(0, 4999), min_size=1, max_size=40))
    indices, epochs = torch.tensor(numbers), torch.tensor([n % 7 for n in numbers])
    whole, _ = dataset.batch(indices, epochs)
    for place in range(len(numbers)):
        alone, _ = dataset.batch(indices[place : place + 1], epochs[place : place + 1])
        assert torch.equal(alone[0], whole[place])


def test_every_sample_is_the_crop_mirror_and_cutout_that_was_drawn(decoded):
    dataset = train_set(decoded, crop_padding=4, cutout=8)
    indices, epochs = torch.arange(400), torch.arange(400) % 5
    images, labels = dataset.batch(indices, epochs)
    draws = draw(ALL, indices.numpy(), epochs.numpy())
    for i in range(400):
        padded = np.pad(decoded.train.pixels[i], ((4, 4), (4, 4), (0, 0)), mode="reflect")
        mirrored, column = divmod(int(draws.column_variant[i]), 9)
        row = int(draws.row_shift[i])
        expected = normalised(decoded, padded[row : row + 32, column : column + 32])
        expected = expected[:, ::-1] if mirrored else expected
        top, left = int(draws.cutout_row[i]) - 4, int(draws.cutout_column[i]) - 4
        expected = expected.copy()
        expected[max(top, 0) : top + 8, max(left, 0) : left + 8] = 0
        np.testing.assert_allclose(images[i].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert labels.tolist() == decoded.train.labels[:400].tolist()


def test_shifts_mirrors_and_cutout_centres_take_all_values_evenly():
    count = 81_000
    draws = draw(ALL, np.arange(count), np.zeros(count, np.int64))
    for values, choices in ((draws.row_shift, 9), (draws.column_variant, 18), (draws.cutout_row, 32), (draws.cutout_column, 32)):
        share = np.bincount(values, minlength=choices) * choices / count
        assert len(share) == choices
        assert (np.abs(share - 1) < 0.1).all()  # 5 standard deviations
    drawn = np.stack([draws.row_shift, draws.column_variant % 9, draws.column_variant // 9, draws.cutout_row, draws.cutout_column])
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 0.02  # nothing drawn tells anything about the rest


@pytest.mark.parametrize("what", ["seed", "epoch"])
def test_another_seed_or_epoch_draws_anew(what):
    indices, zeros = np.arange(10_000), np.zeros(10_000, np.int64)
    other = draw(Augmentation(12, 32, crop_padding=4), indices, zeros) if what == "seed" else draw(ALL, indices, zeros + 1)
    same = (draw(ALL, indices, zeros).column_variant == other.column_variant).mean()
    assert 0.04 < same < 0.07  # 1/18 by chance


def test_switched_off_augmentation_leaves_the_image_as_it_is(decoded):
    dataset = train_set(decoded, flip=False)
    indices = torch.arange(64)
    assert torch.equal(dataset.batch(indices, indices)[0], dataset.batch(indices, None)[0])


def test_flip_alone_mirrors_about_half_of_the_images(decoded):
    dataset = train_set(decoded, flip=True)
    indices = torch.arange(1000)
    plain, drawn = dataset.batch(indices, None)[0], dataset.batch(indices, torch.zeros(1000, dtype=torch.int64))[0]
    mirrored = sum(torch.equal(drawn[i], plain[i].flip(2)) and not torch.equal(drawn[i], plain[i]) for i in range(1000))
    untouched = sum(torch.equal(drawn[i], plain[i]) for i in range(1000))
    assert mirrored + untouched == 1000
    assert 420 < mirrored < 580


def test_evaluation_images_are_normalised_and_otherwise_untouched(decoded):
    dataset = ImageDataset.of(decoded, decoded.test, ALL)
    images, labels = dataset.batch(torch.tensor([0, 999, 500]), None)
    expected = normalised(decoded, decoded.test.pixels[[0, 999, 500]])
    np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert labels.tolist() == decoded.test.labels[[0, 999, 500]].tolist()


@pytest.mark.parametrize("epochs", [None, torch.zeros(8, dtype=torch.int64)], ids=["evaluation", "training"])
def test_batches_are_float32_in_channels_last_layout(decoded, epochs):
    images, labels = train_set(decoded, crop_padding=4).batch(torch.arange(8), epochs)
    assert images.shape == (8, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64


def test_the_whole_training_set_has_mean_zero_and_deviation_one_per_channel(decoded):
    images, _ = train_set(decoded).batch(torch.arange(5000), None)
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_pictures_are_the_decoded_images(decoded):
    dataset = train_set(decoded)
    picture = dataset.picture(17)
    assert picture.dtype == np.uint8
    assert (picture == decoded.train.pixels[17]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: equality of CPU and GPU batches is not checked")
def test_the_gpu_makes_the_same_batches_as_the_cpu(decoded):
    on_cpu = train_set(decoded, crop_padding=4, cutout=8)
    on_gpu = on_cpu.to(torch.device("cuda", 0))
    indices, epochs = global_batch(11, len(on_cpu), 512, 9)
    assert on_gpu.pixels.device.type == "cuda"
    assert on_gpu.pixels.dtype == torch.uint8
    for of in (epochs, None):
        images, labels = on_gpu.batch(indices, of)
        assert torch.equal(images.cpu(), on_cpu.batch(indices, of)[0])
        assert torch.equal(labels.cpu(), on_cpu.batch(indices, of)[1])
