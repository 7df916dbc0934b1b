"""Carrying out what was decided: suspend and resume a job, delete a pod. Each only if the object is still the one that was looked at.

A job is changed by a JSON patch whose `test` operations the server checks in the same transaction: its uid (no namesake made since) and
its generation (nobody has changed the spec since: a user's own suspend is never undone). Its status may change meanwhile, and does all the
time, so its resourceVersion is not tested.
"""

from __future__ import annotations

from typing import Any

from ddp_operator.act.api_client import JSON_PATCH
from ddp_operator.act.status import CONFLICT, GONE, INVALID, ConflictError
from ddp_operator.decide.decision import FIELD_MANAGER, Action, DeletePod, ResumeJob, SuspendJob
from ddp_operator.observe.api import Api, ApiError, Json

JOBS = "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs/{name}"
PODS = "/api/v1/namespaces/{namespace}/pods/{name}"


async def carry_out(api: Api, namespace: str, action: Action, *, timeout_seconds: float) -> Json | None:
    """Do it. Returns the job as it is now, or None for a pod. A pod that is gone already is no error.

    Raises:
        ConflictError: the job or pod is another one now, or was changed: nothing was done; decide again.
        ApiError: anything else; whether it was done is not known when the status is 0.
    """
    match action:
        case SuspendJob():
            return await _suspend(api, namespace, action, wish=True, timeout_seconds=timeout_seconds)
        case ResumeJob():
            return await _suspend(api, namespace, action, wish=False, timeout_seconds=timeout_seconds)
        case DeletePod():
            await _delete(api, namespace, action, timeout_seconds=timeout_seconds)
            return None


async def _suspend(api: Api, namespace: str, action: SuspendJob | ResumeJob, *, wish: bool, timeout_seconds: float) -> Json:
    path = JOBS.format(namespace=namespace, name=action.job)
    guards = [
        {"op": "test", "path": "/metadata/uid", "value": action.uid},
        {"op": "test", "path": "/metadata/generation", "value": action.generation},
    ]

    async def patch(change: dict[str, Any]) -> Json:
        # named, since the next decision tells a user's pause from ours by who owns the field
        who = {"fieldManager": FIELD_MANAGER}
        return await api.request("PATCH", path, query=who, body=[*guards, change], content_type=JSON_PATCH, timeout_seconds=timeout_seconds)

    is_same = False
    try:
        try:
            return await patch({"op": "add", "path": "/spec/runPolicy/suspend", "value": wish})
        except ApiError as error:
            # also when spec.runPolicy is missing, which is optional, or an admission policy says no: which of them is not said
            if error.status != INVALID:
                raise
            spec = await _spec(api, path, action, timeout_seconds)
            is_same = True
            if "runPolicy" in spec:
                raise
            return await patch({"op": "add", "path": "/spec/runPolicy", "value": {"suspend": wish}})
    except ApiError as error:
        if error.status in (CONFLICT, GONE) or (error.status == INVALID and not is_same):
            raise ConflictError(f"job {namespace}/{action.job} was not {'suspended' if wish else 'resumed'}: {error.reason}") from error
        raise


async def _spec(api: Api, path: str, action: SuspendJob | ResumeJob, timeout_seconds: float) -> Json:
    job = await api.request("GET", path, timeout_seconds=timeout_seconds)
    metadata, spec = job.get("metadata"), job.get("spec")
    if not isinstance(metadata, dict) or (metadata.get("uid"), metadata.get("generation")) != (action.uid, action.generation):
        raise ApiError(CONFLICT, "it is another job now, or its spec was changed")
    return spec if isinstance(spec, dict) else {}


async def _delete(api: Api, namespace: str, action: DeletePod, *, timeout_seconds: float) -> None:
    options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": action.uid}}
    if action.grace_seconds is not None:
        options["gracePeriodSeconds"] = action.grace_seconds
    try:
        path = PODS.format(namespace=namespace, name=action.pod)
        await api.request("DELETE", path, body=options, timeout_seconds=timeout_seconds)
    except ApiError as error:
        if error.status == CONFLICT:
            raise ConflictError(f"pod {namespace}/{action.pod} was not deleted: {error.reason}") from error
        if error.status != GONE:
            raise
