"""A real API server is hit, and its etcd: after each outage the operator sees again, or has ended and begun anew; it is never blind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from cluster import CaseError, in_node, items, kubectl, until
from release import Release
from table import Row

from cases.operator_steps import TRAINS_SECONDS, Story, ledger_of, operators, status_of, trains

OUTAGE_SECONDS = 40.0
"""Less than after which the kubelet takes its API server for dead and starts it anew (80 s), which would be another fault."""
SEES_SECONDS = 60.0
"""From an outage's end until a deletion after it, or in it, is in the ledger."""
READY_SECONDS = 120.0
BACK_SECONDS = 300.0
"""The scheduler and the controllers end when they lose their leases, and the kubelet makes them wait longer each time."""
API_PORT = 6443
Fault = Callable[[Release, str], str]
"""Begins and ends an outage of the API server on that node; gives what was seen of it."""


def outages(release: Release) -> Iterator[Row]:
    """The API server is frozen, killed with its history, loses its etcd, then its way to the operator: a deletion is known in 60 s."""
    started = time.time()
    release.install("replicas=2", "job.terminationGracePeriodSeconds=15")
    control = next(node["metadata"]["name"] for node in items("nodes", "-l", "node-role.kubernetes.io/control-plane"))
    faults: dict[str, Fault] = {
        "the API server is frozen": _frozen,
        "it is killed, with its history": _killed,
        "its etcd is frozen": _without_etcd,
        "a worker is deleted while the operator is cut off": _cut,
    }
    with Story(release) as story:
        yield trains(story, "before", started)
        for number, (name, fault) in enumerate(faults.items(), start=1):
            yield _sees(release, story, name, number, fault, control)
        at = time.time()
        story.wait("Running", TRAINS_SECONDS, lambda look: look.phase == "Running" and look.step > 0, since=at)
    entries, acts = ledger_of(release), status_of(release)["restarts"].get("byOperator", 0)
    told = [event for event in release.items("events", "--field-selector", "reason=Restarted") if event["type"] == "Normal"]
    good = entries == ["PodDeleted"] * len(faults) and not acts
    yield Row("the ledger", "each deletion once, and nothing else", f"{entries}, {acts} restarts by the operator", good=good)
    words = f"{len(told)} that it trains again"
    yield Row("the events", "one for each recovery", words, good=len(told) == len(faults))


def _sees(release: Release, story: Story, name: str, number: int, fault: Fault, control: str) -> Row:
    """Once the outage has ended, delete a worker, unless that was done in it, and wait for the ledger."""
    seen = fault(release, control)
    at = time.time()
    if fault is not _cut:
        if (known := ledger_of(release)) != ["PodDeleted"] * (number - 1):
            raise CaseError(f"the ledger tells of what did not happen: {known}")
        release.kubectl("delete", "pod", f"{release.job}-worker-0", "--wait=false")
    until(f"deletion {number} in the ledger", 3 * SEES_SECONDS, lambda: len(_deletions(release)) >= number)
    took = time.time() - at
    words = f"{seen}; {story.words(at)}; containers of the operator begun anew: {_begun_anew(release)}"
    expected = f"a deletion in the ledger {SEES_SECONDS:.0f} s later"
    row = Row(name, expected, words, took, slow=took >= SEES_SECONDS)
    story.wait("Running", BACK_SECONDS, lambda look: look.phase == "Running" and look.restarts >= number, since=at)
    until("a worker that runs", BACK_SECONDS, lambda: release.pod_named("worker-0")["status"]["phase"] == "Running")
    return row


def _deletions(release: Release) -> list[str]:
    return [entry for entry in ledger_of(release) if entry.startswith("PodDeleted")]


def _begun_anew(release: Release) -> int:
    return sum(state["restartCount"] for pod in operators(release) for state in pod["status"].get("containerStatuses", []))


def _frozen(_: Release, control: str) -> str:
    return _freeze(control, "kube-apiserver")


def _without_etcd(_: Release, control: str) -> str:
    return _freeze(control, "etcd")


def _freeze(control: str, process: str) -> str:
    """Nothing is refused and nothing is answered: requests and watches hang."""
    in_node(control, f"kill -STOP $(pidof {process})")
    try:
        time.sleep(OUTAGE_SECONDS)
        if _answers():
            raise CaseError(f"the API server answers although {process} stands still")
    finally:
        in_node(control, f"kill -CONT $(pidof {process})")
    return f"{OUTAGE_SECONDS:.0f} s and {_ready():.0f} s until it was ready"


def _killed(release: Release, control: str) -> str:
    """A new API server knows nothing of what was before it: watches that go on from there are told 410 Gone, as one of our own proves."""
    pods = f"/api/v1/namespaces/{release.namespace}/pods"
    version = release.kubectl("get", "pod", f"{release.job}-master-0", "-o", "jsonpath={.metadata.resourceVersion}")
    old = in_node(control, "pidof kube-apiserver").strip()
    in_node(control, f"kill -9 {old}")
    until("another API server", READY_SECONDS, lambda: in_node(control, "pidof kube-apiserver || true").strip() not in {"", old})
    seconds = _ready()
    said = release.kubectl("get", "--raw", f"{pods}?watch=1&timeoutSeconds=1&resourceVersion={version}", check=False)
    if '"code":410' not in said and "too old" not in said:
        raise CaseError(f"the API server still knows its history: {said[:200]!r}")
    return f"ready after {seconds:.0f} s; a watch from before is told 410"


def _cut(release: Release, _: str) -> str:
    """Packets between the operator's pod and the API server are dropped, so that neither hears that the other is gone."""
    (pod,) = operators(release)
    node, address = pod["spec"]["nodeName"], pod["status"]["podIP"]
    ways = (f"-s {address} -p tcp --dport {API_PORT}", f"-d {address} -p tcp --sport {API_PORT}")
    drop, open_up = ("; ".join(f"iptables {verb} FORWARD {way} -j DROP" for way in ways) for verb in ("-I", "-D"))
    before, uid = len(_deletions(release)), release.pod_named("worker-0")["metadata"]["uid"]
    at = time.time()
    try:
        in_node(node, f"set -e; {drop}")
        release.kubectl("delete", "pod", f"{release.job}-worker-0", "--wait=false")
        until("another worker", BACK_SECONDS, lambda: release.pod_named("worker-0")["metadata"]["uid"] != uid)
        time.sleep(max(0.0, at + OUTAGE_SECONDS - time.time()))
        if len(_deletions(release)) > before:
            raise CaseError("the operator was not cut off: it told of the deletion")
    finally:
        in_node(node, open_up)
    return f"{time.time() - at:.0f} s; the worker was replaced in it, and nothing was told"


def _answers() -> bool:
    return kubectl("get", "--raw", "/readyz", "--request-timeout=3s", check=False).strip() == "ok"


def _ready() -> float:
    """Wait until the API server answers well; gives for how long."""
    at = time.time()
    until("an API server that is ready", READY_SECONDS, _answers)
    return time.time() - at
