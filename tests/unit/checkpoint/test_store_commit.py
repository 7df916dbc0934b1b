"""Committing: what is on disk afterwards, how much of it is kept, and what a full, failing or read-only disk does."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from small_checkpoints import commit, files_of, manifest_of

from ddp_trainer.checkpoint import durable as durable_module
from ddp_trainer.checkpoint import inventory, replacing
from ddp_trainer.checkpoint.durable import Pace, write_durably, write_hashed
from ddp_trainer.checkpoint.manifest import BadCheckpointError
from ddp_trainer.checkpoint.store import SPARE_BYTES, CheckpointStore
from ddp_trainer.errors import DataError, PeerLostError

DATA_FILES = ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]
MANY = 10**12
SYNCS_BEFORE_RENAME = 7
"""Four data files, the manifest, its folder, and the folder again once it is complete; after it the parent, and `latest` likewise."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def set_free_space(monkeypatch, free):
    """What the file system says is free: the value of `free()` in bytes, at each question."""

    class Volume:
        f_frsize = 1

        @property
        def f_bavail(self):
            return free()

    monkeypatch.setattr(os, "statvfs", lambda _: Volume())


def test_a_committed_checkpoint_loads_as_it_was(store, save, holds):
    save(store, 7)
    assert holds(store.load_newest(), 7)
    assert names(store.root) == ["latest", "step-000000007"]
    assert names(store.folder(7)) == sorted([*DATA_FILES, "manifest.json"])


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_the_newest_are_kept_and_older_ones_go(tmp_path, save, keep):
    store = CheckpointStore(tmp_path, keep)
    for step in range(10, 80, 10):
        save(store, step)
    assert store.steps() == list(range(10, 80, 10))[-keep:]
    assert names(store.root) == ["latest", *(store.folder(step).name for step in store.steps())]


def test_milestones_and_the_best_are_kept_by_what_the_manifests_say(tmp_path):
    for step, accuracy in ((10, 0.5), (20, 0.9), (30, 0.4), (40, 0.6), (50, 0.7), (60, 0.7)):
        # a new store each time: a run that has been started again decides by what lies on disk
        commit(CheckpointStore(tmp_path, keep=2, keep_every=30, keep_best="accuracy"), step, {"accuracy": accuracy})
    assert CheckpointStore(tmp_path).steps() == [20, 30, 50, 60]


def test_a_metric_that_is_not_finite_does_not_make_the_manifest_unreadable(store):
    commit(store, 1, {"loss": float("nan"), "accuracy": 0.5, "perplexity": float("inf")})
    assert store.load_newest().manifest.metrics == {"accuracy": 0.5}


def test_what_a_killed_writer_left_is_cleaned_before_the_next_start(store, save, holds):
    save(store, 1)
    for name in (".tmp-4711", ".tmp-replaced-4711"):
        (store.root / name).mkdir()
        (store.root / name / "model.safetensors").write_bytes(b"half")
    (store.root / ".tmp-latest-4711").write_bytes(b"half")
    store.prepare()
    assert names(store.root) == ["latest", "step-000000001"]
    assert holds(store.load_newest(), 1)


def test_a_step_that_is_saved_again_is_complete_at_every_moment_and_counted_once(store, save, holds):
    first = save(store, 5)
    inode = store.folder(5).stat().st_ino
    assert save(store, 5) == first
    assert store.folder(5).stat().st_ino == inode, "the good folder was replaced"
    assert store.steps() == [5]
    assert holds(store.load_newest(), 5)
    assert names(store.root) == ["latest", "step-000000005"]


def files_with(history, step=5):
    return files_of(step) | {"state.json": [json.dumps({"history": history}).encode()]}


def save_with(store, history, metrics, step=5):
    return store.commit(files_with(history, step), lambda files: manifest_of(step, files, metrics), 1)


