"""The chart's tests need tools. Where one is missing its tests are skipped and say so, unless DDP_REQUIRE names it.

DDP_REQUIRE is a list with commas of what must not be missing, such as `helm,helm3,kubeconform,crd` in continuous integration: there a
skipped test would be a gate that nobody sees standing open, so nothing is run at all.
"""

import os

import pytest
from chart import TOOLS, needs


def pytest_collection_modifyitems(items):
    required = [name.strip() for name in os.environ.get("DDP_REQUIRE", "").split(",") if name.strip()]
    for name in required:
        if name not in TOOLS:
            raise pytest.UsageError(f"DDP_REQUIRE names {name}, which no test of the chart needs; known are {', '.join(TOOLS)}")
        if not TOOLS[name][0]:
            raise pytest.UsageError(f"DDP_REQUIRE names {name}, which is missing: {TOOLS[name][1]}")
    for item in items:
        if "tests/chart" in item.path.as_posix() and item.path.name != "test_required_tools.py":
            item.add_marker(needs("helm"))
