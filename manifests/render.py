"""Everything that is made from something else in the chart and in manifests/, made again: `python manifests/render.py` (`make manifests`).

helm/presets/             copies of configs/, since Helm cannot read outside the chart
helm/values.schema.json   descriptions from the comments of values.yaml, and the section `config` from RunConfig
helm/README.md            the table of values, from the same comments
helm/crds/                the TrainingRun's definition, from the operator's models
manifests/base, overlays  the chart's own output for people without Helm; its job is labelled for adoption
manifests/operator        the operator and the definition, the same way
docs/operator.md          four tables: reasons of conditions and of events, fields of a TrainingRun's spec, settings

With --check nothing is written: what differs is named, and the exit code is 1. Only `--check` and the manifests need helm on PATH.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ddp_operator import settings
from ddp_operator.api import crd, words
from ddp_trainer.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm"
OPERATOR_PAGE = ROOT / "docs" / "operator.md"
NAME = "ddp-demo"
OVERLAYS = {"cpu": "0", "gpu": "1"}
"""Overlay and its gpusPerReplica."""
JOB_KINDS = ("ConfigMap", "PyTorchJob")
"""What differs between CPU and GPU; the rest is the base's."""
CRD_FILE = "trainingruns.yaml"
OPERATOR_NAMESPACE = "ddp-operator"
"""Of manifests/operator, which the chart's own release does not fix."""


@dataclass(frozen=True)
class Value:
    """One documented line of values.yaml."""

    path: tuple[str, ...]
    default: Any
    text: str


def main() -> int:
    """The command line: 0 if all is as it should be."""
    parser = argparse.ArgumentParser(description="Make the generated files of helm/ and manifests/ again.")
    parser.add_argument("--check", action="store_true", help="write nothing; name what differs")
    check = parser.parse_args().check
    stale = 0
    for group in (chart, manifests):  # in this order, since helm reads what the first one writes
        for path, text in group().items():
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            stale += 1
            sys.stdout.write(f"{'differs' if check else 'wrote'}: {path.relative_to(ROOT)}\n")
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if check and stale:
        sys.stdout.write("run `make manifests` and commit the result\n")
    return int(check and stale > 0)


