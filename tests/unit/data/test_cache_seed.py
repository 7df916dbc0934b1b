"""The cache's seed: decoded images that come with a container's image, used where they fit and never touched."""

from __future__ import annotations

import numpy as np
import pytest

from ddp_trainer.config import validate
from ddp_trainer.data.cache import open_or_build, verify
from ddp_trainer.data.sources import resolve
from ddp_trainer.tasks.registry import load_task


def silent(what, done, total):
    pass


def below(folder):
    """Everything in a folder, with what would change if it were written to."""
    return {path.relative_to(folder): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture
def seed(tree, tmp_path):
    open_or_build(resolve(str(tree), tmp_path), 16, tmp_path / "seed", silent)
    return tmp_path / "seed"


def decode(tree, tmp_path, seed, size=16):
    return open_or_build(resolve(str(tree), tmp_path), size, tmp_path / "cache", silent, seed)


def test_what_the_seed_holds_is_neither_decoded_nor_copied(tree, tmp_path, seed):
    before = below(seed)
    assert decode(tree, tmp_path, seed).folder.is_relative_to(seed)
    assert not (tmp_path / "cache").exists()
    assert below(seed) == before


def test_another_image_size_is_decoded_beside_the_seed(tree, tmp_path, seed):
    before = below(seed)
    decoded = decode(tree, tmp_path, seed, size=8)
    assert decoded.folder.is_relative_to(tmp_path / "cache")
    assert decoded.train.pixels.shape[1:] == (8, 8, 3)
    assert below(seed) == before


def test_a_seed_that_does_not_exist_is_none(tree, tmp_path):
    assert decode(tree, tmp_path, tmp_path / "nothing").folder.is_relative_to(tmp_path / "cache")


def test_a_damaged_seed_is_passed_over_and_said_and_left_as_it_is(tree, tmp_path, seed, caplog):
    folder = next((seed / "decoded").glob("[!.]*/"))
    (folder / "train.pixels").write_bytes(b"short")
    before = below(seed)
    decoded = decode(tree, tmp_path, seed)
    assert decoded.folder.is_relative_to(tmp_path / "cache")
    assert verify(decoded.folder) == []
    assert "cannot be used (train.pixels does not have its" in caplog.text
    assert below(seed) == before


def test_a_seed_and_a_cache_hold_the_same(tree, tmp_path, seed):
    one, other = decode(tree, tmp_path, seed), decode(tree, tmp_path, None)
    assert one.folder != other.folder
    assert one.train.fingerprint == other.train.fingerprint
    assert np.array_equal(one.test.pixels, other.test.pixels)


def test_a_task_takes_the_seed_from_its_configuration_and_the_seed_is_no_part_of_the_runs_identity(tree, tmp_path, seed):
    where = {"source": str(tree), "cache_dir": str(tmp_path / "cache"), "image_size": 16}
    plain = validate({"task": {"name": "imagefolder"}, "data": where}, "the test")
    seeded = plain.with_values({"data.seed_cache_dir": str(seed)})
    assert seeded.identity() == plain.identity()
    load_task(seeded).datasets(silent)
    assert not (tmp_path / "cache").exists()
