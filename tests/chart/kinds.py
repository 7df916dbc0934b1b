"""The schemas against which kubeconform holds the chart's objects, without a network: one closed JSON schema for each kind it makes.

PyTorchJob, and the spec of a Pod, are upstream's: both stand in the training operator's CRD, pod template included. TrainingRun is the
operator's own. The other kinds are transcribed here from Kubernetes 1.34's API, as far as the chart uses them: a field that exists but is
not listed is refused too, so add it.
What no schema holds is not covered: CEL expressions, and the API server's own validation beyond types and enumerations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ddp_operator.api.crd import schema

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
QUANTITY: Schema = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?([EPTGM]i?|[Kk]i?|m)?$"}
LABEL: Schema = {"type": "string", "maxLength": 63, "pattern": r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"}


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


def several(item: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": item}


def mapping(value: Schema) -> Schema:
    return {"type": "object", "additionalProperties": value}


def fields(*required: str, **known: Schema) -> Schema:
    """An object with these fields and no others."""
    needed = {"required": list(required)} if required else {}  # an empty list is no valid schema
    return {"type": "object", "additionalProperties": False, "properties": known, **needed}


def kind(**known: Schema) -> Schema:
    return fields(
        "apiVersion", "kind", "metadata", *(["spec"] if "spec" in known else []), apiVersion=TEXT, kind=TEXT, metadata=METADATA, **known
    )


METADATA = fields(
    "name",
    name={"type": "string", "maxLength": 253, "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
    namespace={"type": "string", "maxLength": 63, "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    labels=mapping(LABEL),
    annotations=mapping({"type": "string"}),
)
REQUIREMENT = fields("key", "operator", key=TEXT, operator=one_of("In", "NotIn", "Exists", "DoesNotExist"), values=several(LABEL))
SELECTOR = fields(matchLabels=mapping(LABEL), matchExpressions=several(REQUIREMENT))
PEER = fields(podSelector=SELECTOR, namespaceSelector=SELECTOR, ipBlock=fields("cidr", cidr=TEXT, **{"except": several(TEXT)}))
PORT = fields(port={"type": ["integer", "string"]}, endPort=COUNT, protocol=one_of("TCP", "UDP", "SCTP"))
EXPRESSION = fields("name", "expression", name=TEXT, expression=TEXT)
RULE = fields(
    "apiGroups",
    "apiVersions",
    "operations",
    "resources",
    apiGroups=several(TEXT),
    apiVersions=several(TEXT),
    operations=several(one_of("CREATE", "UPDATE", "DELETE", "CONNECT", "*")),
    resources=several(TEXT),
    resourceNames=several(TEXT),
)
RULES = several(
    fields(
        "apiGroups",
        "resources",
        "verbs",
        apiGroups=several({"type": "string"}),
        resources=several(TEXT),
        resourceNames=several(TEXT),
        verbs=several(one_of("get", "list", "watch", "create", "update", "patch", "delete")),
    )
)
ROLE_REF = fields("apiGroup", "kind", "name", apiGroup=one_of("rbac.authorization.k8s.io"), kind=one_of("Role", "ClusterRole"), name=TEXT)
SUBJECTS = several(fields("kind", "name", "namespace", kind=one_of("ServiceAccount"), name=TEXT, namespace=TEXT))
DEVICES = fields("deviceClassName", deviceClassName=TEXT, allocationMode=one_of("ExactCount", "All"), count=COUNT)

TRANSCRIBED = {
    "ConfigMap": kind(data=mapping({"type": "string"}), immutable=FLAG),
    "ServiceAccount": kind(automountServiceAccountToken=FLAG),
    "Role": kind(rules=RULES),
    "ClusterRole": kind(rules=RULES),
    "RoleBinding": kind(roleRef=ROLE_REF, subjects=SUBJECTS),
    "ClusterRoleBinding": kind(roleRef=ROLE_REF, subjects=SUBJECTS),
    "Service": kind(
        spec=fields(
            "selector", "ports", selector=mapping(LABEL), ports=several(fields("name", "port", name=TEXT, port=COUNT, targetPort=TEXT))
        )
    ),
    "ServiceMonitor": kind(
        spec=fields("selector", "endpoints", selector=SELECTOR, endpoints=several(fields("port", port=TEXT, path=TEXT)))
    ),
    "PersistentVolumeClaim": kind(
        spec=fields(
            "accessModes",
            "resources",
            accessModes=several(one_of("ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod")),
            storageClassName={"type": "string"},
            resources=fields("requests", requests=mapping(QUANTITY)),
        )
    ),
    "NetworkPolicy": kind(
        spec=fields(
            podSelector=SELECTOR,
            policyTypes=several(one_of("Ingress", "Egress")),
            ingress=several(fields(**{"from": several(PEER), "ports": several(PORT)})),
            egress=several(fields(to=several(PEER), ports=several(PORT))),
        )
    ),
    "ResourceClaimTemplate": kind(
        spec=fields(
            "spec",
            spec=fields("devices", devices=fields("requests", requests=several(fields("name", name=TEXT, exactly=DEVICES)))),
        )
    ),
    "ValidatingAdmissionPolicy": kind(
        spec=fields(
            "matchConstraints",
            "validations",
            failurePolicy=one_of("Fail", "Ignore"),
            matchConstraints=fields("resourceRules", resourceRules=several(RULE), namespaceSelector=SELECTOR, objectSelector=SELECTOR),
            matchConditions=several(EXPRESSION),
            variables=several(EXPRESSION),
            validations=several(fields("expression", expression=TEXT, message=TEXT)),
        )
    ),
    "ValidatingAdmissionPolicyBinding": kind(
        spec=fields("policyName", "validationActions", policyName=TEXT, validationActions=several(one_of("Deny", "Warn", "Audit")))
    ),
}


def schemas(crd: Path) -> dict[str, Schema]:
    """Of every kind that the chart makes. Upstream's CRD is 0.6 MB of YAML: read it once."""
    upstream = yaml.load(crd.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    job = closed(upstream["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    replica = job["properties"]["spec"]["properties"]["pytorchReplicaSpecs"]["additionalProperties"]
    pod = replica["properties"]["template"]["properties"]["spec"]
    template = fields("metadata", "spec", metadata=fields("labels", labels=mapping(LABEL)), spec=pod)
    deployment = fields("selector", "template", "replicas", replicas=COUNT, selector=SELECTOR, template=template)
    own = {"TrainingRun": closed(schema()), "Deployment": kind(spec=deployment)}
    return {"PyTorchJob": job, "Pod": kind(spec=pod), **own, **TRANSCRIBED}


def closed(node: Any) -> Any:
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
