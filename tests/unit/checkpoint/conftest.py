"""A store in a temporary folder, and what is put in and looked for there."""

from __future__ import annotations

import os
import subprocess

import pytest
from small_checkpoints import commit, is_state_of

from ddp_trainer.checkpoint.store import CheckpointStore


@pytest.fixture
def store(tmp_path):
    made = CheckpointStore(tmp_path / "checkpoints", keep=3)
    made.prepare()
    return made


@pytest.fixture
def save():
    """Commit the state that belongs to a step."""
    return commit


@pytest.fixture
def holds():
    """Whether what was loaded is exactly the state of a step."""
    return is_state_of


@pytest.fixture
def mounted(tmp_path):
    """Mounts a real file system of a size below the test's folder."""
    place = tmp_path / "disk"

    def mount(size: str):
        if os.geteuid() != 0:
            pytest.skip("NOT RUN: only root may mount a small file system; what a full disk does to a commit was not tested")
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"NOT RUN: cannot mount a small file system here ({done.stderr.strip()}); full disks were not tested")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)
