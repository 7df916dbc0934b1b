"""The CustomResourceDefinition: structural, as the models say, with nothing that an API server refuses or silently keeps."""

import re

import pytest

from ddp_operator.api import words
from ddp_operator.api.crd import COLUMNS, RULES, crd, schema
from ddp_operator.api.trainingrun import LEDGER_ENTRIES, TrainingRun, TrainingRunSpec, TrainingRunStatus

STRUCTURAL = {
    *("type", "description", "properties", "required", "items", "additionalProperties", "enum", "pattern", "format", "default"),
    *("minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties"),
    *("x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
}


def nodes(node, path=()):
    yield path, node
    for key, below in node.get("properties", {}).items():
        yield from nodes(below, (*path, key))
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], (*path, key))


def at(*path):
    node = schema()
    for key in path:
        node = node["properties"][key]
    return node


def test_the_schema_is_structural():
    for path, node in nodes(schema()):
        assert set(node) <= STRUCTURAL, path
        assert node["type"] in {"object", "array", "string", "integer", "boolean"}, path
        assert not {"properties", "additionalProperties"} <= set(node), path


def test_nothing_is_unbounded_that_somebody_else_may_fill():
    """CEL's cost is estimated from the bounds, and etcd refuses what is larger than 1.5 MB."""
    for path, node in nodes(schema()):
        if path[:1] not in {("spec",), ("status",)}:
            continue
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] == "string":
            assert "maxLength" in node or "enum" in node or node.get("format") == "date-time", path
        if node["type"] == "object":
            assert "properties" in node or "maxProperties" in node, path


@pytest.mark.parametrize(
    ("path", "enumeration"),
    [
        (("status", "phase"), words.Phase),
        (("status", "stoppedByUs"), words.Cause),
        (("status", "intent", "action"), words.Act),
        (("status", "intent", "cause"), words.Cause),
    ],
)
def test_closed_lists_are_closed(path, enumeration):
    assert at(*path)["enum"] == [str(word) for word in enumeration]


def test_closed_lists_inside_of_lists_are_closed():
    assert at("status", "conditions")["items"]["properties"]["type"]["enum"] == [str(word) for word in words.ConditionType]
    assert at("status", "ledger")["items"]["properties"]["cause"]["enum"] == [str(word) for word in words.Cause]
    assert at("status", "ledger")["maxItems"] == LEDGER_ENTRIES


def test_conditions_and_claims_are_maps_by_key():
    assert at("status", "conditions")["x-kubernetes-list-map-keys"] == ["type"]
    assert at("status", "claims")["x-kubernetes-list-map-keys"] == ["name"]
    for name in ("conditions", "claims"):
        node = at("status", name)
        assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"]), "the server wants the keys to be required"


def test_every_field_of_the_models_is_in_the_schema():
    for part, model in (("spec", TrainingRunSpec), ("status", TrainingRunStatus)):
        assert set(at(part)["properties"]) == {field.alias for field in model.model_fields.values()}


def test_defaults_of_the_wish_are_the_models():
    def filled(node, value):
        for key, below in node.get("properties", {}).items():
            if "default" in below and key not in value:
                value[key] = {} if below["default"] == {} else below["default"]
            if isinstance(value.get(key), dict):
                filled(below, value[key])
        return value

    served = TrainingRun.model_validate({"spec": filled(at("spec"), {"jobRef": {"name": "a"}})})
    assert served.spec == TrainingRunSpec.model_validate({"jobRef": {"name": "a"}})


def test_the_status_has_no_defaults_since_absence_means_unknown():
    assert [path for path, node in nodes(at("status")) if "default" in node] == []


def test_every_duration_must_be_longer_than_nothing():
    durations = [(path, node) for path, node in nodes(schema()) if node.get("pattern", "").startswith("^([0-9]+")]
    assert {path[-1] for path, _ in durations} == {"staleAfter", "hungAfter", "pendingDeadline", "activeDeadline", "nodeLostAfter"}
    for path, node in durations:
        assert node["x-kubernetes-validations"][0]["rule"] == "self.matches('[1-9]')", path


def test_every_rule_is_on_a_field_that_exists():
    for path, rule in RULES.items():
        assert rule in at(*path)["x-kubernetes-validations"]
        assert rule["message"][0].islower(), "the server writes the field's path before it"


def test_columns_are_those_of_the_design_in_their_order():
    shown = [name.upper() for name, _, _, priority, _ in COLUMNS if not priority]
    assert shown == ["PHASE", "STEP", "EPOCH", "LOSS", "SAMPLES/S", "CKPT", "CKPT-AGE", "RESTARTS", "ETA", "AGE"]
    assert [name for name, _, _, priority, _ in COLUMNS if priority][:2] == ["Reason", "Message"]


def test_every_column_shows_a_field_that_exists_with_its_type():
    shown = {"integer": "integer", "string": "string", "date": "string"}
    for name, kind, path, _, _ in COLUMNS:
        keys = re.findall(r"\w+", path)
        if keys[0] != "metadata":
            assert at(*keys)["type"] == shown[kind], name


def test_names_scope_and_subresource():
    document = crd()
    assert document["metadata"]["name"] == "trainingruns.ddp-operator.io"
    spec = document["spec"]
    assert (spec["scope"], spec["names"]["shortNames"], spec["names"]["categories"]) == ("Namespaced", ["trun"], ["ddp"])
    (version,) = spec["versions"]
    assert version["subresources"] == {"status": {}}
    assert version["served"] is version["storage"] is True


def test_fields_are_explained_by_the_models_own_words():
    assert at("spec", "policy", "hungAfter")["description"].startswith("No sign of training")
    assert at("status", "phase")["description"] == "The one word about a run that is true now."


@pytest.mark.parametrize("name", ["onHung", "onNodeLost", "onDeadline", "onBudget", "onFinished"])
def test_every_act_can_be_switched_to_a_report(name):
    node = at("spec", "policy", name)
    assert node["enum"][1] == "Report"
    assert node["default"] == node["enum"][0]
