"""The chart's tests need Helm; without it they are skipped, and say so."""

import pytest
from chart import HELMS


def pytest_collection_modifyitems(items):
    if HELMS:
        return
    skip = pytest.mark.skip(reason="no helm on PATH; install Helm 3 or 4 to test the chart")
    for item in items:
        if "tests/chart" in item.path.as_posix():
            item.add_marker(skip)
