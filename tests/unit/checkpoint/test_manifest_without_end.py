"""A manifest that is nested without end is a bad checkpoint like any other: said so, set aside, and the one before it loads."""

from __future__ import annotations

import pytest

from ddp_trainer.checkpoint.inventory import entries
from ddp_trainer.checkpoint.manifest import MANIFEST_NAME, BadCheckpointError, read_manifest


@pytest.fixture
def nested(store, save):
    """The folder of step 2, whose manifest is 100,000 lists within each other; step 1 is whole."""
    save(store, 1)
    save(store, 2)
    folder = store.folder(2)
    (folder / MANIFEST_NAME).write_bytes(b"[" * 100_000 + b"]" * 100_000)
    return folder


def test_reading_it_says_that_it_is_invalid(nested):
    with pytest.raises(BadCheckpointError, match=r"manifest invalid: .*recursion limit"):
        read_manifest(nested)


@pytest.mark.parametrize("hashed", [True, False])
def test_it_is_listed_as_bad_beside_the_good_one(store, nested, hashed):
    newest, older = entries(store.root.parent, hashed=hashed)
    assert (newest.step, newest.is_verified, older.step, older.is_verified) == (2, False, 1, True if hashed else None)
    assert "recursion limit" in newest.reason


def test_loading_sets_it_aside_and_takes_the_one_before(store, nested, holds):
    loaded = store.load_newest()
    assert holds(loaded, 1)
    assert not nested.exists()
