"""One zygote with torch in it for all tests that need ranks or agents as processes: the import costs seconds."""

from __future__ import annotations

import pytest
from processes import Parent

from ddp_trainer.resilience.entrypoint import PRELOAD


@pytest.fixture(scope="session")
def warm_parent():
    parent = Parent([*PRELOAD, "zygote_targets", "barrier_node"])
    yield parent
    parent.end()
