"""The chart's output for each of helm/ci/, compared as text so that a review sees every change. GOLDEN=write writes them anew."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from chart import CHART, HELMS, ROOT, template

GOLDEN = ROOT / "tests/chart/golden"
CASES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
CRD = os.environ.get("PYTORCHJOB_CRD")


def values(case):
    return yaml.safe_load((CHART / "ci" / f"{case}-values.yaml").read_text())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("helm", HELMS)
def test_render_is_the_reviewed_one(case, helm, tmp_path):
    objects = template(tmp_path, values(case), helm=helm).objects
    objects.sort(key=lambda item: (item["kind"], item["metadata"]["name"]))
    text = yaml.safe_dump_all(objects, sort_keys=False, width=140)
    golden = GOLDEN / f"{case}.yaml"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden} differs; if the change is meant: GOLDEN=write pytest tests/chart"


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("case", CASES)
def test_lint_is_clean(case, helm):
    command = [helm, "lint", "--strict", str(CHART), "-f", str(CHART / "ci" / f"{case}-values.yaml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("helm", HELMS)
def test_rendering_takes_less_than_a_second(helm, tmp_path):
    template(tmp_path, helm=helm)
    spent = []
    for _ in range(3):
        begun = time.perf_counter()
        template(tmp_path, helm=helm)
        spent.append(time.perf_counter() - begun)
    assert min(spent) < 1.0


@pytest.fixture(scope="module")
def job_schema(tmp_path_factory):
    """The CRD's schema as a file for kubeconform; upstream's CRD is 0.6 MB of YAML, so it is read once."""
    crd = yaml.load(Path(CRD).read_text(), Loader=yaml.CSafeLoader)
    folder = tmp_path_factory.mktemp("schema")
    (folder / "pytorchjob.json").write_text(json.dumps(closed(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])))
    return folder / "pytorchjob.json"


def conform(job, schema, tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    command = ["kubeconform", "-strict", "-schema-location", str(schema), str(tmp_path / "job.yaml")]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


needs_crd = pytest.mark.skipif(
    not CRD or not shutil.which("kubeconform"), reason="set PYTORCHJOB_CRD to upstream's CRD, and have kubeconform on PATH"
)


@needs_crd
@pytest.mark.parametrize("case", CASES)
def test_the_job_fits_the_real_crd(case, job_schema, tmp_path):
    done = conform(template(tmp_path, values(case)).one("PyTorchJob"), job_schema, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_crd
def test_the_real_crd_would_notice_a_wrong_field(job_schema, tmp_path):
    job = template(tmp_path).one("PyTorchJob")
    job["spec"]["runPolicy"]["cleanPods"] = "Running"
    assert "cleanPods" in conform(job, job_schema, tmp_path).stdout


def closed(node):
    """The schema with unknown keys refused, as the API server prunes them; Kubernetes' own int-or-string said in JSON schema's words."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: closed(value) for key, value in node.items()}
    if node.pop("x-kubernetes-int-or-string", False):
        node["type"] = ["integer", "string"]
        node.pop("anyOf", None)
    if (
        node.get("type") == "object"
        and "properties" in node
        and "additionalProperties" not in node
        and set(node["properties"]) - {"apiVersion", "kind", "metadata"}
    ):
        node["additionalProperties"] = False
    return node
