"""What several cases do: install, hit a pod, bring the end near, uninstall, and look at what is left."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from cluster import until
from inside import KILL_RANK, SNAPSHOTS
from kernel import kill_first
from release import Recovery, Release
from table import Row

FIRST_STEP_SECONDS, WORKER_SECONDS, MASTER_SECONDS, RANK_SECONDS = 20.0, 12.0, 15.0, 5.0
"""Targets, with the image present on the node, on a machine with nothing else to do."""
MORE_STEPS = 20
"""How far ahead the end is put."""
PREEMPTED, KILLED = 143, 137
SNAPSHOTS_SEEN = 4
"""Steps between them are the interval in memory: it follows what a snapshot costs on this machine."""
GONE_SECONDS = 150
"""From `helm uninstall` until pods are gone: the grace period of 120 s would be the worst."""
KINDS = (
    "trainingruns,pytorchjobs,deployments,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,persistentvolumeclaims,"
    "networkpolicies"
)
"""Not leases: the operators' own stays, so that the next one begins where the last one ended."""


def install(release: Release, *pairs: str, what: str = "install -> first step") -> Iterator[Row]:
    """With a bound on the time to the first step."""
    started = time.time()
    release.install(*pairs)
    took = release.first_step() - started
    yield Row(f"{what} ({release.helm_version})", f"< {FIRST_STEP_SECONDS:.0f} s", "trains", took, slow=took >= FIRST_STEP_SECONDS)


def delete_pod(release: Release, place: str, bound: float) -> Row:
    """`kubectl delete pod`: all ranks leave after the same step, it ends with 143, is made anew, and nothing is lost."""
    pod = f"{release.job}-{place}"
    fault = release.begin(f"delete {place}", place)
    release.kubectl("delete", "pod", pod, "--wait=false")
    seen = release.recovery(fault.started)
    code = release.wait_exit(place, fault.started, 30).code
    expected = f"next step < {bound:.0f} s, no step lost, {place}: {PREEMPTED}"
    return recovered(release, seen, expected, bound, good=code == PREEMPTED and not seen.lost)


def kill_rank(release: Release, place: str) -> Row:
    """SIGKILL to a rank: no pod ends, all ranks go on from the newest state in memory."""
    killed = float(release.python(f"{release.job}-{place}", KILL_RANK))
    fault = release.begin(f"SIGKILL a rank of {place}", started=killed)
    seen = release.recovery(fault.started)
    ended = any(fault.codes(release.diary.exits).values())
    return recovered(release, seen, f"next step < {RANK_SECONDS:.0f} s, no pod ends", RANK_SECONDS, good=not ended)


def kill_pod(release: Release, place: str, bound: float) -> Row:
    """SIGKILL to process 1, half an interval after a snapshot: it leaves no word, and all go on from a survivor's memory."""
    steps = json.loads(release.python(f"{release.job}-master-0", SNAPSHOTS, str(SNAPSHOTS_SEEN), timeout=140))
    newest, every = steps[-1], max(later - earlier for earlier, later in pairwise(steps))
    pod, durable = release.pod_named(place), max(release.durable_steps(), default=0)
    release.wait_step(newest + every // 2)
    fault = release.begin(f"SIGKILL to process 1 of {place}", place)
    kill_first(pod, "launch")
    seen = release.recovery(fault.started)
    code = release.wait_exit(place, fault.started, 30).code
    faults, lost = (release.diary.of(kind, fault.started) for kind in ("fault", "lost"))
    causes = {event["cause"] for event in faults}
    named = {event["node"] for event in lost} | {event["node"] for event in faults if event["cause"] == "peer_loss"}
    source = next(event["source"] for event in release.diary.of("resume", fault.started) if event["attempt"] == seen.attempt)
    good = code == KILLED and "preemption" not in causes and source == "memory" and seen.resumed >= newest and seen.lost <= every
    good = good and named == {node_of(place)}
    expected = f"next step < {bound:.0f} s, from memory, at most {every} steps lost (the interval there), {place}: {KILLED}"
    row = recovered(release, seen, expected, bound, good=good)
    told = f"from {source}, step {seen.resumed} ({newest} was seen there, {durable} on the claim); told as {', '.join(sorted(causes))}"
    told += f", node {', '.join(map(str, named))} as lost"
    return replace(row, seen=f"{row.seen}; {told}")


def node_of(place: str) -> int:
    """`master-0` -> 0, `worker-1` -> 2."""
    kind, _, index = place.partition("-")
    return int(index) + (kind == "worker")


def recovered(release: Release, seen: Recovery, expected: str, bound: float = math.inf, *, good: bool = True) -> Row:
    """The line for the newest fault."""
    fault = release.faults[-1]
    took = seen.time - fault.started
    words = f"goes on at step {seen.step}, {seen.lost} steps lost; exit codes {fault.words(release.diary.exits)}"
    return Row(fault.name, expected, words, took, good, slow=took >= bound)


def finish(release: Release, what: str = "an upgrade brings the end near") -> Row:
    """Wherever the run is, it has a few steps to go now; it must get there, and the last state must be on the claim."""
    last = release.wait_step(0).step + MORE_STEPS
    started = time.time()
    release.end_fault()
    release.upgrade(f"config.optim.max_steps={last}")
    release.wait_end("Succeeded", 600)
    steps = release.durable_steps()
    words = f"Succeeded, steps {steps} on the claim"  # the old job may have got beyond it while the upgrade was on its way
    return Row(what, f"Succeeded, step {last} durable", words, time.time() - started, bool(steps) and max(steps) >= last)


def uninstall(release: Release) -> Row:
    """Only the claim stays."""
    release.stop_following()
    release.do_helm("uninstall")
    return only_claim(release)


def only_claim(release: Release) -> Row:
    """What is left after an uninstall."""
    started = time.time()
    claim = [f"persistentvolumeclaim/{release.name}-checkpoints"]
    found = until("only the claim left", GONE_SECONDS, lambda: names if (names := left(release)) == claim else None)
    return Row("uninstall", "only the claim stays", " ".join(found), time.time() - started)


def nothing_left(release: Release) -> None:
    """Wait until the namespace is as it was."""
    until("nothing left", GONE_SECONDS, lambda: not left(release))


def left(release: Release) -> list[str]:
    """Names of what a release could leave in its namespace."""
    names = release.kubectl("get", KINDS, "-o", "name").split()
    own = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
    return [name for name in names if name not in own]


def warning(release: Release, *words: str) -> str | None:
    """The first warning event that holds any of these words."""
    messages = [event["message"] for event in release.items("events", "--field-selector=type=Warning")]
    return next((message[:160] for message in messages if any(word in message for word in words)), None)
