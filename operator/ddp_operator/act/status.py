"""Writing a TrainingRun's status: the whole of it, only if it differs, and only over the version that the decision was made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ddp_operator.api.trainingrun import GROUP, KIND, PLURAL, VERSION, TrainingRunStatus
from ddp_operator.decide.facts import RunFacts
from ddp_operator.observe.api import Api, ApiError, Json

CONFLICT = 409
GONE = 404
INVALID = 422
INSTALL = "run `kubectl apply --server-side -f helm/crds` with the files of this operator's version: Helm never upgrades a CRD"
"""What to do when the server does not know what is written."""


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
        if error.status == INVALID:
            reason = f"the CRD on this cluster refuses the status ({error.reason}); {INSTALL}"
            raise ApiError(INVALID, reason, error.retry_after_seconds) from error
        raise


def pruned(status: TrainingRunStatus, body: Json) -> tuple[str, ...]:
    """Paths of what was written and is not in `body`, the object as stored: its CRD is older than this operator and does not know them."""
    wanted, stored = rendered(status), body.get("status")
    return () if wanted == stored else tuple(_missing(wanted, stored, ""))


def _missing(wanted: Any, stored: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict):
        known = stored if isinstance(stored, dict) else {}
        for key, inner in wanted.items():
            here = f"{path}.{key}" if path else key
            if key in known:
                yield from _missing(inner, known[key], here)
            else:
                yield here
    elif isinstance(wanted, list) and isinstance(stored, list):
        for one, other in zip(wanted, stored, strict=False):
            yield from _missing(one, other, f"{path}[]")
