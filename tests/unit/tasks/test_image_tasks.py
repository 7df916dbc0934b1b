"""The built-in tasks: models, classes, loss and metrics."""

from __future__ import annotations

import io
import tarfile

import pytest
import torch
from torch.nn import functional

from ddp_trainer.config import RunConfig, validate
from ddp_trainer.data.sources import SAMPLE
from ddp_trainer.errors import ConfigError, DataError
from ddp_trainer.tasks.cifar10 import CLASSES
from ddp_trainer.tasks.registry import load_task
from ddp_trainer.tasks.resnet import build_resnet, resnet_names


def silent(what, done, total):
    pass


def configured(**sections) -> RunConfig:
    return validate(sections, "the test")


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """A tar of two classes that are not CIFAR-10's ten, renamed from real images."""
    path = tmp_path_factory.mktemp("animals") / "animals.tar"
    with tarfile.open(SAMPLE) as whole, tarfile.open(path, "w") as small:
        for member in whole:
            split, label, name = member.name.split("/")
            if label in {"cat", "dog"} and int(name[:4]) < 20:
                content = whole.extractfile(member).read()
                member.name = f"{split}/my-{label}/{name}"
                small.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_resnets_of_all_kinds_are_known(name):
    assert name in resnet_names()


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("cifar", 32)])
def test_the_stem_decides_how_far_a_32_pixel_image_is_shrunk_before_the_first_block(stem, side):
    model = build_resnet("resnet18", stem, classes=10)
    seen = []
    model.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 64, side, side)]


def test_the_cifar_stem_is_initialised_like_the_rest():
    torch.manual_seed(0)
    weight = build_resnet("resnet18", "cifar", 10).conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"model.name is 'vgg16'; known are .*resnet50, .*wide_resnet50_2"):
        build_resnet("vgg16", "imagenet", 10)


def test_cifar10_trains_on_the_sample_and_its_first_step_lowers_the_loss(cache_dir):
    task = load_task(configured(data={"cache_dir": str(cache_dir)}, model={"name": "resnet18"}))
    train, test = task.datasets(silent)
    assert (len(train), len(test), tuple(task.classes)) == (5000, 1000, CLASSES)
    torch.manual_seed(0)
    model = task.build_model().train()
    images, labels = train.batch(torch.arange(0, 5000, 250), torch.zeros(20, dtype=torch.int64))
    assert labels.unique().tolist() == list(range(10))
    before = task.loss(model(images), labels)
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.01 * parameter.grad)
    assert task.loss(model(images), labels) < before


def test_cifar10_refuses_other_classes_and_says_which_task_takes_them(tmp_path, animals):
    task = load_task(configured(data={"cache_dir": str(tmp_path), "source": str(animals)}))
    with pytest.raises(DataError, match=r"has the classes my-cat, my-dog, not the ten of CIFAR-10; set task.name=imagefolder"):
        task.datasets(silent)


@pytest.mark.parametrize(("size", "side"), [(None, 64), (48, 48)])
def test_imagefolder_takes_any_classes_and_scales_to_the_asked_size(tmp_path, animals, size, side):
    data = {"cache_dir": str(tmp_path), "source": str(animals), "image_size": size}
    task = load_task(configured(task={"name": "imagefolder"}, data=data, model={"name": "resnet18"}))
    train, test = task.datasets(silent)
    assert tuple(task.classes) == ("my-cat", "my-dog")
    assert (len(train), len(test)) == (40, 40)
    images, labels = test.batch(torch.tensor([0, 39]), None)
    assert images.shape == (2, 3, side, side)
    assert labels.tolist() == [0, 1]
    assert task.build_model()(images).shape == (2, 2)


@pytest.mark.parametrize("key", ["crop_padding", "cutout"])
def test_augmentation_as_large_as_the_image_is_refused(key):
    with pytest.raises(ConfigError, match=rf"data.{key} is 32 but images have 32 x 32 pixels; use less than 32"):
        load_task(configured(data={key: 32}))


def test_the_seed_and_the_switches_of_the_configuration_reach_the_augmentation(cache_dir):
    def batch(seed, **data):
        task = load_task(configured(run={"seed": seed}, data={"cache_dir": str(cache_dir), **data}))
        return task.datasets(silent)[0].batch(torch.arange(64), torch.zeros(64, dtype=torch.int64))[0]

    plain = batch(0, flip=False, crop_padding=0)
    assert torch.equal(plain, batch(1, flip=False, crop_padding=0))
    variants = [plain, batch(0), batch(1), batch(0, flip=False), batch(0, crop_padding=0), batch(0, cutout=8)]
    assert not any(torch.equal(a, b) for i, a in enumerate(variants) for b in variants[:i])


def test_the_loss_is_smoothed_in_training_and_plain_in_the_metrics():
    task = load_task(configured(optim={"label_smoothing": 0.1}))
    outputs, targets = torch.randn(32, 10), torch.randint(0, 10, (32,))
    assert torch.equal(task.loss(outputs, targets), functional.cross_entropy(outputs, targets, label_smoothing=0.1))
    assert task.metrics(outputs, targets)["loss"] == pytest.approx(32 * functional.cross_entropy(outputs, targets).item(), rel=1e-5)


def test_metrics_are_sums_that_add_up_over_any_split_of_a_batch():
    task = load_task(configured())
    outputs, targets = torch.randn(100, 10), torch.randint(0, 10, (100,))
    whole = task.metrics(outputs, targets)
    parts = [task.metrics(outputs[i : i + 30], targets[i : i + 30]) for i in range(0, 100, 30)]
    assert whole["accuracy"] == (outputs.argmax(1) == targets).sum()
    for name, value in whole.items():
        assert sum(part[name] for part in parts).item() == pytest.approx(value.item(), rel=1e-5)


def test_bf16_outputs_lose_nothing_more_in_the_loss():
    task = load_task(configured())
    outputs, targets = torch.randn(32, 10).bfloat16(), torch.randint(0, 10, (32,))
    assert task.loss(outputs, targets).dtype == torch.float32
    assert torch.equal(task.loss(outputs, targets), task.loss(outputs.float(), targets))
