"""From the JSON bodies of Kubernetes objects to slim facts: pure and total.

Whatever stands in an optional field, nothing is raised: a body without a usable namespace, name or uid is None, everything else falls back
to the defaults of the facts. Bodies are never kept: what is kept are the few texts and numbers that a decision may need.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ddp_operator.api.trainingrun import RUN_LABEL, TRACK_LABEL, CheckpointSpec, JobRef, Policy, TrainingRunSpec
from ddp_operator.decide.classify import NODE_LOST_REASONS
from ddp_operator.decide.facts import ClaimFacts, JobFacts, PodFacts, RunFacts, Termination
from ddp_operator.observe import memory
from ddp_operator.observe.fields import address as ip_of
from ddp_operator.observe.fields import at, cleaned, instant, name, number, objects, quantity, text, word
from ddp_operator.observe.fields import version as version_of

Facts = TypeVar("Facts")
Model = TypeVar("Model", bound=BaseModel)

JOB_LABEL = "training.kubeflow.org/job-name"
"""On pods: the job's name. The training operator sets it, and its replica labels."""
_REPLICA_TYPE = "training.kubeflow.org/replica-type"
_REPLICA_INDEX = "training.kubeflow.org/replica-index"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_JOB_KIND = "PyTorchJob"
_CONTAINER = "pytorch"
_PORT = "telemetry"
_POD_PHASES = frozenset({"Pending", "Running", "Succeeded", "Failed", "Unknown"})
_TERMINATION_CHARACTERS = 4096
_MAX_CLAIMS = 32
_MAX_CONDITIONS = 16


@dataclass(frozen=True, slots=True)
class Seen(Generic[Facts]):
    """Facts, and which object in which version they are of."""

    namespace: str
    name: str
    uid: str
    version: int
    """The resourceVersion as a number; 0: it is none."""
    facts: Facts
    note: str = ""
    """What could not be read of an object of ours, in a sentence."""


def run(body: Any) -> Seen[RunFacts] | None:
    """A TrainingRun; None also for one that names no job. What another version of the CRD wrote is taken as far as it validates."""
    known = identity(body)
    job = name(at(body, "spec", "jobRef", "name"))
    if known is None or not job:
        return None
    namespace, own_name, uid, version = known
    meta = body["metadata"]
    checkpoint, lost_checkpoint = _salvaged(CheckpointSpec, at(body, "spec", "checkpoint"))
    policy, lost_policy = _salvaged(Policy, at(body, "spec", "policy"))
    status, lost_status, unreadable = memory.status(at(body, "status"))
    lost = (
        [f"spec.checkpoint.{key}" for key in lost_checkpoint]
        + [f"spec.policy.{key}" for key in lost_policy]
        + [f"status.{key}" for key in lost_status]
    )
    facts = RunFacts(
        namespace=namespace,
        name=own_name,
        uid=uid,
        generation=number(meta.get("generation"), 1),
        resource_version=text(meta.get("resourceVersion"), 64),
        created_at=instant(meta.get("creationTimestamp")),
        spec=TrainingRunSpec(job_ref=JobRef(name=job), checkpoint=_shared(checkpoint), policy=_shared(policy)),
        status=status,
        deleted_at=instant(meta.get("deletionTimestamp")),
        is_adopted=any(owner.get("kind") == _JOB_KIND for owner in objects(meta.get("ownerReferences"))),
        memory_is_unreadable=unreadable,
    )
    note = f"not understood, so taken as unset: {', '.join(lost)[:200]}; is the CRD of this operator's version installed?" if lost else ""
    note = f"{unreadable}; {note}" if unreadable else note
    return Seen(namespace, own_name, uid, version, facts, note)


def job(body: Any) -> Seen[JobFacts] | None:
    """A PyTorchJob, with the defaults that its controller only has in memory."""
    known = identity(body)
    if known is None:
        return None
    namespace, own_name, uid, version = known
    meta, spec = body["metadata"], at(body, "spec")
    replicas: dict[str, int] = {}
    policies: dict[str, str] = {}
    claims: dict[str, None] = {}
    for kind in ("Master", "Worker"):
        replica = at(spec, "pytorchReplicaSpecs", kind) or at(spec, "pytorchReplicaSpecs", kind.lower())
        if not isinstance(replica, dict):
            continue
        replicas[kind] = number(replica.get("replicas"), 1)
        policies[kind] = word(replica.get("restartPolicy"), "OnFailure")
        for volume in objects(at(replica, "template", "spec", "volumes")):
            if claim := name(at(volume, "persistentVolumeClaim", "claimName")):
                claims[claim] = None
    facts = JobFacts(
        name=own_name,
        uid=uid,
        generation=number(meta.get("generation"), 1),
        resource_version=text(meta.get("resourceVersion"), 64),
        created_at=instant(meta.get("creationTimestamp")),
        deleted_at=instant(meta.get("deletionTimestamp")),
        suspend=at(spec, "runPolicy", "suspend") is True,
        suspend_manager=_suspend_manager(meta),
        queue=word(at(meta, "labels", _QUEUE_LABEL)),
        replicas=replicas,
        restart_policy=policies,
        is_elastic=isinstance(at(spec, "elasticPolicy"), dict),
        clean_pod_policy=word(at(spec, "runPolicy", "cleanPodPolicy"), "None"),
        conditions={
            kind: (word(c.get("status")), word(c.get("reason")), text(c.get("message")), instant(c.get("lastTransitionTime")))
            for kind, c in _conditions(body).items()
        },
        claims=tuple(claims)[:_MAX_CLAIMS],
        is_tracked=at(meta, "labels", TRACK_LABEL) == "true",
        run=name(at(meta, "labels", RUN_LABEL)),
    )
    return Seen(namespace, own_name, uid, version, facts)


