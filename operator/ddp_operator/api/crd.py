"""The CustomResourceDefinition, made from the models: `python manifests/render.py` writes it into the chart, and a test fails on drift.

What the API server cannot keep (references, unions with null, `properties` beside `additionalProperties`) is resolved here: the schema is
structural, and nothing unknown is stored. An optional field that has no value is left out of the object: the server prunes nulls.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ddp_operator.api import trainingrun, words
from ddp_operator.api.trainingrun import GROUP, KIND, PLURAL, SHORT_NAME, VERSION, TrainingRun

Schema = dict[str, Any]

CATEGORY = "ddp"
"""`kubectl get ddp`."""
SHORTEST_HUNG_AFTER_SECONDS = 30
"""Progress is asked for every 10 s by default: with less than three looks a healthy run would be taken for a hung one."""

COLUMNS: tuple[tuple[str, str, str, int, str], ...] = (
    ("Phase", "string", ".status.phase", 0, "What is true of the run now."),
    ("Step", "integer", ".status.progress.step", 0, "The step that training has reached."),
    ("Epoch", "string", ".status.progress.epoch", 0, "Of how many."),
    ("Loss", "string", ".status.progress.loss", 0, "Of the last logged step."),
    ("Samples/s", "string", ".status.progress.samplesPerSecond", 0, "Of all ranks together."),
    ("Ckpt", "integer", ".status.checkpoint.step", 0, "The newest durable step."),
    ("Ckpt-Age", "date", ".status.checkpoint.savedAt", 0, "Since that step became durable."),
    ("Restarts", "integer", ".status.restarts.total", 0, "Of ranks and of pods."),
    ("ETA", "string", ".status.progress.eta", 0, "Until the last step."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Of the TrainingRun."),
    ("Reason", "string", ".status.reason", 1, "Why it is in this phase."),
    ("Message", "string", ".status.message", 1, "The same as a sentence, with what to do."),
    ("Goodput", "string", ".status.timing.goodputRatio", 1, "Share of the time that became training which was kept."),
    ("Job", "string", ".spec.jobRef.name", 1, "The PyTorchJob."),
)
"""Name, type, path, priority (1: only with -o wide), description."""

KEPT = ("enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties", "format")
"""Words that mean the same to pydantic and to the API server."""

LISTS_BY_KEY: dict[tuple[str, ...], str] = {("status", "conditions"): "type", ("status", "claims"): "name"}
"""Lists whose items are known by a key: two writers, or server-side apply, cannot double one."""

DURATION_PATTERN: str = TrainingRun.model_json_schema()["$defs"]["Policy"]["properties"]["hungAfter"]["pattern"]
DURATION_RULE = {"rule": "self.matches('[1-9]')", "message": "is no time at all; use something like 90s, 10m or 1h30m"}
"""On every duration."""

_SECONDS = (
    "self.findAll('[0-9]+([.][0-9]+)?[smhd]').map(p, double(p.substring(0, p.size() - 1)) * "
    "(p.endsWith('s') ? 1.0 : p.endsWith('m') ? 60.0 : p.endsWith('h') ? 3600.0 : 86400.0)).sum()"
)
"""CEL: a duration in seconds. CEL's own duration() knows no days."""

RULES: dict[tuple[str, ...], Schema] = {
    ("spec", "jobRef", "name"): {
        "rule": "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        "message": "is no name that a PyTorchJob can have; give the name of one in this namespace",
    },
    ("spec", "checkpoint", "path"): {
        "rule": "!self.split('/').exists(part, part == '..')",
        "message": "leads out of the claim; leave out '..'",
    },
    ("spec", "policy", "hungAfter"): {
        "rule": f"{_SECONDS} >= {SHORTEST_HUNG_AFTER_SECONDS}.0",
        "message": f"is less than {SHORTEST_HUNG_AFTER_SECONDS}s; progress is asked for every 10 s, so a healthy run would seem hung",
    },
}
"""Path of a field to its CEL rule: what types cannot say. The server writes the field's path before the message."""


