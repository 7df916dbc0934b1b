"""The operator's process: settings from the environment, one event loop with everything in it, probes, and an end within 15 seconds.

Each part is a task that runs for ever. One that ends, by whatever bug, ends the process with 1 and its name: an operator that is restarted
is better than one that is alive and blind. A server that is away ends nothing: it is awaited, at the start too.

Exit codes: 0 told to stop, 1 a part failed, 2 bad settings, 3 no usable cluster.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ddp_operator.act.api_client import ClusterApi, connect
from ddp_operator.act.events import TASK_NAME as EVENTS_TASK
from ddp_operator.act.lease import Lease
from ddp_operator.act.status import path_of
from ddp_operator.api.trainingrun import GROUP, PLURAL
from ddp_operator.decide.facts import ProgressFacts, RunFacts
from ddp_operator.errors import ClusterError, OperatorError, SettingsError
from ddp_operator.handlers import keep_kopf, quieten, watch_kopf
from ddp_operator.observe.api import ApiError
from ddp_operator.observe.life import Life
from ddp_operator.observe.pods import PodWatch
from ddp_operator.observe.progress import ProgressScraper
from ddp_operator.observe.sweep import Sweep
from ddp_operator.observe.world import World
from ddp_operator.reconcile import Reconciler
from ddp_operator.settings import Settings
from ddp_operator.web.metrics import Numbers
from ddp_operator.web.server import Sources, serve

ENVIRONMENT_PREFIX: Final = "DDP_OPERATOR__"
OWN_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LONGEST_STALL_SECONDS: Final = 60.0
SERVER_AWAY_SECONDS: Final = 15.0
"""So long without any answer, and it is the server that is away: not ready, but alive, for as long as that lasts."""
RECOVERY_SECONDS: Final = 45.0
"""After an outage the watchers' own pauses are still running: being silent is no sign of death yet."""
END_SECONDS: Final = 2.0
"""For cancelled tasks."""
FINISH_SECONDS: Final = 5.0
"""What the rounds get that are under way when the process is told to end; no new one begins."""
STOP_SECONDS: Final = 14.0
"""All of the graceful end; the chart's pods are killed after 20 s, and a successor waits for us."""
START_PAUSE_SECONDS: Final = 3.0
LONGEST_START_PAUSE_SECONDS: Final = 15.0
"""However long a server asks us to stay away (Retry-After)."""
START_LOG_SECONDS: Final = 30.0
ROUND_TASKS: Final = ("reconcile ", "adopt ")
"""How the loop names the tasks of its rounds."""
TELL_SECONDS: Final = 2.0
"""What the events get then: a successor tells only what the statuses say, and after an uninstall there is none."""
RECORD_FIELDS: Final = ("namespace", "run")

_log = logging.getLogger("ddp_operator")


def main() -> None:
    """The console script `ddp-operator`."""
    try:
        settings = settings_from(os.environ)
        set_up_logs(settings)
        gc.freeze()  # what was imported stays: a collection that looks at all of it stops the loop for a tenth of a second
        code = asyncio.run(Process(settings).run())
    except OperatorError as error:
        print(error, file=sys.stderr)  # noqa: T201  # the whole message for the user; logs may not be set up
        code = error.exit_code
    sys.stdout.flush()
    sys.exit(code)


def settings_from(environment: Mapping[str, str]) -> Settings:
    """`DDP_OPERATOR__PROGRESS_SECONDS=5` sets progress_seconds; namespaces are a JSON list, or names with commas between.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    found: dict[str, Any] = {
        key.removeprefix(ENVIRONMENT_PREFIX).lower(): value for key, value in environment.items() if key.startswith(ENVIRONMENT_PREFIX)
    }
    if "namespaces" in found:
        found["namespaces"] = _names(found["namespaces"])
    try:
        return Settings.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        known = ", ".join(Settings.model_fields)
        reason = f"there is no such setting; there are {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise SettingsError(f"{ENVIRONMENT_PREFIX}{key.upper()}={found.get(key)!r} cannot be used: {reason}.") from error


def _names(text: str) -> object:
    if text.strip().startswith("["):
        with suppress(ValueError):
            return json.loads(text)
    return tuple(name.strip() for name in text.split(",") if name.strip())


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, logger, message, and the run that it is about."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in RECORD_FIELDS if isinstance(getattr(record, name, None), str)},
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logs(settings: Settings) -> None:
    """All logs go to standard error, in the format that the settings name."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.log_format == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    quieten()