BEFORE, AFTER = ([[4, {"accuracy": 0.2}]], {"accuracy": 0.2}), ([[4, {"accuracy": 0.2}], [5, {"accuracy": 0.9}]], {"accuracy": 0.9})
"""What a checkpoint of step 5 says before and after the evaluation of step 5."""


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_checkpoint_from_before_its_evaluation_is_replaced_by_the_one_with_the_metrics(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(replacing, "_exchange", lambda *_: False)
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=2, keep_best="accuracy")
    save_with(store, *BEFORE)
    save_with(store, *AFTER)
    loaded = store.load_newest()
    assert loaded.manifest.metrics == {"accuracy": 0.9}
    assert loaded.extra == {"history": AFTER[0]}
    assert names(store.root) == ["latest", "step-000000005"]
    for step in (6, 7, 8):
        save_with(store, AFTER[0], {"accuracy": 0.5}, step)
    assert store.steps() == [5, 7, 8], "it is known as the best by the metrics that came later"
    assert "accuracy 0.9" in inventory.export(tmp_path / "run", tmp_path / "out", 5)


def test_a_checkpoint_with_its_metrics_is_not_replaced_by_one_from_before_the_evaluation(store):
    after = save_with(store, *AFTER)
    assert save_with(store, *BEFORE) == after
    assert store.load_newest().extra == {"history": AFTER[0]}


def test_a_replacement_that_cannot_be_moved_leaves_the_old_one(store, monkeypatch):
    monkeypatch.setattr(replacing, "_exchange", lambda *_: False)
    before, real = save_with(store, *BEFORE), os.rename

    def rename(source, target):
        if Path(source).name.startswith(".tmp-1-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(DataError, match="Input/output error; check the volume"):
        save_with(store, *AFTER)
    monkeypatch.undo()
    assert store.load_newest().manifest == before
    assert names(store.root) == ["latest", "step-000000005"]


def test_a_replacement_that_does_not_read_back_does_not_cost_the_good_one(store):
    before = save_with(store, *BEFORE)

    def describe(files):
        (work,) = store.root.glob(".tmp-1-*")
        (work / "model.safetensors").write_bytes(b"not what was written")
        return manifest_of(5, files, AFTER[1])

    with pytest.raises(DataError, match=r"model\.safetensors does not read back as it was written; check the volume"):
        store.commit(files_with(AFTER[0]), describe, 1)
    assert store.load_newest().manifest == before
    assert names(store.root) == ["latest", "step-000000005"]


def test_a_stale_writer_replaces_nothing(tmp_path):
    before = save_with(CheckpointStore(tmp_path), *BEFORE)

    def fence():
        raise PeerLostError("attempt 2 has taken over")

    with pytest.raises(PeerLostError):
        save_with(CheckpointStore(tmp_path, fence=fence), *AFTER)
    assert CheckpointStore(tmp_path).load_newest().manifest == before
    assert names(tmp_path) == ["latest", "step-000000005"]


def test_what_is_taken_in_does_not_replace_a_good_one_of_its_step(tmp_path, store):
    here, source = save_with(store, *BEFORE), CheckpointStore(tmp_path / "source")
    save_with(source, *AFTER)
    got = store.root / ".tmp-got" / "step-000000005"
    got.parent.mkdir()
    source.folder(5).rename(got)
    store.adopt(got)
    assert store.load_newest().manifest == here


def test_a_bad_checkpoint_of_the_same_step_makes_way_for_the_new_one(store, save, holds):
    save(store, 5)
    (store.folder(5) / "model.safetensors").write_bytes(b"bad")
    save(store, 5)
    assert holds(store.load_newest(), 5)
    assert names(store.root / "quarantine") == ["step-000000005"]


def test_a_description_that_fails_leaves_nothing_behind(store, save):
    save(store, 1)

    def fail(files):
        raise RuntimeError("no manifest today")

    with pytest.raises(RuntimeError, match="no manifest today"):
        store.commit(files_of(2), fail, 1)
    assert names(store.root) == ["latest", "step-000000001"]


def test_a_small_file_is_replaced_whole_and_leaves_no_draft(tmp_path):
    path = tmp_path / "attempt"
    for content in (b"a" * 1000, b"b", b""):
        write_durably(path, content)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["attempt"]


@pytest.mark.parametrize("sizes", [[], [0], [1], [durable_module.BLOCK_BYTES], [durable_module.BLOCK_BYTES + 1, 7, 0, 3]])
def test_a_file_is_its_buffers_in_order_and_its_hash_is_of_what_is_on_disk(tmp_path, sizes):
    buffers = [memoryview(os.urandom(size)) for size in sizes]
    blocks = []
    size, digest = write_hashed(tmp_path / "file", buffers, blocks.append)
    content = (tmp_path / "file").read_bytes()
    assert content == b"".join(buffers)
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())
    assert sum(blocks) == size
    assert max(blocks, default=0) <= durable_module.BLOCK_BYTES


