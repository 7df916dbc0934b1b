"""A writer that is killed at any operation of a commit leaves the previous checkpoint newest, or the new one complete."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_trainer.checkpoint.store import CheckpointStore

PROGRAM = Path(__file__).with_name("killed_writer.py")
PLACES_AT_LEAST = {"next": 35, "first": 28, "again": 20}


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """Where each writer was killed, and the folder it left, by scenario."""
    folder = tmp_path_factory.mktemp("killed")
    program = subprocess.run([sys.executable, PROGRAM, folder], capture_output=True, text=True, timeout=170, check=False)
    assert program.returncode == 0, program.stderr
    lines = [json.loads(line) for line in program.stdout.splitlines()]
    return {name: [line for line in lines if line["scenario"] == name] for name in PLACES_AT_LEAST}


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


def test_the_places_include_every_step_of_the_commit(endings):
    places = [ending["place"] for ending in endings["next"]]
    commit = ["serialize_file in save_file", "fsync in _sync", "write in write_durably", "fsync in write_durably", "rename in rename"]
    found = [places.index(operation) for operation in commit]
    assert found == sorted(found), "the order of the commit has changed"
    assert places.count("fsync in _sync") >= 5  # data, its folder with the manifest, the folder, the parent, and the parent after `latest`
    assert places.count("fsync in write_durably") == 2  # manifest, latest


@pytest.mark.parametrize("scenario", PLACES_AT_LEAST)
def test_the_run_goes_on_after_any_kill_and_leaves_no_litter(endings, save, scenario):
    for ending in endings[scenario]:
        store = CheckpointStore(Path(ending["root"]), keep=2)
        store.prepare()
        save(store, 4)
        save(store, 5)
        assert store.steps() == [4, 5]
        assert sorted(path.name for path in store.root.iterdir()) == ["latest", "step-000000004", "step-000000005"]