class Process:
    """Everything that runs, and how it starts and ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_started = False
        self._finishing: frozenset[asyncio.Task[Any]] | None = None
        """The process ends: only these tasks may still act."""

    async def run(self) -> int:
        """Run until told to stop (0), or until a part ends (1).

        Raises:
            ClusterError: there is no cluster, or it lacks the CRD.
            OperatorError: the port is taken.
        """
        stop = asyncio.Event()
        _on_signals(stop)
        settings, self._api = self._settings, await connect()
        self._life = Life(time.monotonic)
        self._world = World(settings.namespaces)
        identity = settings.identity or socket.gethostname()
        self._lease = Lease(self._api, _lease_namespace(settings), settings.lease_name, identity, settings.lease_seconds)
        self._reconciler = Reconciler(self._world, self._api, settings, self._may_act, time.time, identity=self._lease.identity)
        runner = await self._serve()
        tasks: dict[str, asyncio.Task[Any]] = {"signals": asyncio.create_task(stop.wait(), name="signals")}
        try:
            waiting = asyncio.create_task(wait_for_cluster(self._api, settings), name="start")
            await asyncio.wait((waiting, tasks["signals"]), return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                waiting.cancel()
                return 0
            waiting.result()
            for name, work in self._parts(lambda: _on_signals(stop)).items():
                tasks[name] = asyncio.create_task(work, name=name)
            self._is_started = True
            done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            return 0 if stop.is_set() else _report(done)
        finally:
            await self._stop(tasks, runner.cleanup)

    def _parts(self, catch_signals: Callable[[], None]) -> dict[str, Coroutine[Any, Any, None]]:
        settings, api, world, life, where = self._settings, self._api, self._world, self._life, self._settings.namespaces
        return {
            "lease": self._lease.run(),
            "sweep": Sweep(api, world, where, life, settings, time.monotonic).run(),
            "pods": PodWatch(api, world, where, life, time.monotonic, settings).run(),
            "progress": ProgressScraper(world, settings, time.time, life).run(),
            "reconcile": self._reconciler.run(),
            # kopf puts its own signal handlers in place of ours: it would stop watching while we go on acting
            "kopf": keep_kopf(world, where, catch_signals),
            "kopf-life": watch_kopf(life, settings.watcher_stale_seconds),
        }

    async def _serve(self) -> Any:
        sources = Sources(
            runs=self._runs,
            run=self._world.facts_of,
            documents=self._documents,
            orphans=self._world.orphaned_claims,
            numbers=self._numbers,
            health=self.health,
            ready=self.ready,
            clock=time.time,
        )
        try:
            return await serve(self._settings.port, sources)
        except OSError as error:
            raise OperatorError(
                f"Port {self._settings.port} cannot be listened on ({error.strerror}): set {ENVIRONMENT_PREFIX}PORT."
            ) from error

    async def _stop(self, tasks: Mapping[str, asyncio.Task[Any]], end_web: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Finish the rounds that are under way, then let the next one act, then end the rest."""
        failed = bool(sys.exc_info()[0])
        bound = threading.Timer(STOP_SECONDS, lambda: os._exit(1 if failed or not tasks["signals"].done() else 0))
        bound.daemon = True  # whatever hangs in here must not keep a process alive that has stopped acting
        bound.start()
        await self._finish_rounds()
        for names in ({"reconcile", "lease"}, set(tasks)):
            ending = [task for name, task in tasks.items() if name in names and not task.done()]
            for task in ending:
                task.cancel()
            if ending:
                await asyncio.wait(ending, timeout=END_SECONDS)
            if names != set(tasks):
                await self._lease.release()
        await end_web()
        await self._api.close()

    async def _finish_rounds(self) -> None:
        """A status that says what it wants and an act that is cut off would wait for the next leader, which may come in an hour."""
        self._finishing = frozenset(task for task in asyncio.all_tasks() if task.get_name().startswith(ROUND_TASKS))
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=FINISH_SECONDS)
        if posting := self._reconciler.events.tasks():
            await asyncio.wait(posting, timeout=TELL_SECONDS)

    def _may_act(self) -> bool:
        """What the loop asks before it begins a round, and before each write."""
        task = asyncio.current_task()
        is_let_finish = self._finishing is None or task in self._finishing or (task is not None and task.get_name().startswith(EVENTS_TASK))
        return self._lease.is_leader() and is_let_finish

    # --- what the pages and probes ask

    def _runs(self) -> Iterator[RunFacts]:
        # one after the other: unpacked all at once, the statuses of a thousand runs take 60 MB, and the loop stands still for a second
        for key in self._world.names():
            if (facts := self._world.facts_of(*key)) is not None:
                yield facts

    def _documents(self) -> Iterator[tuple[str, str, ProgressFacts | None]]:
        return ((*key, self._world.look_of(*key).document) for key in self._world.names())

    def _numbers(self) -> Numbers:
        counts, events = self._reconciler.counts, self._reconciler.events
        return Numbers(
            is_leader=self._lease.is_leader(),
            status_lag_seconds=self._reconciler.lag_seconds,
            api_requests=dict(self._api.calls),
            watcher_silent_seconds=self._life.ages(),
            status_writes=counts.writes,
            status_conflicts=counts.conflicts,
            status_pruned=counts.pruned,
            reconcile_errors=counts.errors,
            actions=dict(counts.actions),
            events={"posted": events.posted, "held_back": events.held_back, "lost": events.lost},
        )

    def health(self) -> list[str]:
        """Why this process should be restarted. A server that is away, or busy, is no reason: a restart would not bring it back."""
        now = time.monotonic()
        is_hindered = self._away_seconds() > SERVER_AWAY_SECONDS or now - max(self._api.back_at, self._api.busy_at) < RECOVERY_SECONDS
        if is_hindered:
            return []
        found, stalled_seconds = self._life.silent(), self._reconciler.stalled_seconds
        if self._lease.is_leader() and stalled_seconds > LONGEST_STALL_SECONDS:
            found = [*found, f"A change has waited {stalled_seconds:.0f} s to be shown in a status, and nothing was written meanwhile."]
        return found

    def ready(self) -> list[str]:
        """What is still awaited."""
        if not self._is_started:
            return ["The API server and the TrainingRun CRD are awaited."]
        if (away := self._away_seconds()) > SERVER_AWAY_SECONDS:
            return [f"The API server {self._api.host} has not answered for {away:.0f} s: what is shown is as old as that."]
        return [] if self._world.is_complete() else ["The first lists of runs, jobs, claims and pods are awaited."]

    def _away_seconds(self) -> float:
        return time.monotonic() - self._api.answered_at


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def _report(done: set[asyncio.Task[Any]]) -> int:
    for task in done:
        error = None if task.cancelled() else task.exception()
        _log.critical(
            "Part %r of the operator ended, which it never should; the process ends to be restarted.", task.get_name(), exc_info=error
        )
    return 1