def test_a_buffer_of_wider_items_counts_in_bytes(tmp_path):
    numbers = memoryview(bytearray(64)).cast("d")
    assert write_hashed(tmp_path / "file", [numbers], lambda _: None)[0] == 64


def test_several_files_are_written_at_the_same_time(store, monkeypatch):
    together = threading.Barrier(len(files_of(1)), timeout=30)  # breaks, unless all of them are being written at once
    real = os.fsync

    def fsync(descriptor):
        if threading.current_thread() is not threading.main_thread():
            together.wait()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    commit(store, 1)
    assert store.steps() == [1]


def test_the_bound_of_the_speed_holds_for_all_threads_together(monkeypatch):
    slept = []
    monkeypatch.setattr(durable_module.time, "sleep", slept.append)
    monkeypatch.setattr(durable_module.time, "monotonic", lambda: 100.0)
    pace = Pace(bytes_per_second=1000.0)
    threads = [threading.Thread(target=pace, args=(250,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slept) == [0.25 * n for n in range(1, 9)]  # 2,000 bytes are through after 2 s, not 0.25 s


def test_without_a_bound_nothing_pauses(monkeypatch):
    monkeypatch.setattr(durable_module.time, "sleep", lambda _: pytest.fail("paused"))
    Pace(None)(10**12)


def test_durable_is_told_once_the_checkpoint_has_its_name_and_before_it_is_read_back(store, monkeypatch):
    seen = []

    def spoil():
        seen.extend([names(store.root), (store.root / "latest").read_text()])
        (store.folder(3) / "model.safetensors").write_bytes(b"")

    with pytest.raises(DataError, match=r"step-000000003 does not read back as it was .*model\.safetensors: 0 bytes.*check the volume"):
        commit(store, 3, durable=spoil)
    assert seen == [["latest", "step-000000003"], "step-000000003\n"]


def test_a_checkpoint_that_does_not_read_back_costs_no_older_one(tmp_path, holds):
    store = CheckpointStore(tmp_path, keep=1)
    commit(store, 1)
    for step in (2, 3, 4):
        with pytest.raises(DataError, match="does not read back"):
            commit(store, step, durable=lambda step=step: (store.folder(step) / "model.safetensors").write_bytes(b""))
    assert holds(store.load_newest(), 1)


def test_what_was_committed_and_read_back_outlives_a_bad_one_of_a_higher_step(tmp_path, holds):
    store = CheckpointStore(tmp_path, keep=1)
    with pytest.raises(DataError, match="does not read back"):
        commit(store, 9, durable=lambda: (store.folder(9) / "model.safetensors").write_bytes(b""))
    commit(store, 5)  # the run went back, as after a divergence
    assert holds(store.load_newest(), 5)


# --- writers that are no longer the run's --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "steps", "latest"), [(1, [1], 1), (2, [1, 2], 1), (3, [1, 2], 2)])
def test_a_stale_writer_publishes_nothing_more_from_the_moment_the_fence_refuses(tmp_path, asked, steps, latest):
    commit(CheckpointStore(tmp_path, keep=1), 1)
    calls = []

    def fence():
        calls.append(names(tmp_path))
        if len(calls) == asked:
            raise PeerLostError("attempt 2 has taken over")

    with pytest.raises(PeerLostError):
        commit(CheckpointStore(tmp_path, keep=1, fence=fence), 2)
    assert CheckpointStore(tmp_path).steps() == steps  # with keep=1 retention would have removed step 1
    assert (tmp_path / "latest").read_text() == f"step-00000000{latest}\n"
    assert not list(tmp_path.glob(".tmp-*"))
    assert len(calls) == asked


def test_the_fence_is_asked_after_all_is_written_and_right_before_the_rename(tmp_path):
    seen = []
    store = CheckpointStore(
        tmp_path, fence=lambda: seen.append({folder.name: names(folder) for folder in tmp_path.iterdir() if folder.is_dir()})
    )
    commit(store, 1)
    ((work, content),) = seen[0].items()
    assert work.startswith(".tmp-1-")
    assert content == sorted([*DATA_FILES, "manifest.json"])
    assert list(seen[1]) == ["step-000000001"]


def test_a_stale_writer_on_a_full_disk_removes_nothing(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        commit(CheckpointStore(tmp_path), step)
    set_free_space(monkeypatch, lambda: 0)

    def fence():
        raise PeerLostError("attempt 2 has taken over")

    with pytest.raises(PeerLostError):
        commit(CheckpointStore(tmp_path, fence=fence), 4)
    assert CheckpointStore(tmp_path).steps() == [1, 2, 3]


# --- disks that refuse ---------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_sentence_with_the_remedy_and_the_previous_checkpoint_stays(mounted, save, holds):
    store = CheckpointStore(mounted("8m") / "checkpoints")
    store.prepare()
    save(store, 1)
    big = {"model.safetensors": [save_big(8)]}
    with pytest.raises(
        DataError, match=r"cannot be written below .*8\.\d MB are needed and 8\.\d MB are free; free space or lower"
    ) as error:
        store.commit(big, lambda _: pytest.fail("there is nothing to describe"), 1)
    assert "\n" not in str(error.value)
    assert names(store.root) == ["latest", "step-000000001"]
    assert holds(store.load_newest(), 1)
    save(store, 2)
    assert holds(store.load_newest(), 2)


def save_big(megabytes):
    return save({"weight": torch.zeros(megabytes, 1024, 256)})


@pytest.mark.parametrize("left_bytes", [0, 4096])
def test_a_disk_that_fills_up_while_it_is_written_to_is_the_same_sentence(mounted, monkeypatch, holds, left_bytes):
    disk = mounted("8m")
    store = CheckpointStore(disk / "checkpoints")
    store.prepare()
    commit(store, 1)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    set_free_space(monkeypatch, lambda: MANY)  # somebody else takes the space right after it was looked at
    (disk / "filler").write_bytes(b"\0" * (free - left_bytes))
    with pytest.raises(DataError, match=r"[Nn]o space left.*; free space or lower checkpoint\.keep"):
        commit(store, 2)
    assert names(store.root) == ["latest", "step-000000001"]
    assert holds(store.load_newest(), 1)
    (disk / "filler").unlink()
    commit(store, 2)  # and the space of the failed attempt is free again
    assert holds(store.load_newest(), 2)


def test_a_full_disk_takes_the_oldest_first_and_only_as_many_as_it_needs(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=5)
    for step in (1, 2, 3, 4):
        commit(store, step)
    need = sum(len(buffer) for buffers in files_of(5).values() for buffer in buffers) + SPARE_BYTES
    set_free_space(monkeypatch, lambda: need if len(store.steps()) <= 2 else need - 1)
    commit(store, 5)
    assert store.steps() == [3, 4, 5]


def test_a_full_disk_never_takes_the_newest_checkpoint_that_verifies_even_if_newer_ones_are_bad(tmp_path, monkeypatch, holds):
    for step in (1, 2, 3, 4):
        commit(CheckpointStore(tmp_path, keep=5), step)
    store = CheckpointStore(tmp_path, keep=5)  # a new start: nothing is known to be good
    for step in (3, 4):
        (store.folder(step) / "model.safetensors").write_bytes(b"bad")
    set_free_space(monkeypatch, lambda: 0)
    with pytest.raises(DataError, match="free space"):
        commit(store, 5)
    monkeypatch.undo()
    assert store.steps() == [2]
    assert holds(store.load_newest(), 2)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("failing", range(10))
def test_whichever_sync_fails_the_previous_checkpoint_loads_and_the_draft_is_gone(store, monkeypatch, holds, failing, number):
    commit(store, 1)
    calls, real = iter(range(MANY)), os.fsync

    def fsync(descriptor):
        if next(calls) == failing:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    remedy = "check the volume" if number == errno.EIO else r"free space or lower checkpoint\.keep"
    with pytest.raises(DataError, match=rf"{os.strerror(number)}; {remedy}"):
        commit(store, 2)
    monkeypatch.undo()
    assert not [path for path in store.root.glob(".tmp-*") if path.is_dir()]
    loaded = store.load_newest()
    assert holds(loaded, 1 if failing < SYNCS_BEFORE_RENAME else 2)
    assert not loaded.quarantined
    commit(store, 3)
    assert holds(store.load_newest(), 3)


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_place_that_cannot_hold_checkpoints_is_refused_at_the_start(tmp_path, place):
    file = tmp_path / "taken"
    file.write_text("not a folder")
    root = file if place == "a file" else file / "checkpoints"
    with pytest.raises(DataError, match=r"cannot be written: .*; give another with --run-dir"):
        CheckpointStore(root).prepare()


def test_a_read_only_volume_is_refused_at_the_start_and_a_sentence_later(mounted, save, holds):
    disk = mounted("8m")
    store = CheckpointStore(disk / "checkpoints")
    save(store, 1)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(DataError, match="Read-only file system"):
        store.prepare()
    with pytest.raises(DataError, match=r"cannot be written below .*Read-only file system.*; check the volume"):
        save(store, 2)
    assert holds(store.load_newest(), 1)


def test_a_bad_checkpoint_on_a_read_only_volume_is_a_sentence_too(mounted, save):
    disk = mounted("8m")
    store = CheckpointStore(disk / "checkpoints")
    save(store, 1)
    (store.folder(1) / "model.safetensors").write_bytes(b"bad")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(DataError, match=r"step-000000001 .* cannot be moved to quarantine: Read-only file system"):
        store.load_newest()


# --- what comes from elsewhere -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_taken_in_whole_or_not_at_all(tmp_path, store, holds, monkeypatch):
    source = CheckpointStore(tmp_path / "source")
    commit(source, 4)
    good = store.root / ".tmp-got" / "step-000000004"
    good.parent.mkdir()
    source.folder(4).rename(good)
    (good / "ema.safetensors").rename(good / "away")
    with pytest.raises(BadCheckpointError, match=r"ema\.safetensors"):
        store.adopt(good)
    assert store.steps() == []
    (good / "away").rename(good / "ema.safetensors")
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()), real(descriptor)))
    assert store.adopt(good) == manifest_of(4, store.load_newest().manifest.files)
    assert [path.parent.parent.name for path in synced[:5]] == [".tmp-got"] * 5  # before the rename: whoever wrote them may not have
    assert {path.name for path in synced[:5]} == {*DATA_FILES, "manifest.json"}
    assert holds(store.load_newest(), 4)
    assert (store.root / "latest").read_text() == "step-000000004\n"
