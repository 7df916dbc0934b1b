"""The ValidatingAdmissionPolicy: nobody edits a live job's replica counts, and everything else stays possible."""

from __future__ import annotations

from collections.abc import Iterator

from cluster import until
from release import Release
from table import Row

from cases.steps import install
from cases.upgrades import changed

DENIED = "denied request"
"""The API server's words for a policy's refusal."""
FORCE_SECONDS = 40.0
"""From the policy's creation until it is in force."""


def guard(release: Release) -> Iterator[Row]:
    """kubectl patch and kubectl scale of a live job are refused; a label, and helm upgrade, are not."""
    yield from install(release, "replicas=4", "guard.enabled=true")
    release.follow()
    job = release.job
    patch = '{"spec":{"pytorchReplicaSpecs":{"Worker":{"replicas":7}}}}'
    for command in (("patch", f"pytorchjob/{job}", "--type=merge", "-p", patch), ("scale", f"pytorchjob/{job}", "--replicas=7")):
        yield _refused(release, *command)
    counts = release.kubectl("get", "pytorchjob", job, "-o", "jsonpath={.spec.pytorchReplicaSpecs.Worker.replicas}")
    yield Row("the job's workers", "still 3", counts, good=counts == "3")
    said = release.kubectl("label", "pytorchjob", job, "e2e=yes", check=False).strip()
    yield Row("kubectl label", "allowed", said, good="labeled" in said)
    release.upgrade("job.labels.e2e-helm=yes")
    labels = release.jobs()[-1]["metadata"]["labels"]
    yield Row(
        "helm upgrade that edits the live job", "allowed", f"{release.job}", good=release.job == job and labels.get("e2e-helm") == "yes"
    )
    release.wait_step(12)
    yield changed(release, "helm upgrade 4 -> 2 replicas under the guard", 4, 2, lambda: release.upgrade("replicas=2"))


def _refused(release: Release, *command: str) -> Row:
    def look() -> bool:  # a policy takes some seconds to be in force, and until then only a dry run is harmless
        return DENIED in release.kubectl(*command, "--dry-run=server", check=False)

    until(f"kubectl {command[0]} is refused", FORCE_SECONDS, look, pause=1)
    said = release.kubectl(*command, check=False)
    return Row(f"kubectl {command[0]} of the replica count", "refused with a sentence", said.strip()[-200:], good=DENIED in said)