def claim(body: Any) -> Seen[ClaimFacts] | None:
    """A PersistentVolumeClaim."""
    known = identity(body)
    if known is None:
        return None
    namespace, own_name, uid, version = known
    meta = body["metadata"]
    facts = ClaimFacts(
        name=own_name,
        phase=word(at(body, "status", "phase"), "Pending"),
        requested_bytes=quantity(at(body, "spec", "resources", "requests", "storage")),
        capacity_bytes=quantity(at(body, "status", "capacity", "storage")),
        message=next((message for c in _conditions(body).values() if (message := text(c.get("message")))), ""),
        deleted_at=instant(meta.get("deletionTimestamp")),
        run=name(at(meta, "labels", RUN_LABEL)),
    )
    return Seen(namespace, own_name, uid, version, facts)


def pod(body: Any) -> tuple[str, Seen[PodFacts]] | None:
    """The job that a pod is of, and the pod; None also for a pod of no PyTorchJob (other kinds of jobs carry the same label)."""
    known = identity(body)
    owner = name(at(body, "metadata", "labels", JOB_LABEL))
    if known is None or not owner:
        return None
    namespace, own_name, uid, version = known
    meta, spec, status = body["metadata"], at(body, "spec"), at(body, "status")
    controllers = [reference for reference in objects(meta.get("ownerReferences")) if reference.get("controller") is True]
    if any(reference.get("kind") != _JOB_KIND for reference in controllers):
        return None
    containers = objects(at(spec, "containers"))
    container = next((c for c in containers if c.get("name") == _CONTAINER), containers[0] if containers else {})
    state = _container_status(at(status, "containerStatuses"), container.get("name"))
    conditions = _conditions(body)
    ready = conditions.get("Ready", {})
    unscheduled = conditions.get("PodScheduled", {})
    unscheduled = unscheduled if unscheduled.get("status") == "False" else {}
    disruption = conditions.get("DisruptionTarget", {})
    phase = word(at(status, "phase"), "Pending")
    is_initialising = phase == "Pending" and conditions.get("Initialized", {}).get("status") == "False"
    waiting = (_init_waiting(status) if is_initialising else None) or at(state, "state", "waiting")
    is_deleted = meta.get("deletionTimestamp") is not None
    grace = meta.get("deletionGracePeriodSeconds") if is_deleted else at(spec, "terminationGracePeriodSeconds")
    facts = PodFacts(
        name=own_name,
        uid=uid,
        owner_uid=word(controllers[0].get("uid")) if controllers else "",
        replica=_replica(meta, own_name, owner),
        phase=phase if phase in _POD_PHASES else "Unknown",
        reason=word(at(status, "reason")),
        message=text(at(status, "message")),
        node=name(at(spec, "nodeName")),
        ip=ip_of(at(status, "podIP")),
        created_at=instant(meta.get("creationTimestamp")),
        started_at=instant(at(state, "state", "running", "startedAt")) or instant(at(state, "state", "terminated", "startedAt")),
        deleted_at=instant(meta.get("deletionTimestamp")),
        grace_seconds=float(number(grace, 30)),
        is_ready=ready.get("status") == "True",
        container_is_ready=conditions.get("ContainersReady", {}).get("status") == "True" or word(ready.get("reason")) in NODE_LOST_REASONS,
        unready_since=_unready_since(ready),
        waiting_reason=word(at(waiting, "reason")),
        waiting_message=text(at(waiting, "message")),
        is_initialising=is_initialising,
        unscheduled_reason=word(unscheduled.get("reason")),
        unscheduled_message=text(unscheduled.get("message")),
        disruption=word(disruption.get("reason"), "Unknown") if disruption.get("status") == "True" else "",
        restart_count=number(state.get("restartCount")),
        ended=_termination(at(state, "state", "terminated")),
        ended_before=_termination(at(state, "lastState", "terminated")),
        progress_port=next(
            (number(p.get("containerPort"), most=65_535) for p in objects(container.get("ports")) if p.get("name") == _PORT), 0
        ),
        holds_gpus=min(sum(_gpus(c) for c in containers), 2**20),
    )
    return owner, Seen(namespace, own_name, uid, version, facts)


