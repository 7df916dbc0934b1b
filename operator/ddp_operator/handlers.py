"""What kopf watches, and where it goes: TrainingRuns, PyTorchJobs and claims into the world. Nothing is decided here, and nothing written.

Only `on.event` is used: every other kind of handler leaves an annotation or a finalizer on objects, and a finalizer of an operator that
is gone keeps a namespace from ever being deleted. kopf's own election ("peering"), its events and its probes stay off: `act.lease`,
`act.events` and `web` do that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import kopf

from ddp_operator.act.api_client import configuration, proxy_for
from ddp_operator.api.trainingrun import GROUP, PLURAL, VERSION
from ddp_operator.backoff import Backoff
from ddp_operator.observe.life import Life
from ddp_operator.observe.world import World

SERVER_TIMEOUT_SECONDS: Final = 300
CLIENT_TIMEOUT_SECONDS: Final = 360
INACTIVITY_SECONDS: Final = 70
"""The API server sends a bookmark each minute: a watch that is silent for longer has lost its connection."""
CONNECT_SECONDS: Final = 10
REQUEST_SECONDS: Final = 30
PAGE_OBJECTS: Final = 100
"""A page's objects are all in memory at once, several times larger than on the wire, before the first of them is slimmed."""
IDLE_SECONDS: Final = 0.1
"""Kopf has a task for each object that something happened to, which holds the object's whole body until it has been idle for so long. By
default, 5 s: after the first lists that were those of all objects, 40 MB of a thousand runs, which the process never gave back."""
STOP_SECONDS: Final = 3.0
STEADY_SECONDS: Final = 60.0
RESCAN_SECONDS: Final = 60.0
RESOURCES: Final = ((GROUP, VERSION, PLURAL), ("kubeflow.org", "v1", "pytorchjobs"), ("", "v1", "persistentvolumeclaims"))
LIFE_SECONDS: Final = 5.0
IDENTITY: Final = "ddp-operator"
"""Kopf's name for us, of which only its peering would make use."""
WATCHER_TASK: Final = "watcher for "
"""How kopf names the task of each watcher."""

_log = logging.getLogger(__name__)


def registry_for(world: World) -> kopf.OperatorRegistry:
    """A registry of kopf's with our three handlers and the login, and nothing else."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(login)
    ways = ((world.put_run, world.drop_run), (world.put_job, world.drop_job), (world.put_claim, world.drop_claim))
    for resource, (put, drop) in zip(RESOURCES, ways, strict=True):
        kopf.on.event(*resource, id=resource[2], registry=registry)(_feeding(put, drop))
    return registry


def _feeding(put: Callable[[Any], None], drop: Callable[[str, str, str], None]) -> Callable[..., Any]:
    async def seen(event: Mapping[str, Any], namespace: str | None, name: str | None, uid: str | None, **_: Any) -> None:
        if event.get("type") == "DELETED":
            drop(namespace or "", name or "", uid or "")
        else:
            put(event["object"])

    return seen


async def login(**_: Any) -> kopf.ConnectionInfo:
    """The same credentials as our own client's, read anew: kopf asks again when the server refuses the old token."""
    found = await configuration()
    scheme, _space, token = (await found.get_api_key_with_prefix("BearerToken") or "").partition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        scheme=scheme or None,
        token=token.strip() or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
        # looked up as for our own client: a session that trusts the environment also sends what ~/.netrc says in place of our token
        proxy_url=found.proxy or proxy_for(found.host),
        trust_env=False,
    )


class _NoDifferences(kopf.DiffBaseStorage):
    """What kopf remembers of an object to tell what has changed in it: nothing.

    `on.event` asks for no difference, and to copy the whole body for one at each event took half of kopf's time.
    """

    def build(self, **_: Any) -> Any:
        """Of every object the same."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Nothing is."""


