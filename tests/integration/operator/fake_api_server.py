"""A Kubernetes API server in memory, over real HTTP, with faults on order: enough of it that the whole operator runs against it.

True to the real one in what the operator leans on: one resourceVersion for all, 409 for an old one, uid preconditions, the status
subresource (each side ignores the other's part), generations, JSON and merge patches with `test`, pages with `continue`, watches with
bookmarks that end after `timeoutSeconds`, label selectors, 410 for what was forgotten. Not in it: schemas, admission, rights, grace
periods, owner references.
"""

from __future__ import annotations

import asyncio
import copy
import json
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from aiohttp import web

Json = dict[str, Any]
KINDS = {
    ("", "v1", "pods"): "Pod",
    ("", "v1", "events"): "Event",
    ("", "v1", "persistentvolumeclaims"): "PersistentVolumeClaim",
    ("", "v1", "namespaces"): "Namespace",
    ("kubeflow.org", "v1", "pytorchjobs"): "PyTorchJob",
    ("ddp-operator.io", "v1alpha1", "trainingruns"): "TrainingRun",
    ("coordination.k8s.io", "v1", "leases"): "Lease",
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions"): "CustomResourceDefinition",
}
CLUSTER_WIDE = frozenset({"namespaces", "customresourcedefinitions"})
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


class RefusalError(Exception):
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}

    def response(self) -> web.Response:
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.status, "message": self.message}
        return web.json_response(body, status=self.status, headers=self.headers)


