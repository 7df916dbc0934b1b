"""A writer that is killed at any operation of a commit leaves the previous checkpoint newest, or the new one complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_checkpoints import commit, files_of

from ddp_trainer.checkpoint.store import CheckpointStore

PROGRAM = Path(__file__).with_name("killed_writer.py")
PLACES_AT_LEAST = {"next": 60, "first": 45, "again": 45, "evaluated": 60, "evaluated, no exchange": 60}
KILLS, SEED = 60, 20261125
"""The chaos suite's are 200."""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """All that the program says."""
    command = [sys.executable, PROGRAM, tmp_path_factory.mktemp("killed"), str(KILLS), str(SEED)]
    program = subprocess.run(command, capture_output=True, text=True, timeout=290, check=False)
    assert program.returncode == 0, program.stderr
    return [json.loads(line) for line in program.stdout.splitlines()]


@pytest.fixture(scope="module")
def endings(told):
    """Where each writer was killed, and the folder it left, by scenario."""
    return {name: [line for line in told if line.get("scenario") == name] for name in PLACES_AT_LEAST}


@pytest.mark.parametrize(("scenario", "before", "after"), [("next", 2, 3), ("first", None, 1), ("again", 1, 1)])
def test_the_newest_complete_checkpoint_loads_wherever_the_writer_was_killed(endings, holds, scenario, before, after):
    *killed, lived = endings[scenario]
    assert len(killed) >= PLACES_AT_LEAST[scenario]
    assert all(ending["killed"] for ending in killed)
    assert not lived["killed"]
    found = []
    for ending in killed:
        store = CheckpointStore(Path(ending["root"]), keep=2)
        assert all(manifest for _, manifest, _ in store.verified()), (
            f"killed before {ending['place']}: a folder with a step's name is incomplete"
        )
        store.prepare()
        loaded = store.load_newest()
        step = None if loaded is None else loaded.manifest.step
        assert step in {before, after}, f"killed before {ending['place']}: step {step} loads"
        assert loaded is None or (holds(loaded, step) and not loaded.quarantined), f"killed before {ending['place']}"
        found.append(step)
    order = [step == after for step in found]
    assert order == sorted(order), "a checkpoint that was complete at one moment is gone at a later one"
    assert CheckpointStore(Path(lived["root"])).load_newest().manifest.step == after


@pytest.mark.parametrize("scenario", ["evaluated", "evaluated, no exchange"])
def test_a_checkpoint_that_is_replaced_is_the_old_one_or_the_new_one_wherever_the_writer_was_killed(endings, holds, scenario):
    *killed, lived = endings[scenario]
    assert len(killed) >= PLACES_AT_LEAST[scenario]
    assert not lived["killed"]
    found = []
    for ending in [*killed, lived]:
        store = CheckpointStore(Path(ending["root"]), keep=2)
        if scenario == "evaluated":
            assert [bool(manifest) for _, manifest, _ in store.verified()] == [True], f"killed before {ending['place']}"
        else:
            assert all(manifest for _, manifest, _ in store.verified()), f"killed before {ending['place']}"
        store.prepare()
        loaded = store.load_newest()
        assert holds(loaded, 1), f"killed before {ending['place']}"
        assert not loaded.quarantined
        assert not list(store.root.glob(".tmp-*"))
        found.append(loaded.manifest.metrics)
    assert found == sorted(found, key=len), "the new one was there at one moment, and the old one again later"
    assert (found[0], found[-1]) == ({}, {"loss": 0.5})


def test_the_places_include_both_renames_of_a_file_system_that_cannot_exchange(endings):
    places = [ending["place"] for ending in endings["evaluated, no exchange"]]
    assert places.count("rename in rename") == 2
    between = places.index("rename in rename") + 1
    assert places[between] == "rename in rename", "no writer was killed between the two"
    store = CheckpointStore(Path(endings["evaluated, no exchange"][between]["root"]))
    store.prepare()
    assert store.load_newest().manifest.metrics == {}, "the next start gives the old one its name back"


def test_the_places_include_every_step_of_the_commit(endings):
    places = [ending["place"] for ending in endings["next"]]
    commit_order = [
        "write in write_hashed",  # data
        "fsync in write_hashed",
        "write in write_durably",  # the manifest
        "fsync in write_durably",
        "fsync in sync_folder",
        "rename in rename",
        "read in sha256_of",  # read back
        "unlink in _rmtree_safe_fd",  # retention
    ]
    found = [places.index(operation) for operation in commit_order]
    assert found == sorted(found), "the order of the commit has changed"
    assert places.count("write in write_durably") == 2, "there is no kill before `latest` is written"
    assert places.count("rename in rename") == 2, "there is no kill before retention"


@pytest.mark.parametrize("scenario", PLACES_AT_LEAST)
def test_the_run_goes_on_after_any_kill_and_leaves_no_litter(endings, save, scenario):
    for ending in endings[scenario]:
        store = CheckpointStore(Path(ending["root"]), keep=2)
        store.prepare()
        save(store, 4)
        save(store, 5)
        assert store.steps() == [4, 5]
        assert sorted(path.name for path in store.root.iterdir()) == ["latest", "step-000000004", "step-000000005"]


def test_a_run_that_is_killed_again_and_again_at_random_never_loses_an_acknowledged_checkpoint(told):
    lines = [line for line in told if "scenario" not in line]
    assert len(lines) == KILLS
    for line in lines:
        assert line["good"], line
        # what was acknowledged is there, and at most the one in flight beside it
        assert line["found"] in {line["acknowledged"], (line["acknowledged"] or 0) + 1}, line
    assert lines[-1]["found"] > KILLS / 4, "hardly any commit succeeded, so hardly any was put at risk"
    in_flight = [line["found"] != line["acknowledged"] for line in lines]
    assert any(in_flight), "no kill came between the rename and the return"
    assert not all(in_flight)


def test_nothing_is_published_before_its_content_is_durable(store, monkeypatch):
    """What a power failure needs, and a killed process does not show: the kernel may write unsynced names before unsynced contents."""
    done, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append(("fsync", path.name, None if path.is_dir() else path.stat().st_size))
        fsync(descriptor)

    def recorded(real):
        def rename(source, target):
            done.append(("rename", Path(source).name, Path(target).name))
            real(source, target)

        return rename

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded(os.rename))
    monkeypatch.setattr(os, "replace", recorded(replace))
    manifest = commit(store, 3)
    pid = os.getpid()
    work, text = f".tmp-1-{pid}", len((store.folder(3) / "manifest.json").read_bytes())
    sizes = {name: sum(len(buffer) for buffer in buffers) for name, buffers in files_of(3).items()}
    assert sizes == {name: entry.bytes for name, entry in manifest.files.items()}
    assert sorted(done[: len(sizes)]) == sorted(("fsync", name, size) for name, size in sizes.items())  # whole, when it was synced
    assert done[len(sizes) :] == [
        ("fsync", f".tmp-manifest.json-{pid}", text),
        ("rename", f".tmp-manifest.json-{pid}", "manifest.json"),
        ("fsync", work, None),
        ("fsync", work, None),
        ("rename", work, "step-000000003"),
        ("fsync", "checkpoints", None),
        ("fsync", f".tmp-latest-{pid}", len("step-000000003\n")),
        ("rename", f".tmp-latest-{pid}", "latest"),
        ("fsync", "checkpoints", None),
    ]