def identity(body: Any) -> tuple[str, str, str, int] | None:
    """Namespace, name, uid and version (0: not known); None unless the first three can be used."""
    meta = at(body, "metadata")
    namespace, own_name, uid = name(at(meta, "namespace")), name(at(meta, "name")), text(at(meta, "uid"), 64)
    return (namespace, own_name, uid, version_of(at(meta, "resourceVersion"))) if namespace and own_name and uid else None


def _conditions(body: Any) -> dict[str, dict[str, Any]]:
    """status.conditions by type."""
    return {word(c.get("type")): c for c in objects(at(body, "status", "conditions"))[:_MAX_CONDITIONS] if word(c.get("type"))}


def _suspend_manager(meta: dict[str, Any]) -> str:
    """Who set spec.runPolicy.suspend last, as the API server noted it; "" where it did not."""
    owners = [
        entry
        for entry in objects(meta.get("managedFields"))
        if "subresource" not in entry and isinstance(at(entry, "fieldsV1", "f:spec", "f:runPolicy", "f:suspend"), dict)
    ]
    return word(max(owners, key=lambda entry: instant(entry.get("time"))).get("manager")) if owners else ""


def _container_status(statuses: Any, wanted: Any) -> dict[str, Any]:
    return next((s for s in objects(statuses) if s.get("name") == wanted), {})


def _init_waiting(status: Any) -> Any:
    """Why the first init container that has not ended well waits, or how it ended; None: it runs, or there is none."""
    for init in objects(at(status, "initContainerStatuses")):
        ended = at(init, "state", "terminated")
        if at(ended, "exitCode") == 0 or (
            init.get("started") is True and at(init, "state", "running") is not None and init.get("ready") is True
        ):
            continue  # done, or a side-car that runs on
        return at(init, "state", "waiting") or ended
    return None


def _unready_since(ready: Any) -> float:
    """0 while it is ready, and where only a readiness gate is closed: that is a load balancer's word, not the node's."""
    if not ready or ready.get("status") == "True" or ready.get("reason") == "ReadinessGatesNotReady":
        return 0.0
    return instant(ready.get("lastTransitionTime"))


def _termination(ended: Any) -> Termination | None:
    if not isinstance(ended, dict):
        return None
    return Termination(
        exit_code=number(ended.get("exitCode"), -1, least=-(2**31), most=2**32),  # -1: it is not said, which must not look like success
        signal=number(ended.get("signal"), most=128),
        reason=word(ended.get("reason")),
        message=text(ended.get("message"), _TERMINATION_CHARACTERS),
        finished_at=instant(ended.get("finishedAt")),
    )


def _replica(meta: dict[str, Any], own_name: str, owner: str) -> str:
    """By the labels, like worker-3; else what the training operator makes of the pod's name."""
    kind, index = word(at(meta, "labels", _REPLICA_TYPE)).lower(), at(meta, "labels", _REPLICA_INDEX)
    if kind and isinstance(index, str) and index.isascii() and index.isdigit() and len(index) <= 6:  # noqa: PLR2004  a million replicas
        return word(f"{kind}-{int(index)}")
    return word(own_name.removeprefix(f"{owner}-"))


def _gpus(container: dict[str, Any]) -> int:
    limits = at(container, "resources", "limits")
    named = limits.items() if isinstance(limits, dict) else ()
    return sum(
        quantity(amount) for key, amount in named if isinstance(key, str) and (key.endswith("/gpu") or key.startswith("nvidia.com/mig-"))
    )


def _salvaged(model: type[Model], value: Any) -> tuple[Model, list[str]]:
    """The model from what validates of a JSON object, field by field, and the names of the fields that did not.

    A wish of another version must not cost the fields that this one knows, so it is not refused as a whole.
    """
    if value is None:
        return model(), []
    if not isinstance(value, dict):
        return model(), ["(no object)"]
    value = cleaned(value)
    try:
        return model.model_validate(value), []
    except ValidationError:
        kept, lost = {}, []
        for key, inner in value.items():
            try:
                model.model_validate({key: inner})
            except ValidationError:
                lost.append(text(key, 64))
            else:
                kept[key] = inner
        try:
            return model.model_validate(kept), lost
        except ValidationError:  # the same field by its name and its alias
            return model(), ["(all)"]


@lru_cache(maxsize=512)
def _shared(model: Model) -> Model:
    """The first of all equal models: a thousand runs mostly have one policy."""
    return model
