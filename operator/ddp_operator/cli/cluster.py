"""How `ddp runs` and `ddp explain` reach the cluster: through the kubeconfig, with every error as one sentence.

Objects are read as JSON with defaults, not by the models: a command line that is older than the operator must still show what it knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import typer

from ddp_operator.api.trainingrun import GROUP, PLURAL, RUN_LABEL, VERSION
from ddp_operator.decide.facts import ClaimFacts, PodFacts
from ddp_operator.errors import ClusterError, OperatorError
from ddp_operator.observe import slim
from ddp_operator.observe.api import Api, ApiError, Json, Query

TIMEOUT_SECONDS = 15.0
PAGE = 500
PAGES = 40
"""20,000 runs: nobody reads more."""
EVENTS = 200
NEAR = 3

Call = Callable[[Api], Awaitable[None]]


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Errors end here, as one sentence on standard error and the exit code of their kind."""
    try:
        yield
    except OperatorError as error:
        print(f"ddp: {error}", file=sys.stderr)  # noqa: T201  # the command line's voice
        raise typer.Exit(error.exit_code) from None


def with_cluster(call: Call) -> None:
    """Connect, call, close.

    Raises:
        ClusterError: no kubeconfig, no connection, no permission, no CRD.
    """

    async def connected() -> None:
        try:
            from ddp_operator.act.api_client import connect

            api = await connect()
        except ImportError as error:
            raise ClusterError(f"This needs a package that is not installed ({error}): pip install 'ddp-operator[operator]'.") from error
        try:
            await call(api)
        except ApiError as error:
            raise ClusterError(meaning(error)) from error
        finally:
            await api.close()

    asyncio.run(connected())


def meaning(error: ApiError) -> str:
    """What an answer of the API server means for somebody at a terminal."""
    sentences = {
        0: f"The cluster does not answer ({error.reason}): check the network and that `kubectl get nodes` works.",
        401: "The cluster does not accept the credentials of the kubeconfig: log in again, then check with `kubectl auth whoami`.",
        403: f"You may not read this ({error.reason}): ask for get and list on {PLURAL}.{GROUP}, or name another namespace with -n.",
    }
    return sentences.get(error.status, f"The API server refused with {error.status} ({error.reason}): see whether kubectl can do the same.")


async def own_namespace() -> str:
    """The namespace of the kubeconfig's current context, as kubectl takes it; "default" if it names none."""
    from kubernetes.aio.config import list_kube_config_contexts

    contexts: Callable[[], tuple[Any, Any]] = list_kube_config_contexts  # untyped there
    try:
        _, active = contexts()
    except Exception:  # whatever is wrong with the file: connecting says so, in a sentence
        return "default"
    return text(active, "context", "namespace") or "default"


def collection(namespace: str | None) -> str:
    """The path of the TrainingRuns of a namespace, or of all."""
    return f"/apis/{GROUP}/{VERSION}/" + (f"namespaces/{name_of(namespace)}/" if namespace else "") + PLURAL


def name_of(given: str) -> str:
    """A name that may stand in a path.

    Raises:
        ClusterError: if no object can be called that.
    """
    if not given or len(given) > 253 or not all(c.isascii() and (c.isalnum() or c in "-.") for c in given):  # noqa: PLR2004  # Kubernetes' limit
        raise ClusterError(f"{given[:80]!r} is no name in Kubernetes: use small letters, digits, '-' and '.'.")
    return given


async def list_runs(api: Api, namespace: str | None) -> list[Json]:
    """All TrainingRuns of a namespace (None: of the cluster), by namespace and name.

    Raises:
        ClusterError: if the CRD is not installed.
        ApiError: for everything else.
    """
    try:
        found = await _listed(api, collection(namespace))
    except ApiError as error:
        if error.status == 404:  # noqa: PLR2004  # of a collection: the kind itself is not known
            raise ClusterError(
                f"This cluster knows no TrainingRuns: install the chart (helm/), which brings {PLURAL}.{GROUP} and the operator, "
                "or switch the context with `kubectl config use-context`."
            ) from error
        raise
    return sorted(found, key=lambda body: (text(body, "metadata", "namespace"), text(body, "metadata", "name")))


