"""The chart's output for each of helm/ci/, compared as text so that a review sees every change. GOLDEN=write writes them anew."""

import os
import subprocess

import pytest
import yaml
from chart import CASES, CHART, HELMS, ROOT, case_values, template

GOLDEN = ROOT / "tests/chart/golden"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("helm", HELMS)
def test_render_is_the_reviewed_one(case, helm, tmp_path):
    objects = template(tmp_path, case_values(case), helm=helm).objects
    objects.sort(key=lambda item: (item["kind"], item["metadata"]["name"]))
    text = yaml.safe_dump_all(objects, sort_keys=False, width=140)
    golden = GOLDEN / f"{case}.yaml"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden} differs; if the change is meant: GOLDEN=write pytest tests/chart"


def test_no_golden_render_is_left_of_a_case_that_is_gone():
    assert sorted(path.stem for path in GOLDEN.glob("*.yaml")) == CASES


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("case", CASES)
def test_lint_is_clean(case, helm):
    command = [helm, "lint", "--strict", str(CHART), "-f", str(CHART / "ci" / f"{case}-values.yaml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
