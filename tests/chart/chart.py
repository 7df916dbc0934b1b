"""Rendering the chart in tests, with each Helm on PATH, from values as a Python mapping; and which of the tools that takes are at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
HELMS = [name for name in ("helm", "helm3") if shutil.which(name)]
CASES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
CRD = Path(os.environ.get("PYTORCHJOB_CRD") or "nowhere")
"""Upstream's CRD of PyTorchJob: it is not copied into this repository."""
TOOLS = {
    "helm": (bool(shutil.which("helm")), "install Helm 3 or 4"),
    "helm3": (bool(shutil.which("helm3")), "install Helm 3 under that name, beside a Helm 4"),
    "kubeconform": (bool(shutil.which("kubeconform")), "install kubeconform"),
    "kubectl": (bool(shutil.which("kubectl")), "install kubectl"),
    "crd": (CRD.is_file(), "set PYTORCHJOB_CRD to the file kubeflow.org_pytorchjobs.yaml of the training operator v1.9.4"),
}
"""Name: whether it is here, and what to do if not."""


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip without these tools, with the reason (conftest.py refuses to, where DDP_REQUIRE names one)."""
    absent = [name for name in names if not TOOLS[name][0]]
    return pytest.mark.skipif(bool(absent), reason="; ".join(f"{name} is missing: {TOOLS[name][1]}" for name in absent))


@dataclass(frozen=True)
class Render:
    """What `helm template` said."""

    code: int
    text: str
    error: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        assert self.code == 0, self.error
        return [document for document in yaml.safe_load_all(self.text) if document]

    def of(self, part: str) -> list[dict[str, Any]]:
        """The objects of the `operator`'s part of the chart, or of the `trainer`'s, which is all else."""
        names = [(item, item["metadata"]["labels"]["app.kubernetes.io/name"]) for item in self.objects]
        return [item for item, name in names if (name == "ddp-operator") == (part == "operator")]

    def one(self, kind: str, part: str = "trainer") -> dict[str, Any]:
        """The only object of a kind in that part."""
        found = [item for item in self.of(part) if item["kind"] == kind]
        assert len(found) == 1, f"{len(found)} objects of kind {kind}"
        return found[0]


def template(
    tmp_path: Path, values: Any = None, *, helm: str | None = None, release: str = "ddp-demo", arguments: tuple[str, ...] = ()
) -> Render:
    """With the pod of `helm test`, as `helm install` has it."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values or {}), encoding="utf-8")
    command = [helm or HELMS[0], "template", release, str(CHART), "-f", str(file), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return Render(done.returncode, done.stdout, done.stderr)


def case_values(case: str) -> Any:
    """One of helm/ci/."""
    return yaml.safe_load((CHART / "ci" / f"{case}-values.yaml").read_text(encoding="utf-8"))


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that these objects make: Master, Worker, operator or the object's name; and its metadata and spec."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item["metadata"]["name"], item
        if item["kind"] == "Deployment":
            yield "operator", item["spec"]["template"]
        if item["kind"] == "PyTorchJob":
            yield from ((role, spec["template"]) for role, spec in item["spec"]["pytorchReplicaSpecs"].items())
