"""A store in a temporary folder, and what is put in and looked for there."""

from __future__ import annotations

import pytest
import torch
from small_checkpoints import manifest_of, tensors_of

from ddp_trainer.checkpoint.manifest import Manifest
from ddp_trainer.checkpoint.store import CheckpointStore


@pytest.fixture
def store(tmp_path):
    made = CheckpointStore(tmp_path / "checkpoints", keep=3)
    made.prepare()
    return made


@pytest.fixture
def save():
    """Commit the state that belongs to a step."""

    def commit(store: CheckpointStore, step: int) -> Manifest:
        return store.commit(tensors_of(step), lambda files: manifest_of(step, files))

    return commit


@pytest.fixture
def holds():
    """Whether what was loaded is exactly the state of a step."""

    def compare(loaded, step: int) -> bool:
        expected = tensors_of(step)
        return (
            loaded.manifest.step == step
            and loaded.tensors.keys() == expected.keys()
            and all(torch.equal(loaded.tensors[name], expected[name]) for name in expected)
        )

    return compare