def chart() -> dict[Path, str]:
    """The chart's own generated files and what each must hold."""
    files = {CHART / "presets" / path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").glob("*.json"))}
    files[CHART / "values.schema.json"] = schema()
    files[CHART / "README.md"] = readme()
    files[CHART / "crds" / CRD_FILE] = definition()
    files[OPERATOR_PAGE] = operator_page()
    return files


class _Plain(yaml.SafeDumper):
    """Without anchors, which would tie rules of one field to those of another."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # the base class's signature
        return True


def definition() -> str:
    """The TrainingRun's CustomResourceDefinition."""
    head = "# Made from the models in operator/ddp_operator/api: python manifests/render.py\n"
    return head + yaml.dump(crd.crd(), Dumper=_Plain, sort_keys=False, width=140)


def values() -> Iterator[Value]:
    """The documented values, in the file's order: a key, and the `# --` comment above it (further comment lines go on with it)."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    section = ""
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        words = re.match(r"\s*# (-- )?(.*)", line)
        key = re.match(r"( *)([A-Za-z]+):", line)
        if words:
            comment = [words[2]] if words[1] else [*comment, words[2]]
        elif key and len(key[1]) <= 2:  # noqa: PLR2004  # deeper keys are parts of a value
            path = (section, key[2]) if key[1] else (key[2],)
            section = section if key[1] else key[2]
            if comment:
                default = defaults[path[0]][path[1]] if len(path) > 1 else defaults[path[0]]
                yield Value(path, default, " ".join(comment))
            comment = []
        else:
            comment = []


def schema() -> str:
    """The hand-written constraints, with descriptions and the schema of `config` put in."""
    document = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    for value in values():
        node = document
        for key in value.path:
            node = node["properties"][key]
        if "$ref" not in node:
            node["description"] = value.text
    config = RunConfig.model_json_schema()
    sections = config.pop("$defs")
    document["$defs"] = {name: _slim(section) for name, section in {"RunConfig": config, **sections}.items()}
    return json.dumps(document, indent=2) + "\n"


def _slim(node: Any) -> Any:
    """Without titles and defaults, which say nothing new here."""
    if isinstance(node, dict):
        return {
            key: _slim(value)
            for key, value in node.items()
            if key not in {"title", "default"} or (isinstance(value, dict) and "type" in value)
        }
    return [_slim(item) for item in node] if isinstance(node, list) else node


def readme() -> str:
    """The chart's README: how to begin, and all values."""
    rows = "\n".join(f"| `{'.'.join(v.path)}` | `{json.dumps(v.default)}` | {v.text.replace('|', chr(92) + '|')} |" for v in values())
    return f"""# The chart

    helm install {NAME} helm/ --set replicas=4

Needs the Kubeflow training operator (v1.9.4). Without GPUs add `--set gpusPerReplica=0`. To change a value and keep the others:
`helm upgrade {NAME} helm/ --reuse-values --set replicas=8`. How it behaves: docs/kubernetes.md; the operator in it: docs/operator.md.

This table is generated from the comments in values.yaml.

| value | default | what it does |
|---|---|---|
{rows}
"""


def operator_page() -> str:
    """The page about the operator, with its generated tables between their marks."""
    text = OPERATOR_PAGE.read_text(encoding="utf-8")
    environment, meanings = crd.docstrings(settings), crd.docstrings(words)
    of_conditions = {words.ConditionType.CHECKPOINT_FRESH: words.CheckpointReason, words.ConditionType.STORAGE_HEALTHY: words.StorageReason}
    tables: dict[str, tuple[str, list[tuple[str, ...]]]] = {
        "condition-reasons": (
            "| reason | condition | it is |",
            [(word, kind, meanings[f"{of.__name__}.{word.name}"]) for kind, of in of_conditions.items() for word in of],
        ),
        "event-reasons": ("| event | it says |", [(word, meanings[f"EventReason.{word.name}"]) for word in words.EventReason]),
        "fields": ("| field | default | |", list(_fields(crd.schema()["properties"]["spec"]))),
        "settings": (
            "| variable | default | |",
            [
                (f"`DDP_OPERATOR__{key.upper()}`", _shown(field.default), environment.get(f"Settings.{key}", ""))
                for key, field in settings.Settings.model_fields.items()
            ],
        ),
    }
    for mark, (head, rows) in tables.items():
        rule = "|---" * (head.count("|") - 1) + "|"
        table = "\n".join([head, rule, *(f"| {' | '.join(row)} |" for row in rows)])
        text = re.sub(
            rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL
        )
    return text


def _fields(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    for key, below in node["properties"].items():
        here = f"{path}.{key}".lstrip(".")
        if below["type"] == "object":
            yield from _fields(below, here)
        else:
            words = " or ".join(f"`{word}`" for word in below.get("enum", []))
            yield f"`{here}`", _shown(below.get("default")), below.get("description", words and f"{words}.")


def _shown(default: Any) -> str:
    return "-" if default in (None, "", ()) else f"`{default}`"


def manifests() -> dict[Path, str]:
    """Kustomize base and overlays: the chart's objects, one file each, under the release name `ddp-demo`."""
    folder = ROOT / "manifests"
    files: dict[Path, str] = {}
    for overlay, gpus in OVERLAYS.items():
        parts = render("--set", f"gpusPerReplica={gpus}", "--set", "job.hashName=false", "--set", "operator.enabled=false")
        job = {p: t for p, t in parts.items() if yaml.safe_load(t)["kind"] in JOB_KINDS}
        files |= {folder / "overlays" / overlay / path: text for path, text in job.items()}
        files[folder / "overlays" / overlay / "kustomization.yaml"] = _kustomization(["../../base", *sorted(job)])
        rest = {path: text for path, text in parts.items() if path not in job}
        files |= {folder / "base" / path: text for path, text in rest.items()}
        files[folder / "base" / "kustomization.yaml"] = _kustomization(sorted(rest))
    return files | operator(folder / "operator")


def operator(folder: Path) -> dict[Path, str]:
    """The operator for the whole cluster, in a namespace of its own, and the definition that it needs."""
    parts = render("--set", "job.enabled=false", "--set", "operator.clusterWide=true", name="ddp", namespace=OPERATOR_NAMESPACE)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE, "labels": labels}}
    parts |= {CRD_FILE: definition(), "namespace.yaml": yaml.safe_dump(namespace, sort_keys=False)}
    return {folder / path: text for path, text in parts.items()} | {folder / "kustomization.yaml": _kustomization(sorted(parts))}


def render(*arguments: str, name: str = NAME, namespace: str = "default") -> dict[str, str]:
    """`helm template`: template name -> its YAML, free of what belongs to Helm, and of the namespace if that is the default one."""
    helm = shutil.which("helm")
    if not helm:
        raise SystemExit("helm is not on PATH, and the manifests are its output; install Helm 3 or 4")
    command = [helm, "template", name, str(CHART), "--namespace", namespace, "--skip-tests", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    files = {}
    for part in re.split(r"^---\n", done.stdout, flags=re.MULTILINE)[1:]:
        source = re.match(r"# Source: [^/]+/templates/(.*)\n", part)
        assert source, part
        body = re.sub(
            r"^    (app.kubernetes.io/managed-by|helm.sh/chart|helm.sh/resource-policy): .*\n", "", part[source.end() :], flags=re.MULTILINE
        )
        files[source[1]] = re.sub(r'^  namespace: "default"\n', "", body, flags=re.MULTILINE).rstrip() + "\n"
    return files


def _kustomization(resources: list[str]) -> str:
    return yaml.safe_dump(
        {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}, sort_keys=False
    )


if __name__ == "__main__":
    sys.exit(main())
