"""Writing a TrainingRun's status: the whole of it, only if it differs, and only over the version that the decision was made from."""

from __future__ import annotations

from typing import Any

from ddp_operator.api.trainingrun import GROUP, KIND, PLURAL, VERSION, TrainingRunStatus
from ddp_operator.decide.facts import RunFacts
from ddp_operator.observe.api import Api, ApiError, Json

CONFLICT = 409
GONE = 404
INVALID = 422


class ConflictError(Exception):
    """The object is not what the decision was made from: look again, and decide again."""


def path_of(namespace: str, name: str = "") -> str:
    """A TrainingRun's address, or that of all of a namespace. Namespace "": of the whole cluster."""
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{where}/{PLURAL}" + (f"/{name}" if name else "")


def rendered(status: TrainingRunStatus) -> Json:
    """As the API keeps it. What is None is left out: the schema knows no null."""
    found: Json = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return found


async def write_status(api: Api, facts: RunFacts, status: TrainingRunStatus, *, timeout_seconds: float) -> Json | None:
    """Put `status` in place of the stored one; None: it is the same, and nothing was sent. Returns the object as stored.

    Raises:
        ConflictError: somebody wrote in between, or the run was deleted, or deleted and made again.
        ApiError: anything else.
    """
    if facts.status == status or (wanted := rendered(status)) == rendered(facts.status):
        return None
    # the server takes nothing but the status from this, and the name, version and uid to compare: no stale spec can be written back
    body: dict[str, Any] = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": facts.name, "namespace": facts.namespace, "uid": facts.uid, "resourceVersion": facts.resource_version},
        "status": wanted,
    }
    try:
        path = path_of(facts.namespace, facts.name) + "/status"
        return await api.request("PUT", path, body=body, timeout_seconds=timeout_seconds)
    except ApiError as error:
        if error.status in (CONFLICT, GONE):
            raise ConflictError(f"the status of {facts.namespace}/{facts.name} was not written: {error.reason}") from error
        raise
