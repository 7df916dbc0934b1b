"""Adoption: a labelled PyTorchJob that no TrainingRun names gets one. It goes with its job (owner reference) and asks for defaults."""

from __future__ import annotations

import re

from ddp_operator.act.status import CONFLICT, path_of
from ddp_operator.api.trainingrun import GROUP, KIND, RUN_LABEL, TRACK_LABEL, VERSION
from ddp_operator.decide.facts import JobFacts
from ddp_operator.observe.api import Api, ApiError, Json

_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class NameTakenError(Exception):
    """A TrainingRun of that name watches another job. The text says what to do."""


def run_name(job: JobFacts) -> str:
    """What the job's run label asks for, if an object can be called so; else the job's name."""
    return job.run if _OBJECT_NAME.fullmatch(job.run) else job.name


async def adopt(api: Api, namespace: str, job: JobFacts, *, timeout_seconds: float) -> Json:
    """Make a TrainingRun for the job; one that exists and names this job is as good. Returns the object.

    Raises:
        NameTakenError: the name belongs to another job's run.
        ApiError: it was not made, and may be tried again.
    """
    name = run_name(job)
    body = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": namespace,
            # without blockOwnerDeletion: that needs a right on the job's finalizers, and would make the job's deletion wait for us
            "ownerReferences": [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": job.name, "uid": job.uid}],
        },
        "spec": {"jobRef": {"name": job.name}},
    }
    try:
        return await api.request("POST", path_of(namespace), body=body, timeout_seconds=timeout_seconds)
    except ApiError as error:
        if error.status != CONFLICT:
            raise
    found = await api.request("GET", path_of(namespace, name), timeout_seconds=timeout_seconds)
    if _job_of(found) != job.name:
        raise NameTakenError(
            f"PyTorchJob {namespace}/{job.name} is labelled {TRACK_LABEL}, but TrainingRun {name} exists, for job {_job_of(found)!r}: "
            f"give the job another name by the label {RUN_LABEL}, or make a TrainingRun for it yourself."
        )
    return found


def _job_of(run: Json) -> str:
    spec = run.get("spec")
    reference = spec.get("jobRef") if isinstance(spec, dict) else None
    name = reference.get("name") if isinstance(reference, dict) else None
    return name if isinstance(name, str) else ""
