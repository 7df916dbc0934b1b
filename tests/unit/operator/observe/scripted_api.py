"""An API server for watchers, over real HTTP: it lists and watches a few objects, and does what a script says before it does it well."""

import asyncio
import json
from collections import deque
from contextlib import asynccontextmanager, suppress

from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from ddp_operator.act.api_client import ClusterApi

LONGEST_WAIT_SECONDS = 60.0
"""On a very busy machine; only a failure waits for so long."""


class ScriptedServer:
    """`scripts` hold handlers for the next requests of a kind ("list", "watch"); without one, the request is served well."""

    def __init__(self) -> None:
        self.objects: dict[str, dict] = {}
        """By path of the object."""
        self.version = 100
        self.lists: deque = deque()
        self.watches: deque = deque()
        self.seen: list[web.Request] = []
        self.open_watches: list[asyncio.Queue] = []
        app = web.Application()
        app.router.add_get("/{path:.*}", self._serve)
        self.server = TestServer(app)

    def put(self, path, body, event=None):
        """Store an object; with `event`, tell the watches that are open."""
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[f"{path}/{body['metadata']['namespace']}/{body['metadata']['name']}"] = body
        if event:
            self.tell(event, body)

    def remove(self, path, namespace, name, *, tell=True):
        self.version += 1
        body = self.objects.pop(f"{path}/{namespace}/{name}")
        body["metadata"]["resourceVersion"] = str(self.version)
        if tell:
            self.tell("DELETED", body)

    def tell(self, kind, body):
        for queue in self.open_watches:
            queue.put_nowait(json.dumps({"type": kind, "object": body}).encode() + b"\n")

    def end_watches(self):
        for queue in self.open_watches:
            queue.put_nowait(None)

    def count(self, kind):
        return sum(1 for request in self.seen if ("watch" in request.query) == (kind == "watch"))

    async def _serve(self, request):
        self.seen.append(request)
        script = self.watches if "watch" in request.query else self.lists
        if script:
            return await script.popleft()(request)
        return await (self.serve_watch if "watch" in request.query else self.serve_list)(request)

    async def serve_list(self, request):
        plural = request.path.rsplit("/", 1)[1]
        scope = request.path.split("/namespaces/")[1].split("/")[0] if "/namespaces/" in request.path else None
        items = [
            body for path, body in sorted(self.objects.items()) if path.split("/")[0] == plural and scope in {None, path.split("/")[1]}
        ]
        start, limit = int(request.query.get("continue", "0")), int(request.query["limit"])
        meta = {"resourceVersion": str(self.version)}
        if start + limit < len(items):
            meta["continue"] = str(start + limit)
        return web.json_response({"kind": "List", "metadata": meta, "items": items[start : start + limit]})

    async def serve_watch(self, request, lines=()):
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        queue = asyncio.Queue()
        self.open_watches.append(queue)
        try:
            while (line := await queue.get()) is not None:
                await response.write(line)
        finally:
            self.open_watches.remove(queue)
        return response


def answering(status, headers=None, body=None):
    async def handler(_):
        return web.json_response(body or {"kind": "Status", "code": status, "message": "scripted"}, status=status, headers=headers)

    return handler


def watch_of(*events):
    """A watch that tells these and ends well; bytes are sent as they are."""

    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            await response.write(event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n")
        return response

    return handler


def breaking_off(first=b""):
    """The connection is reset after `first`."""

    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(first)
        request.transport.abort()
        return response

    return handler


async def stalling(request):
    """Headers, and then nothing, for as long as the client waits."""
    response = web.StreamResponse()
    await response.prepare(request)
    with suppress(asyncio.CancelledError, ConnectionError):
        await asyncio.sleep(5)
    return response


class Clock:
    """Time that passes only by sleeping; real time hardly does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0.001)


async def until(is_true):
    """Wait for a fact, with a bound that only a failure reaches."""
    async with asyncio.timeout(LONGEST_WAIT_SECONDS):
        while not is_true():  # noqa: ASYNC110  the fact has no event of its own
            await asyncio.sleep(0.002)


@asynccontextmanager
async def serving():
    """A scripted server, and a real client of it."""
    scripted = ScriptedServer()
    await scripted.server.start_server()
    configuration = type.__call__(Configuration)
    configuration.host = str(scripted.server.make_url("")).rstrip("/")
    api = ClusterApi(ApiClient(configuration))
    try:
        yield scripted, api
    finally:
        scripted.end_watches()
        await api.close()
        await scripted.server.close()


@asynccontextmanager
async def running(work):
    """`work` runs meanwhile; if it ends by itself, that is an error here."""
    task = asyncio.ensure_future(work)
    try:
        yield task
        assert not task.done(), "it ended by itself"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
