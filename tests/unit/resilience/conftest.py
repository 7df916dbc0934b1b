"""Zygotes with torch in them for all tests that need ranks, agents or writers as processes: the import costs seconds."""

from __future__ import annotations

import os

import pytest
import writers
from processes import Parent

from ddp_trainer.resilience.entrypoint import PRELOAD

# torch's store asks the name server who connects; where answers get lost, that is 1 s of waiting then, instead of 5
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:2")


@pytest.fixture(scope="session")
def warm_parent():
    parent = Parent([*PRELOAD, "zygote_targets", "barrier_node"])
    yield parent
    parent.end()


@pytest.fixture(scope="session")
def parent():
    """A process with benches for writers."""
    made = writers.Parent()
    yield made
    made.end()


@pytest.fixture
def bench(parent, tmp_path):
    """A fresh node's memory, agent and writer."""
    return parent.bench(tmp_path)
