"""A folder that is being filled is told of as long as it changes, and no longer."""

from __future__ import annotations

import threading

import pytest

from ddp_trainer.checkpoint import growth

PATIENCE_SECONDS = 30.0


@pytest.fixture
def looks(monkeypatch):
    """Released at each look at the folder."""
    monkeypatch.setattr(growth, "LOOK_SECONDS", 0.01)
    counted, sizes = threading.Semaphore(0), growth._sizes

    def looked(folder):
        found = sizes(folder)
        counted.release()
        return found

    monkeypatch.setattr(growth, "_sizes", looked)
    return counted


def await_looks(looks, times):
    while looks.acquire(blocking=False):  # those of before
        pass
    assert all(looks.acquire(timeout=PATIENCE_SECONDS) for _ in range(times))


def test_each_piece_that_comes_is_told_of_and_standstill_is_not(tmp_path, looks):
    told = []
    with growth.watched(tmp_path, lambda: told.append(1)):
        await_looks(looks, 3)
        assert told == []
        (tmp_path / "step-1").mkdir()
        with (tmp_path / "step-1" / "data").open("wb", buffering=0) as file:
            for pieces in (1, 2, 3):
                file.write(b"x" * 8192)
                await_looks(looks, 3)
                assert len(told) >= pieces
        seen = len(told)
        await_looks(looks, 5)
        assert len(told) == seen
    (tmp_path / "later").write_bytes(b"x" * 8192)
    assert len(told) == seen


def test_work_that_changes_no_size_is_told_of_by_a_fact_of_its_own(tmp_path, looks):
    told, facts = [], [0.0]
    with growth.watched(tmp_path, lambda: told.append(1), lambda: facts[0]):
        await_looks(looks, 3)
        assert told == []
        for pieces in (1, 2, 3):
            facts[0] += 1.0
            await_looks(looks, 3)
            assert len(told) == pieces


def test_a_folder_that_goes_meanwhile_ends_nothing(tmp_path, looks):
    folder = tmp_path / "checkpoints"
    told = []
    with growth.watched(folder, lambda: told.append(1)):
        await_looks(looks, 3)
        folder.mkdir()
        (folder / "data").write_bytes(b"x" * 8192)
        await_looks(looks, 3)
        assert told