@dataclass
class FakeApiServer:
    """`async with FakeApiServer() as server`: it listens at `server.url`. Everything may be changed while it runs."""

    hidden: set[str] = field(default_factory=set)
    """Plurals that it does not know: as if their CRD were missing."""
    fault: Callable[[web.Request], RefusalError | None] = lambda _: None
    """Asked before each request. A refusal with status 0 resets the connection."""
    answer_after: Callable[[web.Request], float] = lambda _: 0.0
    """Seconds between what was done and the answer."""
    stalled: bool = False
    """Watches stay open, and nothing comes: not even a bookmark, nor their end."""
    drop_events: Callable[[str, str, Json], bool] = lambda *_: False
    """(plural, type, object): whether watches do not tell of it."""
    on_write: Callable[[str, str, str], None] = lambda *_: None
    """(method, plural, name): called after each write that was done."""

    def __post_init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], Json]] = {plural: {} for _, _, plural in KINDS}
        self.version = 1000
        self.oldest = 0
        """What is older is forgotten: 410."""
        self.history: list[tuple[int, str, str, Json]] = []
        self.requests: Counter[tuple[str, str]] = Counter()
        """(method or "WATCH", plural)."""
        self.writes: list[tuple[str, str, str]] = []
        """(method, plural, namespace/name), those that were done."""
        self.url = ""
        self._cuts = 0
        self._news = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    # --- for tests

    def put(self, plural: str, body: Json) -> Json:
        """Make or replace an object, status included, as its owner would."""
        body = copy.deepcopy(body)
        meta = body.setdefault("metadata", {})
        before = self.objects[plural].get((meta.get("namespace", ""), meta["name"]))
        group, version, _ = next(kind for kind in KINDS if kind[2] == plural)
        body.setdefault("apiVersion", f"{group}/{version}" if group else version)
        body.setdefault("kind", KINDS[group, version, plural])
        meta.setdefault("uid", before["metadata"]["uid"] if before else str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", before["metadata"]["creationTimestamp"] if before else stamp())
        meta["generation"] = (before["metadata"]["generation"] + (before.get("spec") != body.get("spec"))) if before else 1
        return self._store(plural, "MODIFIED" if before else "ADDED", body)

    def get(self, plural: str, name: str, namespace: str = "default") -> Json | None:
        return self.objects[plural].get((namespace, name))

    def remove(self, plural: str, name: str, namespace: str = "default") -> None:
        gone = self.objects[plural].pop((namespace, name))
        self._store(plural, "DELETED", gone)

    def say_error(self, plural: str, code: int) -> None:
        """All watches of that kind get an ERROR event."""
        self._store(plural, "ERROR", {"kind": "Status", "metadata": {}, "code": code, "message": "on order"})

    async def cut(self) -> None:
        """Reset all watches."""
        self._cuts += 1
        await self._tell()

    def forget(self) -> None:
        """Compact: whoever watches from an older version gets 410."""
        self.oldest = self.version
        self.history.clear()

    def kubeconfig(self, folder: Path) -> Path:
        path = folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                    "users": [{"name": "fake", "user": {"token": "none"}}],
                    "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
                }
            )
        )
        return path

    # --- storing

    def _store(self, plural: str, kind: str, body: Json) -> Json:
        self.version += 1
        body = copy.deepcopy(body)
        body["metadata"]["resourceVersion"] = str(self.version)
        if kind not in ("DELETED", "ERROR"):
            self.objects[plural][body["metadata"].get("namespace", ""), body["metadata"]["name"]] = body
        self.history.append((self.version, plural, kind, copy.deepcopy(body)))
        with suppress(RuntimeError):  # no loop: nobody watches yet
            self._wake = asyncio.get_running_loop().create_task(self._tell())
        return body

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    # --- answering

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            if refusal := self.fault(request):
                if refusal.status == 0:
                    return reset(request)
                return refusal.response()
            parts = [part for part in request.path.split("/") if part]
            if parts[:1] == ["version"]:
                return web.json_response({"major": "1", "minor": "34"})
            if (discovered := self._discovery(parts)) is not None:
                return web.json_response(discovered)
            group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
            namespace = ""
            if rest[0] == "namespaces" and len(rest) > 2:
                namespace, rest = rest[1], rest[2:]
            plural, name, sub = rest[0], rest[1] if len(rest) > 1 else "", rest[2] if len(rest) > 2 else ""
            if (group, version, plural) not in KINDS or plural in self.hidden:
                return RefusalError(404, "the server could not find the requested resource").response()
            if request.query.get("watch") in ("1", "true"):
                self.requests["WATCH", plural] += 1
                try:
                    return await self._watch(request, plural, namespace)
                except ConnectionResetError:  # whoever watched has gone
                    return web.Response()
            self.requests[request.method, plural] += 1
            answer = await self._serve(request, (plural, namespace, name, sub))
            await asyncio.sleep(self.answer_after(request))
            return web.json_response(answer)
        except RefusalError as refusal:
            return refusal.response()

    def _discovery(self, parts: list[str]) -> Json | None:
        if parts == ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        if parts == ["apis"]:
            groups: dict[str, str] = {group: version for group, version, plural in KINDS if group and plural not in self.hidden}
            entries = [(group, {"groupVersion": f"{group}/{version}", "version": version}) for group, version in groups.items()]
            return {"kind": "APIGroupList", "groups": [{"name": g, "versions": [v], "preferredVersion": v} for g, v in entries]}
        if (parts[0] == "api" and len(parts) == 2) or (parts[0] == "apis" and len(parts) == 3):
            group = "" if parts[0] == "api" else parts[1]
            resources = [
                {"name": p, "singularName": k.lower(), "kind": k, "namespaced": p not in CLUSTER_WIDE, "verbs": VERBS}
                for (g, v, p), k in KINDS.items()
                if (g, v) == (group, parts[-1]) and p not in self.hidden
            ]
            if not resources:
                raise RefusalError(404, "the server could not find the requested resource")
            return {"kind": "APIResourceList", "groupVersion": "/".join(parts[1:]), "resources": resources}
        return None

    async def _serve(self, request: web.Request, target: tuple[str, str, str, str]) -> Json:
        plural, namespace, name, sub = target
        body = await request.json() if request.can_read_body else None
        if request.method == "GET" and not name:
            return self._list(request, plural, namespace)
        if request.method == "POST":
            name = body["metadata"]["name"]
            if (namespace, name) in self.objects[plural]:
                raise RefusalError(409, f'{plural} "{name}" already exists')
            body.pop("status", None)
            body["metadata"] = {**body["metadata"], "namespace": namespace}
            return self._wrote("POST", plural, self.put(plural, body))
        stored = self.objects[plural].get((namespace, name))
        if stored is None:
            raise RefusalError(404, f'{plural} "{name}" not found')
        if request.method == "GET":
            return stored
        if request.method == "DELETE":
            wanted = (body or {}).get("preconditions", {}).get("uid")
            if wanted not in (None, stored["metadata"]["uid"]):
                raise RefusalError(409, "Precondition failed: UID in precondition does not match")
            self.remove(plural, name, namespace)
            return self._wrote("DELETE", plural, stored)
        changed = body if request.method == "PUT" else patched(stored, body, request.content_type)
        return self._wrote(request.method, plural, self._update(plural, stored, changed, sub, is_patch=request.method == "PATCH"))

    def _update(self, plural: str, stored: Json, changed: Json, sub: str, *, is_patch: bool) -> Json:
        meta, given = stored["metadata"], changed.get("metadata", {})
        version = given.get("resourceVersion")
        if (version is None and not is_patch) or version not in (None, meta["resourceVersion"]):
            raise RefusalError(409, "the object has been modified; please apply your changes to the latest version")
        if given.get("uid") not in (None, meta["uid"]):
            raise RefusalError(409, "Precondition failed: UID in object meta does not match")
        new = copy.deepcopy(stored)
        if sub == "status":
            new["status"] = changed.get("status")
        else:
            new = {**copy.deepcopy(changed), "metadata": {**given, "uid": meta["uid"], "creationTimestamp": meta["creationTimestamp"]}}
            if "status" in stored:
                new["status"] = stored["status"]
        if {**new, "metadata": None} == {**stored, "metadata": None} and plural != "leases":
            return stored
        return self.put(plural, new)

    def _wrote(self, method: str, plural: str, body: Json) -> Json:
        name = f"{body['metadata'].get('namespace', '')}/{body['metadata']['name']}"
        self.writes.append((method, plural, name))
        self.on_write(method, plural, name)
        return body

    def _list(self, request: web.Request, plural: str, namespace: str) -> Json:
        selector = request.query.get("labelSelector", "")
        found = [body for key, body in sorted(self.objects[plural].items()) if is_selected(body, namespace, selector)]
        start, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or 0) or len(found) + 1
        more = {"continue": str(start + limit)} if start + limit < len(found) else {}
        meta = {"resourceVersion": str(self.version), **more}
        return {"kind": "List", "apiVersion": "v1", "metadata": meta, "items": found[start : start + limit]}

    async def _watch(self, request: web.Request, plural: str, namespace: str) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        if since < self.oldest:
            raise RefusalError(410, "too old resource version")
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + float(request.query.get("timeoutSeconds") or 300)
        selector = request.query.get("labelSelector", "")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        cuts = self._cuts
        while self.stalled or loop.time() < ends_at:
            if self._cuts != cuts:
                return reset(request)
            if self.stalled:
                await asyncio.sleep(0.05)
                continue
            for version, of, kind, body in self.history[bisect_right(self.history, since, key=lambda entry: entry[0]) :]:
                since = version
                if of == plural and is_selected(body, namespace, selector) and not self.drop_events(plural, kind, body):
                    await response.write(json.dumps({"type": kind, "object": body}).encode() + b"\n")
            bookmark = {"kind": "Bookmark", "metadata": {"resourceVersion": str(max(since, self.version))}}
            async with self._news:
                if self.version <= since or not self.history or self.history[-1][0] <= since:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._news.wait(), min(1.0, max(ends_at - loop.time(), 0.01)))
            if self.history and self.history[-1][0] <= since and not self.stalled:
                await response.write(json.dumps({"type": "BOOKMARK", "object": bookmark}).encode() + b"\n")
        return response