async def _listed(api: Api, path: str, **wanted: str) -> list[Json]:
    """All objects of a collection, page by page."""
    found: list[Json] = []
    query: dict[str, str | int | bool] = {"limit": PAGE, **wanted}
    for _ in range(PAGES):
        answer = await api.request("GET", path, query=query, timeout_seconds=TIMEOUT_SECONDS)
        items = answer.get("items")
        found += [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        query["continue"] = text(answer, "metadata", "continue")
        if not query["continue"]:
            break
    return found


async def pods_of(api: Api, namespace: str, job: str) -> list[PodFacts] | None:
    """The pods of a job; None if they cannot be read: what is told about the run does not depend on them."""
    try:
        bodies = await _listed(api, f"/api/v1/namespaces/{name_of(namespace)}/pods", labelSelector=f"{slim.JOB_LABEL}={name_of(job)}")
    except (ApiError, ClusterError):
        return None
    return [seen[1].facts for body in bodies if (seen := slim.pod(body)) is not None]


async def orphaned_claims(api: Api, namespace: str | None, runs: Sequence[Json]) -> list[tuple[str, ClaimFacts]]:
    """Namespace and claim: made for a run, and used by none of `runs` nor by any job. Empty if one may not list claims and jobs."""
    place = f"namespaces/{name_of(namespace)}/" if namespace else ""
    try:
        made = await _listed(api, f"/api/v1/{place}persistentvolumeclaims", labelSelector=RUN_LABEL)
        claims = [(seen.namespace, seen.facts) for body in made if (seen := slim.claim(body)) is not None and not seen.facts.deleted_at]
        jobs = [slim.job(body) for body in await _listed(api, f"/apis/kubeflow.org/v1/{place}pytorchjobs")] if claims else []
    except ApiError:
        return []
    used = {(job.namespace, claim) for job in jobs if job is not None for claim in job.facts.claims}
    used |= {(text(body, "metadata", "namespace"), text(body, "spec", "checkpoint", "claimName")) for body in runs}
    return sorted(
        ((where, claim) for where, claim in claims if (where, claim.name) not in used), key=lambda found: (found[0], found[1].name)
    )


async def get_run(api: Api, namespace: str, name: str) -> Json:
    """One TrainingRun.

    Raises:
        ClusterError: if it is not there, naming what is.
    """
    try:
        return await api.request("GET", f"{collection(namespace)}/{name_of(name)}", timeout_seconds=TIMEOUT_SECONDS)
    except ApiError as error:
        if error.status != 404:  # noqa: PLR2004
            raise
    names = [text(body, "metadata", "name") for body in await list_runs(api, namespace)]
    near = get_close_matches(name, names, NEAR) or names[:NEAR]
    hint = f"there {'are' if len(near) > 1 else 'is'} {', '.join(near)}" if near else "there is none at all; look with `ddp runs -A`"
    raise ClusterError(f"There is no TrainingRun {name} in namespace {namespace}; {hint}.")


async def events_of(api: Api, namespace: str, name: str) -> list[Json]:
    """The events of a TrainingRun, as far as the cluster still has them (an hour, by default); none if one may not read them."""
    query: Query = {"fieldSelector": f"involvedObject.kind=TrainingRun,involvedObject.name={name_of(name)}", "limit": EVENTS}
    try:
        answer = await api.request("GET", f"/api/v1/namespaces/{name_of(namespace)}/events", query=query, timeout_seconds=TIMEOUT_SECONDS)
    except ApiError as error:
        if error.status != 403:  # noqa: PLR2004
            raise
        return []
    items = answer.get("items")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def at(body: Any, *path: str) -> Any:
    """What lies there in a JSON value; None where anything on the way is missing or something else."""
    for key in path:
        body = body.get(key) if isinstance(body, dict) else None
    return body


def text(body: Any, *path: str) -> str:
    """A text or number there, on one line without control characters (a terminal obeys those); "" for anything else."""
    found = at(body, *path)
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        return ""
    return "".join(c if c.isprintable() else " " for c in str(found)[:1024])
