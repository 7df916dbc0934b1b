"""What operators were granted, and what they asked for, by the API server's audit log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from cluster import CLUSTER, CaseError, NotRunError, in_node
from release import Release
from table import Row

LOG = "/var/log/kubernetes/audit.log"
UNKNOWN = 401
DECISION = "authorization.k8s.io/decision"
"""By the roles. A 403 has other reasons too: an admission webhook, or a namespace that is about to go."""
ACCOUNT = "system:serviceaccount"
RARE: dict[tuple[str, str], str] = {("get", "trainingruns"): "after a write that met another's"}
"""Granted for what no case brings about."""
Right = tuple[str, str]
"""Verb and resource, with its subresource: ("update", "trainingruns/status")."""


def audit(release: Release) -> Iterator[Row]:
    """Of all that operators asked for in the cases so far nothing was denied, and all that their roles grant was used."""
    release.install("job.enabled=false")
    granted = {right for role in release.items("roles") if "operator" in role["metadata"]["name"] for right in _rights(role)}
    if not granted:
        raise CaseError("the release has no role of the operator")
    used, refused = _asked()
    words = ", ".join(f"{verb} {resource} {used[verb, resource]}" for verb, resource in sorted(used, key=lambda right: right[::-1]))
    yield Row("what operators asked for", "within their roles", words, good=set(used) <= granted)
    yield Row("denied", "nothing", ", ".join(refused) or "nothing", good=not refused)
    unused = sorted(granted - set(used))
    words = ", ".join(
        f"{verb} {resource}" + (f" ({RARE[verb, resource]})" if (verb, resource) in RARE else "") for verb, resource in unused
    )
    yield Row("granted and never used", "nothing, but for what is rare", words or "nothing", good=set(unused) <= set(RARE))


def denied(namespace: str) -> Row:
    """Of all that operators of a namespace asked for nothing was denied."""
    used, refused = _asked(f"{namespace}:")
    words = ", ".join(refused) or f"nothing, of {used.total()} requests"
    return Row(f"denied to the operator of {namespace}", "nothing", words, good=used.total() > 0 and not refused)


def _rights(role: dict[str, Any]) -> set[Right]:
    return {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def _asked(of: str = "") -> tuple[Counter[Right], list[str]]:
    """What operators (those whose account begins so) asked for how often, a request counted once, and each kind that was denied.

    Raises:
        NotRunError: the API server keeps no such log.
    """
    try:
        lines = in_node(f"{CLUSTER}-control-plane", f"cat {LOG}").splitlines()
    except CaseError:
        raise NotRunError(f"the API server of {CLUSTER} keeps no audit log; run tests/e2e/audit-up.sh {CLUSTER}") from None
    requests: dict[str, Right] = {}
    refused: dict[str, list[str]] = {}
    bad: list[str] = []
    # by the time when they came: a watch is written down again when it ends
    for entry in sorted(map(json.loads, lines), key=lambda entry: entry["requestReceivedTimestamp"]):
        name = entry["user"]["username"]
        if (
            not (name.endswith("-operator") and name.startswith(f"{ACCOUNT}:{of}")) or "objectRef" not in entry
        ):  # a probe of /api is nobody's right
            continue
        target = entry["objectRef"]
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        code, words = entry.get("responseStatus", {}).get("code", 0), entry.get("responseStatus", {}).get("message", "")
        account = entry["user"]["uid"]  # of one installation: a name comes again
        requests[entry["auditID"]] = (entry["verb"], resource)
        if code != UNKNOWN and entry.get("annotations", {}).get(DECISION) != "forbid":
            bad += refused.pop(account, [])
        else:
            refused.setdefault(account, []).append(f"{entry['verb']} {resource}: {words[:160]}")
    # What is still in `refused` was asked after the last request that was allowed: an uninstall takes the role before the process.
    return Counter(requests.values()), [f"{count} x {what}" for what, count in Counter(bad).items()]