def reset(request: web.Request) -> web.Response:
    """An RST, or an end without an answer, in place of one."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def is_selected(body: Json, namespace: str, selector: str) -> bool:
    labels = body["metadata"].get("labels") or {}
    if body.get("kind") == "Status":
        return True
    if namespace and body["metadata"].get("namespace") != namespace:
        return False
    wanted = [term.partition("=") for term in selector.split(",") if term]
    return all(key in labels and (not equals or labels[key] == value.lstrip("=")) for key, equals, value in wanted)


def patched(stored: Json, patch: Any, content_type: str) -> Json:
    new = copy.deepcopy(stored)
    if content_type == "application/merge-patch+json":
        return merged(new, patch)
    for step in patch:
        *parents, last = step["path"].strip("/").split("/")
        place: Any = new
        for parent in parents:
            if not isinstance(place, dict) or parent not in place:
                raise RefusalError(422, "the server rejected our request due to an error in our request")
            place = place[parent]
        if step["op"] == "test" and place.get(last) != step["value"]:
            raise RefusalError(422, "the server rejected our request due to an error in our request")
        if step["op"] in ("add", "replace"):
            place[last] = step["value"]
        if step["op"] == "remove":
            place.pop(last)
    return new


def merged(into: Json, patch: Json) -> Json:
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = merged(dict(into.get(key) or {}), value) if isinstance(value, dict) else value
    return into


def stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
