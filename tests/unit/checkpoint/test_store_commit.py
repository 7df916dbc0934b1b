"""Committing: what is on disk afterwards, how much of it is kept, and what a full or read-only disk does."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch

from ddp_trainer.checkpoint.store import CheckpointStore, write_durably
from ddp_trainer.errors import DataError

IS_ROOT = os.geteuid() == 0


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_committed_checkpoint_loads_as_it_was(store, save, holds):
    save(store, 7)
    assert holds(store.load_newest(), 7)
    assert names(store.root) == ["latest", "step-000000007"]
    assert names(store.folder(7)) == ["manifest.json", "state.safetensors"]


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_the_newest_are_kept_and_older_ones_go(tmp_path, save, keep):
    store = CheckpointStore(tmp_path, keep)
    for step in range(10, 80, 10):
        save(store, step)
    assert store.steps() == list(range(10, 80, 10))[-keep:]
    assert names(store.root) == ["latest", *(store.folder(step).name for step in store.steps())]


def test_what_a_killed_writer_left_is_cleaned_before_the_next_start(store, save, holds):
    save(store, 1)
    for name in (".tmp-4711", ".tmp-replaced-4711"):
        (store.root / name).mkdir()
        (store.root / name / "state.safetensors").write_bytes(b"half")
    (store.root / ".tmp-latest-4711").write_bytes(b"half")
    store.prepare()
    assert names(store.root) == ["latest", "step-000000001"]
    assert holds(store.load_newest(), 1)


def test_a_step_that_is_saved_again_is_complete_at_every_moment_and_counted_once(store, save, holds):
    save(store, 5)
    save(store, 5)
    assert store.steps() == [5]
    assert holds(store.load_newest(), 5)
    assert names(store.root) == ["latest", "step-000000005"]


def test_a_bad_checkpoint_of_the_same_step_makes_way_for_the_new_one(store, save, holds):
    save(store, 5)
    (store.folder(5) / "state.safetensors").write_bytes(b"bad")
    save(store, 5)
    assert holds(store.load_newest(), 5)


def test_a_description_that_fails_leaves_nothing_behind(store, save):
    save(store, 1)

    def fail(files):
        raise RuntimeError("no manifest today")

    with pytest.raises(RuntimeError, match="no manifest today"):
        store.commit({"a": torch.zeros(1)}, fail)
    assert names(store.root) == ["latest", "step-000000001"]


def test_a_small_file_is_replaced_whole_and_leaves_no_draft(tmp_path):
    path = tmp_path / "attempt"
    for content in (b"a" * 1000, b"b", b""):
        write_durably(path, content)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["attempt"]


# --- disks that refuse ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB."""
    if not IS_ROOT:
        pytest.skip("NOT RUN: only root may mount a small file system; what a full disk does to a commit was not tested")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"NOT RUN: cannot mount a small file system here ({mounted.stderr.strip()}); full disks were not tested")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_one_sentence_with_the_remedy_and_the_previous_checkpoint_stays(small_disk, save, holds):
    store = CheckpointStore(small_disk / "checkpoints")
    store.prepare()
    save(store, 1)
    big = {"model.weight": torch.zeros(1024, 128)}  # 512 KiB
    with pytest.raises(DataError, match=r"cannot be written below .*[Nn]o space left.*; free space or lower checkpoint\.keep") as error:
        store.commit(big, lambda _: pytest.fail("there is nothing to describe"))
    assert "\n" not in str(error.value)
    assert names(store.root) == ["latest", "step-000000001"]
    assert holds(store.load_newest(), 1)
    save(store, 2)  # and the space of the failed attempt is free again
    assert holds(store.load_newest(), 2)


def test_a_disk_that_fills_up_within_the_small_files_is_the_same_sentence(small_disk, save, holds):
    store = CheckpointStore(small_disk / "checkpoints")
    store.prepare()
    save(store, 1)
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(b"\0" * (free - 4096))  # one page: enough for the tensors, not for the manifest
    with pytest.raises(DataError, match=r"free space or lower checkpoint\.keep"):
        save(store, 2)
    assert holds(store.load_newest(), 1)


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_place_that_cannot_hold_checkpoints_is_refused_at_the_start(tmp_path, place):
    file = tmp_path / "taken"
    file.write_text("not a folder")
    root = file if place == "a file" else file / "checkpoints"
    with pytest.raises(DataError, match=r"cannot be written: .*; give another with --run-dir"):
        CheckpointStore(root).prepare()


def test_a_read_only_volume_is_refused_at_the_start(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DataError, match="Read-only file system"):
        CheckpointStore(small_disk).prepare()


def test_a_bad_checkpoint_on_a_read_only_volume_is_a_sentence_too(small_disk, save):
    store = CheckpointStore(small_disk / "checkpoints")
    save(store, 1)
    (store.folder(1) / "state.safetensors").write_bytes(b"bad")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DataError, match=r"step-000000001 .* cannot be moved to quarantine: Read-only file system"):
        store.load_newest()