def crd() -> dict[str, Any]:
    """The whole object, as it is applied."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
        "schema": {"openAPIV3Schema": schema()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "ddp-operator"}},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT_NAME],
                "categories": [CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def schema() -> Schema:
    """The structural schema of one TrainingRun."""
    source = TrainingRun.model_json_schema(by_alias=True)
    body = _Reader(source.get("$defs", {}), docstrings(trainingrun) | docstrings(words)).structural(source, ())
    return {
        "type": "object",
        "description": "A training run: a PyTorchJob, its checkpoints, and what is true of both.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            **body["properties"],
        },
    }


def _column(name: str, kind: str, path: str, priority: int, description: str) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": priority} if priority else {})


@dataclass(frozen=True)
class _Reader:
    """Turns pydantic's schema into the API server's. `texts` are docstrings by class or "class.field"."""

    parts: dict[str, Schema]
    texts: dict[str, str]

    def structural(self, node: Schema, path: tuple[str, ...]) -> Schema:
        node, owner = self._resolved(node)
        made: Schema = {"type": node.get("type", "string")} | {key: node[key] for key in KEPT if key in node}
        if "const" in node:
            made["enum"] = [node["const"]]
        if made["type"] == "integer":
            made["format"] = "int64"
        if owner in self.texts:
            made["description"] = self.texts[owner]
        if made["type"] == "array":
            made["items"] = self.structural(node["items"], (*path, "[]"))
            key = LISTS_BY_KEY.get(path)
            made["x-kubernetes-list-type"] = "map" if key else "atomic"
            made |= {"x-kubernetes-list-map-keys": [key]} if key else {}
        elif "properties" in node:
            made["properties"] = {key: self._field(key, below, owner, (*path, key)) for key, below in node["properties"].items()}
            made |= {"required": sorted(node["required"])} if node.get("required") else {}
        elif isinstance(node.get("additionalProperties"), dict):  # beside properties the server forbids it, and prunes what is unknown
            made["additionalProperties"] = self.structural(node["additionalProperties"], (*path, "{}"))
        is_duration = node.get("pattern") == DURATION_PATTERN
        rules = [*([DURATION_RULE] if is_duration else []), *([RULES[path]] if path in RULES else [])]
        return made | ({"x-kubernetes-validations": rules} if rules else {})

    def _field(self, key: str, node: Schema, owner: str, path: tuple[str, ...]) -> Schema:
        made = self.structural(node, path)
        if (text := self.texts.get(f"{owner}.{_snake(key)}")) is not None:
            made["description"] = text
        if path[0] == "spec" and len(path) > 1 and node.get("default") is not None:
            # of the wish, so that `kubectl get -o yaml` shows what holds; an object's own fields bring theirs
            made["default"] = {} if made["type"] == "object" else node["default"]
        return made

    def _resolved(self, node: Schema) -> tuple[Schema, str]:
        """Without references and without the null of an optional field; and the name of the class that it is, or ""."""
        choices = [choice for choice in node.get("anyOf", []) if choice.get("type") != "null"]
        if len(choices) > 1:
            raise ValueError(f"a field of several types has no structural schema: {node}; give it one type")
        node = {**node, **(choices[0] if choices else {})}
        owner = str(node.pop("$ref", "")).rpartition("/")[2]
        return ({**node, **self.parts[owner]}, owner) if owner else (node, str(node.get("title", "")) if "properties" in node else "")


def docstrings(module: ModuleType) -> dict[str, str]:
    """Of a module's classes, by name, and of their fields and words ("Class.field"), by the text below: what `kubectl explain` prints."""
    found = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        if (text := ast.get_docstring(node)) is not None:
            found[node.name] = _line(text)
        for field, below in zip(node.body, node.body[1:], strict=False):
            target = field.target if isinstance(field, ast.AnnAssign) else field.targets[0] if isinstance(field, ast.Assign) else None
            if isinstance(target, ast.Name) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[f"{node.name}.{target.id}"] = _line(str(below.value.value))
    return found


def _line(text: str) -> str:
    return " ".join(text.split())


def _snake(key: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key)
