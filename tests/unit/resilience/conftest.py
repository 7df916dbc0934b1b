"""One zygote with torch in it for all tests that need ranks or agents as processes: the import costs seconds."""

from __future__ import annotations

import os

import pytest
from processes import Parent

from ddp_trainer.resilience.entrypoint import PRELOAD

# torch's store asks the name server who connects; where answers get lost, that is 1 s of waiting then, instead of 5
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:2")


@pytest.fixture(scope="session")
def warm_parent():
    parent = Parent([*PRELOAD, "zygote_targets", "barrier_node"])
    yield parent
    parent.end()
