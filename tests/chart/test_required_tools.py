"""A tool that continuous integration has asked for cannot go missing unseen."""

import os
import subprocess
import sys

import pytest
from chart import ROOT


def collect(tmp_path, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests/chart/test_required_tools.py"]
    environment = {**{key: os.environ[key] for key in ("HOME",) if key in os.environ}, "PATH": str(tmp_path), **environment}
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("tool", ["helm", "helm3", "kubeconform", "kubectl", "crd"])
def test_a_required_tool_that_is_missing_stops_everything_with_a_sentence(tool, tmp_path):
    done = collect(tmp_path, DDP_REQUIRE=f" {tool},")
    assert done.returncode != 0
    assert f"DDP_REQUIRE names {tool}, which is missing: " in done.stderr


def test_a_requirement_that_means_nothing_is_refused(tmp_path):
    assert "DDP_REQUIRE names helm2, which no test of the chart needs" in collect(tmp_path, DDP_REQUIRE="helm2").stderr


def test_without_requirements_missing_tools_are_no_error(tmp_path):
    assert collect(tmp_path).returncode == 0