def _lease_namespace(settings: Settings) -> str:
    if settings.lease_namespace:
        return settings.lease_namespace
    with suppress(OSError):
        return OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    return settings.namespaces[0] if settings.namespaces else "default"


async def wait_for_cluster(api: ClusterApi, settings: Settings) -> None:
    """Until TrainingRuns can be listed.

    A server that does not answer, or is busy, is awaited for ever: to end would only add the pauses of a CrashLoopBackOff to its outage.

    Raises:
        ClusterError: it answers, and has refused for `start_seconds`; says why, and what to do.
    """
    said: dict[str, float] = {}
    for namespace in settings.namespaces or ("",):
        refused_since: float | None = None
        while True:
            try:
                await api.request("GET", path_of(namespace), query={"limit": 1}, timeout_seconds=10)
                break
            except ApiError as error:
                sentence, pause, is_away = _explain(api.host, namespace, error), error.retry_after_seconds or 0.0, _is_away(error)
            now = time.monotonic()
            refused_since = None if is_away else refused_since if refused_since is not None else now
            if refused_since is not None and now >= refused_since + settings.start_seconds:
                raise ClusterError(sentence)
            if now >= said.get(sentence, float("-inf")) + START_LOG_SECONDS:
                said = {sentence: now}
                _log.warning("Waiting: %s", sentence)
            pause = min(max(pause, START_PAUSE_SECONDS), LONGEST_START_PAUSE_SECONDS)
            await asyncio.sleep(pause if refused_since is None else min(pause, max(refused_since + settings.start_seconds - now, 0.05)))


def _is_away(error: ApiError) -> bool:
    return error.status in (0, HTTPStatus.TOO_MANY_REQUESTS) or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _explain(host: str, namespace: str, error: ApiError) -> str:
    where = f"namespace {namespace}" if namespace else "the whole cluster"
    table = {
        401: f"The API server {host} does not accept our credentials: check the service account token or the kubeconfig.",
        403: f"{PLURAL}.{GROUP} may not be listed in {where}: check the operator's Role and RoleBinding, and its `namespaces`.",
        404: f"The API server {host} does not know {PLURAL}.{GROUP}: apply the chart's crds/ folder (helm upgrade does not do that).",
    }
    return table.get(error.status, f"The API server {host} cannot be used ({error}): check that it runs and can be reached from here.")
