"""The NetworkPolicy: strangers reach neither rendezvous nor ranks, and training, name look-ups, scrapes and switched-on egress work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cluster import CaseError, NotRunError, until, workers
from inside import LISTENING, REACH, RESOLVE, SCRAPE
from release import Release, bystander
from table import Row

from cases.steps import install

RENDEZVOUS, TELEMETRY, WEB = 23456, 9400, 80
FORCE_SECONDS = 20.0
"""From a changed policy until it is in force: 0.1-0.3 s were measured, and some plug-ins take seconds."""


def network(release: Release) -> Iterator[Row]:
    """Another pod reaches neither the rendezvous nor the ranks; DNS, a scraper, and egress that was switched on do work."""
    strangers = _strangers(release)
    _assert_enforced(release, *strangers)
    yield from install(release, "replicas=2")
    release.follow()
    release.wait_step(3)
    attempt = release.last.attempt
    yield from _ports(release, strangers)
    yield from _scrape(release)
    yield from _outwards(release, strangers[0])
    seen = release.wait_steps(10)
    yield Row(
        "training under the policy", "goes on, undisturbed", f"step {seen.step}, attempt {seen.attempt}", good=seen.attempt == attempt
    )


def _strangers(release: Release) -> tuple[str, str]:
    """Two pods that serve port 80 and are none of the run's, on two nodes if there are two."""
    nodes = workers()
    for number in (0, 1):
        pod = bystander(f"stranger-{number}", ["python", "-m", "http.server", str(WEB)], nodeName=nodes[number % len(nodes)])
        pod["metadata"]["labels"] = {"app": "stranger"}
        pod["spec"]["securityContext"] = {"runAsUser": 0}  # port 80 is below 1024
        pod["spec"]["containers"][0]["securityContext"] = {}
        release.apply(pod)
    release.kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=stranger", "--timeout=90s")
    return "stranger-0", "stranger-1"


def _address(release: Release, pod: str) -> str:
    if not (address := release.kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIP}")):
        raise CaseError(f"{pod} has no address yet")
    return address


def _reached(release: Release, client: str, address: str, *ports: int) -> list[int]:
    """Which ports a pod can connect to. It raises where the pod could not even try: a broken client is no closed port."""
    found: list[int] = json.loads(release.python(client, REACH, address, *map(str, ports)))
    return found


def _assert_enforced(release: Release, client: str, server: str) -> None:
    """The same two pods with and without a policy that lets nothing in.

    Raises:
        NotRunError: the policy changes nothing, so this cluster's network plug-in does not know policies.
    """
    address = _address(release, server)
    until("the strangers reach each other", 30, lambda: _reached(release, client, address, WEB) or None)
    spec: dict[str, Any] = {"podSelector": {"matchLabels": {"app": "stranger"}}, "policyTypes": ["Ingress"]}
    release.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "nothing-in"}, "spec": spec})
    try:
        until("nothing comes in", FORCE_SECONDS, lambda: not _reached(release, client, address, WEB))
    except CaseError:
        plug_ins = release.kubectl("get", "daemonsets", "--all-namespaces", "-o", "jsonpath={.items[*].metadata.name}")
        raise NotRunError(f"the network plug-in of this cluster does not enforce NetworkPolicy (its DaemonSets: {plug_ins})") from None
    release.kubectl("delete", "networkpolicy", "nothing-in")
    until("the strangers reach each other again", FORCE_SECONDS, lambda: _reached(release, client, address, WEB) or None)


def _ports(release: Release, strangers: tuple[str, ...]) -> Iterator[Row]:
    master, worker = f"{release.job}-master-0", f"{release.job}-worker-0"
    address = _address(release, master)
    ports = json.loads(release.python(master, LISTENING))
    ranks = [port for port in ports if port not in {RENDEZVOUS, TELEMETRY}]
    yield Row(
        "what the master's pod listens to",
        "rendezvous, telemetry, ranks",
        f"{ports}",
        good=bool(ranks) and {RENDEZVOUS, TELEMETRY} <= {*ports},
    )
    inside = _reached(release, worker, address, *ports)
    yield Row("a worker -> all of them", "open", f"{inside}", good=inside == ports)
    for what, wanted in (("rendezvous", [RENDEZVOUS]), ("telemetry", [TELEMETRY]), ("the ranks' own ports", ranks)):
        found = {client: _reached(release, client, address, *wanted) for client in (*strangers, release.reader)}
        yield Row(
            f"strangers -> {what} {wanted}", "refused", ", ".join(f"{c}: {p}" for c, p in found.items()), good=not any(found.values())
        )


def _scrape(release: Release) -> Iterator[Row]:
    address = _address(release, f"{release.job}-master-0")
    release.kubectl("label", "pod", release.reader, "app.kubernetes.io/name=prometheus")
    text = until("a scrape", FORCE_SECONDS, lambda: release.python(release.reader, SCRAPE, address))
    steps = [line for line in text.splitlines() if line.startswith("trainer_step ")]
    yield Row("a scraper -> /metrics", "trainer_step and more", f"{steps}, {len(text.splitlines())} lines", good=bool(steps))
    found = _reached(release, release.reader, address, RENDEZVOUS)
    yield Row("a scraper -> rendezvous", "refused", f"{found}", good=not found)


def _outwards(release: Release, server: str) -> Iterator[Row]:
    job, worker = release.job, f"{release.job}-worker-0"
    names = [f"{job}-master-0", "kubernetes.default.svc.cluster.local"]
    found = json.loads(release.python(worker, RESOLVE, *names))
    yield Row("names looked up in a worker", "both known", f"{found}", good=len(found) == len(names))
    address = _address(release, server)
    before = _reached(release, worker, address, WEB)
    yield Row("a worker -> web", "refused", f"{before}", good=not before)
    release.upgrade("networkPolicy.allowWebEgress=true")
    after = until("egress to the web", FORCE_SECONDS, lambda: _reached(release, worker, address, WEB) or None)
    yield Row(
        "networkPolicy.allowWebEgress=true", "open, the same job", f"{after}, {release.job}", good=after == [WEB] and release.job == job
    )
