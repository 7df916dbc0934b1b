"""The line that `kubectl get trainingruns` prints: it lives, and it tells of a loss and of the way back."""

from __future__ import annotations

import re
import select
import subprocess
import time
import urllib.request
from collections.abc import Iterator

from cluster import CONTEXT, CaseError, until
from release import Release
from table import Row
from watching import place_of

from cases.operator_steps import KNOWN_SECONDS, TRAINS_SECONDS, Story, line_of, status_of, trains
from cases.steps import only_claim

MORE_STEPS = 15


def line(release: Release) -> Iterator[Row]:
    """4 pods: the line moves; a deleted worker shows as Restarting with the cause, then Running at the durable step; it all goes."""
    started = time.time()
    release.install("replicas=4")
    with Story(release) as story:
        yield trains(story, "install -> a line that says Running", started)
        first = story.last.step
        seen = story.wait("further on", TRAINS_SECONDS, lambda look: look.step >= first + MORE_STEPS and look.durable > 0)
        yield Row("the line moves", f"{MORE_STEPS} steps on, with a durable step", line_of(release), good=seen.phase == "Running")
        yield from _lost(release, story)
        yield _pages(release)
        yield _conditions(release)
    release.do_helm("uninstall")
    yield only_claim(release)


def _lost(release: Release, story: Story) -> Iterator[Row]:
    durable, pod = story.last.durable, f"{release.job}-worker-1"
    restarts = story.last.restarts
    hit = time.time()
    release.kubectl("delete", "pod", pod, "--wait=false")
    restarting = story.wait_phase("Restarting", KNOWN_SECONDS, since=hit)
    yield Row("delete worker-1", "Restarting, with the cause", f"{restarting.word}: {restarting.message[:160]}", restarting.time - hit)
    back = story.wait("Running again", TRAINS_SECONDS, lambda look: look.phase == "Running", since=restarting.time)
    words = f"{story.words(hit)}, step {back.step}, restarts {back.restarts}"
    good = back.step >= durable and back.restarts > restarts
    yield Row("and back", f"Running at step >= {durable}, one restart more", words, back.time - hit, good)
    entry = until("an entry in the ledger", KNOWN_SECONDS, lambda: next(iter(status_of(release).get("ledger", [])[-1:]), None))
    words = f"{entry['cause']} of {place_of(entry.get('pod', '-?-?'))} at step {entry.get('step')}"
    yield Row("the ledger", "one entry, of worker-1", words, good=entry.get("pod") == pod and len(status_of(release)["ledger"]) == 1)


def _conditions(release: Release) -> Row:
    found = {condition["type"]: condition["status"] for condition in status_of(release)["conditions"]}
    said = release.kubectl("wait", "trainingrun", release.name, "--for=condition=Ready", "--timeout=60s", check=False).strip()
    words = ", ".join(f"{kind} {status}" for kind, status in sorted(found.items()))
    return Row("kubectl wait --for=condition=Ready", "met", f"{said[-60:]}; {words}", good="condition met" in said)


def _pages(release: Release) -> Row:
    """By port-forward, as a person looks at them: the operator's own policy lets nobody else in but Prometheus."""
    command = ["kubectl", "--context", CONTEXT, "-n", release.namespace, "port-forward", f"svc/{release.name}-operator", ":8080"]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert forward.stdout
        ready, _, _ = select.select([forward.stdout], [], [], KNOWN_SECONDS)
        said = forward.stdout.readline() if ready else "nothing"
        if not (port := re.search(r"127\.0\.0\.1:(\d+) ->", said)):
            raise CaseError(f"kubectl port-forward said {said.strip()}")
        numbers, page = (
            urllib.request.urlopen(f"http://127.0.0.1:{port[1]}{path}", timeout=10).read().decode() for path in ("/metrics", "/")
        )
    finally:
        forward.kill()
        forward.wait()
    good = "ddp_operator_is_leader 1.0" in numbers and release.name in page
    return Row("kubectl port-forward", "/metrics, and the run on the dashboard", f"{len(numbers)} and {len(page)} bytes", good=good)