def kopf_settings() -> kopf.OperatorSettings:
    """As we need kopf. It does not watch for new kinds and namespaces, which needs rights on the whole cluster: `keep_kopf` looks again."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = SERVER_TIMEOUT_SECONDS
    settings.watching.client_timeout = CLIENT_TIMEOUT_SECONDS
    settings.watching.connect_timeout = CONNECT_SECONDS
    settings.watching.inactivity_timeout = INACTIVITY_SECONDS
    settings.watching.chunk_size = PAGE_OBJECTS
    settings.networking.request_timeout = REQUEST_SECONDS
    settings.networking.connect_timeout = CONNECT_SECONDS
    settings.networking.error_backoffs = Backoff()
    settings.networking.enforce_retry_after = True
    settings.queueing.exit_timeout = 0.5
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.persistence.diffbase_storage = _NoDifferences()
    settings.execution.default_backoff = 5
    settings.process.ultimate_exiting_timeout = None  # main has a bound of its own
    return settings


async def keep_kopf(world: World, namespaces: Sequence[str], on_start: Callable[[], None]) -> None:
    """Run kopf for ever. `on_start` is called after each start.

    kopf ends as a whole when one watcher gets an ERROR event that is not 410, which servers send to all watches when their storage hiccups:
    so it is started again. Its own `kopf.operator` is not used, because that cancels every task of the loop when it ends, ours too.
    If it can be started but never stays, its watchers fall silent, and the liveness probe fails. It is also started again, now and then, as
    long as a kind is missing that it should watch: Kubeflow may be installed after us.
    """
    pauses = iter(Backoff())
    while True:
        roots = await kopf.spawn_tasks(
            registry=registry_for(world),
            settings=kopf_settings(),
            # else kopf asks for the user's name, and in a container no user may have this id: then it would not start at all
            identity=IDENTITY,  # type: ignore[arg-type]  # its type is private to kopf
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
        )
        on_start()
        began = time.monotonic()
        try:
            done: set[asyncio.Task[Any]] = set()
            missing: list[str] = []
            while not done and not missing:
                done, _ = await asyncio.wait(roots, timeout=RESCAN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                missing = _unwatched()
        finally:
            for root in roots:
                root.cancel()
            _, alive = await asyncio.wait(roots, timeout=STOP_SECONDS)
        if alive:
            raise RuntimeError(f"kopf has failed and does not end: {', '.join(sorted(task.get_name() for task in alive))}")
        if not done:
            _log.info("No watcher has started for %s; looking again whether the cluster knows it by now.", ", ".join(missing))
            continue
        failures = [str(error) for task in done if not task.cancelled() and (error := task.exception())]
        if time.monotonic() - began > STEADY_SECONDS:
            pauses = iter(Backoff())
        pause = next(pauses)
        _log.warning("The watchers of kopf have ended (%s); they start again in %.1f s.", "; ".join(failures) or "nobody says why", pause)
        await asyncio.sleep(pause)


def _unwatched() -> list[str]:
    """Kinds that no watcher is for."""
    watched = [task.get_name() for task in asyncio.all_tasks() if not task.done()]
    return [plural for *_, plural in RESOURCES if not any(name.startswith(f"{WATCHER_TASK}{plural}.") for name in watched)]


async def watch_kopf(life: Life, stale_seconds: float) -> None:
    """Give a sign of life for each of kopf's watchers whose task lives. One that is gone falls silent, and the liveness probe fails."""
    life.expect("kopf", stale_seconds)
    known: set[str] = set()
    while True:
        for task in asyncio.all_tasks():
            name = task.get_name()
            if name.startswith(WATCHER_TASK) and not task.done():
                short = "kopf " + name.removeprefix(WATCHER_TASK)
                if short not in known:
                    known.add(short)
                    life.expect(short, stale_seconds)
                life.beat(short)
                life.beat("kopf")
        await asyncio.sleep(LIFE_SECONDS)


def quieten() -> None:
    """Of kopf's logs, which name every event of every object, only the troubles are ours to read."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor").setLevel(logging.CRITICAL)  # keep_kopf says in one line what these say in forty
