"""Rendering the chart in tests: with each Helm on PATH, from values as a Python mapping."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
HELMS = [name for name in ("helm", "helm3") if shutil.which(name)]


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

    def one(self, kind: str) -> dict[str, Any]:
        found = [item for item in self.objects if item["kind"] == kind]
        assert len(found) == 1, f"{len(found)} objects of kind {kind}"
        return found[0]


def template(
    tmp_path: Path, values: Any = None, *, helm: str | None = None, release: str = "ddp-demo", arguments: tuple[str, ...] = ()
) -> Render:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values or {}), encoding="utf-8")
    command = [helm or HELMS[0], "template", release, str(CHART), "--skip-tests", "-f", str(file), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return Render(done.returncode, done.stdout, done.stderr)
