"""The process's own small decisions: settings, logs, probes, what kopf may do, and the sentences of a failed start."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import kopf
import pytest
from fake_api_server import RefusalError

from ddp_operator import handlers, main
from ddp_operator.backoff import LONGEST_RETRY_AFTER_SECONDS, Backoff
from ddp_operator.errors import ClusterError, SettingsError
from ddp_operator.handlers import keep_kopf, kopf_settings, registry_for, watch_kopf
from ddp_operator.observe.life import Life
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings


@pytest.mark.parametrize(("text", "names"), [("", ()), ("a", ("a",)), (" a, b ,", ("a", "b")), ('["a", "b"]', ("a", "b")), ("[]", ())])
def test_namespaces_are_a_json_list_or_names_with_commas(text, names):
    assert main.settings_from({"DDP_OPERATOR__NAMESPACES": text, "OTHER": "x"}).namespaces == names


def test_settings_come_from_their_own_variables_only():
    settings = main.settings_from({"DDP_OPERATOR__ADOPT": "false", "DDP_OPERATOR__PORT": "9", "DDP_OPERATOR_PORT": "7", "ADOPT": "true"})
    assert (settings.adopt, settings.port) == (False, 9)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("PORT", "high", r"DDP_OPERATOR__PORT='high' cannot be used: .*integer"),
        ("PROGRES_SECONDS", "1", r"no such setting; there are .*progress_seconds"),
        ("LEASE_SECONDS", "-1", r"DDP_OPERATOR__LEASE_SECONDS='-1' cannot be used: .*greater than 0"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_the_reason(key, value, sentence):
    with pytest.raises(SettingsError, match=sentence):
        main.settings_from({f"DDP_OPERATOR__{key}": value})


def test_bad_settings_end_the_process_with_two_and_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("DDP_OPERATOR__PORT", "x")
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_log_line_is_one_json_object_whatever_is_in_the_message():
    record = logging.LogRecord("ddp_operator.x", logging.WARNING, "", 0, "torn %s", ("line\n\x1b[31m",), None)
    record.namespace, record.run = "ns", "demo"
    line = main.JsonLines().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    read = json.loads(line)
    assert (read["level"], read["logger"], read["namespace"], read["run"]) == ("WARNING", "ddp_operator.x", "ns", "demo")
    assert read["message"] == "torn line\n\x1b[31m"
    assert read["time"].endswith("+00:00")


# --- the liveness probe

HEALTH = {
    # what: (watcher silent, server unheard of for, server back or busy since, leader, lag) -> complains
    "all is well": (False, 1, 999, True, 0.1, False),
    "a watcher is dead while the server answers": (True, 1, 999, True, 0.1, True),
    "a watcher is silent since the server is away": (True, 60, 999, False, 0.1, False),
    "a watcher is silent just after the server came back": (True, 1, 20, True, 0.1, False),
    "a watcher is silent long after the server came back": (True, 1, 60, True, 0.1, True),
    "the server is away for hours": (True, 9999, 99999, False, 0.1, False),
    "a leader has written nothing for a minute": (False, 1, 999, True, 61, True),
    "a leader has written nothing for a minute, just after the server came back": (False, 1, 20, True, 61, False),
    "a leader has written nothing for a minute, since the server is away": (False, 60, 999, True, 61, False),
    "a standby shows nothing": (False, 1, 999, False, 61, False),
}


@pytest.mark.parametrize("way", ["back", "busy"])
@pytest.mark.parametrize("case", HEALTH)
def test_the_liveness_probe_fails_only_for_what_a_restart_would_mend(case, way, monkeypatch):
    is_silent, unheard, back, leads, lag, complains = HEALTH[case]
    monkeypatch.setattr(main.time, "monotonic", lambda: 1000.0)
    process = main.Process(Settings())
    times = {"back_at": 1000.0 - back, "busy_at": 0.0} if way == "back" else {"back_at": 0.0, "busy_at": 1000.0 - back}
    process._api = SimpleNamespace(answered_at=1000.0 - unheard, host="https://api", **times)
    process._life = SimpleNamespace(silent=lambda: ["pods has given no sign of life"] if is_silent else [])
    process._lease = SimpleNamespace(is_leader=lambda: leads)
    process._reconciler = SimpleNamespace(stalled_seconds=lag)
    assert bool(process.health()) is complains


def test_it_is_ready_when_everything_was_listed_once():
    process, seen = main.Process(Settings()), {"complete": False}
    process._world = SimpleNamespace(is_complete=lambda: seen["complete"])
    process._api = SimpleNamespace(answered_at=main.time.monotonic(), host="https://api")
    assert process.ready() == ["The API server and the TrainingRun CRD are awaited."]
    process._is_started = True
    assert "first lists" in process.ready()[0]
    seen["complete"] = True
    assert process.ready() == []
    process._api.answered_at -= 3600
    (sentence,) = process.ready()
    assert sentence.startswith("The API server https://api has not answered for 3600 s")


async def test_a_start_waits_for_the_server_and_then_explains_what_is_wrong(server, api, monkeypatch):
    monkeypatch.setattr(main, "START_PAUSE_SECONDS", 0.01)
    settings = Settings(namespaces=("default",), start_seconds=0.1)
    for status, sentence in (
        (401, "does not accept our credentials"),
        (403, "may not be listed in namespace default: check the operator's Role"),
        (404, "apply the chart's crds/ folder"),
        (410, "check that it runs"),
    ):
        server.fault = lambda _, status=status: RefusalError(status, "no")
        with pytest.raises(ClusterError, match=sentence):
            await main.wait_for_cluster(api, settings)
    refusals = iter([RefusalError(503, "soon"), RefusalError(404, "soon")])
    server.fault = lambda _: next(refusals, None)
    await main.wait_for_cluster(api, settings.model_copy(update={"start_seconds": 60.0}))


async def test_a_start_waits_for_a_server_that_is_away_or_busy_without_an_end(server, api, monkeypatch, caplog):
    """To end would only add the pauses of a CrashLoopBackOff to the outage."""
    monkeypatch.setattr(main, "START_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(main, "LONGEST_START_PAUSE_SECONDS", 0.02)
    # a refusal in between begins its own time anew: an API server that starts may say 403 or 404 for a moment
    answers = iter([RefusalError(status, "x", {"Retry-After": "3600"}) for status in (*[0, 503, 429, 500] * 10, 403, *[503] * 10, 404)])
    server.fault = lambda _: next(answers, None)
    await main.wait_for_cluster(api, Settings(namespaces=("default",), start_seconds=0.05))
    assert next(answers, None) is None


async def test_the_same_trouble_of_a_start_is_logged_each_half_minute_and_not_each_time(server, api, monkeypatch, caplog):
    now = [1000.0]
    monkeypatch.setattr(main, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(main, "asyncio", SimpleNamespace(sleep=sleep))
    server.fault = lambda _: RefusalError(503, "no") if now[0] < 1000 + 3600 else None
    await main.wait_for_cluster(api, Settings(namespaces=("default",)))
    assert 100 <= len([text for text in caplog.messages if text.startswith("Waiting: ")]) <= 121


async def test_a_process_that_ends_lets_rounds_under_way_act_and_tell_and_begins_no_other():
    process, acted, begun, posting = main.Process(Settings()), [], asyncio.Event(), []
    process._lease = SimpleNamespace(is_leader=lambda: True)
    process._reconciler = SimpleNamespace(events=SimpleNamespace(tasks=lambda: posting))

    async def a_round(name, wait):
        begun.set()
        await asyncio.sleep(wait)
        acted.append((name, process._may_act()))
        if name == "adopt ns/b":  # as each round does: what it has done is told afterwards
            posting.append(asyncio.create_task(a_round("posts", 0.05), name="events of ns"))

    under_way = [asyncio.create_task(a_round(name, 0.05), name=name) for name in ("reconcile ns/a", "adopt ns/b")]
    loop = asyncio.create_task(a_round("loop", 0.01), name="reconcile")
    await begun.wait()
    assert process._may_act()
    await process._finish_rounds()
    assert all(task.done() for task in (*under_way, loop))
    assert sorted(acted) == [("adopt ns/b", True), ("loop", False), ("posts", True), ("reconcile ns/a", True)]
    late = asyncio.create_task(a_round("late", 0), name="reconcile ns/c")
    await late
    assert acted[-1] == ("late", False)


# --- kopf


def test_kopf_has_no_handler_that_writes_to_objects():
    registry = registry_for(World())
    watched = {(h.selector.plural or h.selector.any_name, h.id) for h in registry._watching.get_all_handlers()}
    assert {name for _, name in watched} == {"trainingruns", "pytorchjobs", "persistentvolumeclaims"}
    for others in (registry._spawning, registry._changing, registry._indexing, registry._webhooks):
        assert list(others.get_all_handlers()) == []


def test_kopf_asks_for_nothing_that_needs_rights_on_the_whole_cluster_and_posts_nothing():
    settings = kopf_settings()
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled


def test_kopf_lets_go_of_an_object_as_soon_as_it_was_seen_and_copies_none():
    settings = kopf_settings()
    assert settings.queueing.idle_timeout <= 0.1
    differences = settings.persistence.diffbase_storage
    body = kopf.Body({"metadata": {"name": "demo"}, "spec": {"large": ["object"]}})
    assert (differences.build(body=body, extra_fields=None), differences.fetch(body=body)) == ({}, None)


def test_pauses_between_attempts_grow_to_a_bound_and_never_end():
    pauses = list(islice(Backoff(15.0), 2000))
    assert max(pauses) <= 15.0
    assert max(pauses[:2]) <= 1.0 < min(pauses[5:])
    assert min(pauses[5:]) >= 7.5
    assert len(set(pauses)) == 2000


def test_a_server_that_asks_for_patience_gets_it_within_a_bound():
    assert [Backoff(1.0).after(1, asked) for asked in (20.0, 1e9)] == [20.0, LONGEST_RETRY_AFTER_SECONDS]
    assert 0.5 <= Backoff(1.0).after(10_000, 0.1) <= 1.0


async def test_events_of_objects_go_into_the_world_and_out_of_it():
    world = World(("ns",))
    (handler,) = [h for h in registry_for(world)._watching.get_all_handlers() if h.id == "trainingruns"]
    body = {"metadata": {"namespace": "ns", "name": "demo", "uid": "u1", "resourceVersion": "5"}, "spec": {"jobRef": {"name": "j"}}}
    names = {"namespace": "ns", "name": "demo", "uid": "u1"}
    await handler.fn(event={"type": None, "object": body}, **names)
    assert world.names() == [("ns", "demo")]
    await handler.fn(event={"type": "DELETED", "object": body}, **{**names, "uid": "of-a-namesake-before"})
    assert world.names() == [("ns", "demo")]
    await handler.fn(event={"type": "DELETED", "object": body}, **names)
    assert world.names() == []


class _EndOfTestError(Exception):
    pass


async def test_each_living_watcher_of_kopf_beats_and_a_dead_one_falls_silent(monkeypatch):
    now, tasks = [0.0], [SimpleNamespace(get_name=lambda name=name: f"watcher for {name}", done=lambda: False) for name in ("a", "b")]
    life = Life(lambda: now[0])
    monkeypatch.setattr(handlers.asyncio, "all_tasks", lambda: tasks)

    async def sleep(_):
        now[0] += 5.0
        if now[0] == 10.0:
            tasks.pop()
        if now[0] > 70.0:
            raise _EndOfTestError

    monkeypatch.setattr(handlers.asyncio, "sleep", sleep)
    with pytest.raises(_EndOfTestError):
        await watch_kopf(life, 50.0)
    (silent,) = life.silent()
    assert silent.startswith("kopf b ")


async def test_a_kopf_that_never_starts_a_watcher_is_silent(monkeypatch):
    now = [0.0]
    life = Life(lambda: now[0])
    monkeypatch.setattr(handlers.asyncio, "all_tasks", set)

    async def sleep(_):
        now[0] += 5.0
        if now[0] > 60.0:
            raise _EndOfTestError

    monkeypatch.setattr(handlers.asyncio, "sleep", sleep)
    with pytest.raises(_EndOfTestError):
        await watch_kopf(life, 50.0)
    assert life.silent()


async def test_kopf_is_started_again_when_it_ends_and_our_signal_handlers_are_put_back(monkeypatch):
    starts = []

    async def fails():
        raise RuntimeError("Error in the watch-stream")

    async def lasts():
        await asyncio.Event().wait()

    async def spawn(**_):
        return [asyncio.create_task(work(), name=work.__name__) for work in (fails, lasts)]

    def on_start():
        starts.append(1)
        if len(starts) == 3:
            raise _EndOfTestError

    monkeypatch.setattr(kopf, "spawn_tasks", spawn)
    monkeypatch.setattr(handlers, "Backoff", lambda: iter([0.0] * 9))
    with pytest.raises(_EndOfTestError):
        await keep_kopf(World(), ("default",), on_start)
    assert len(starts) == 3
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_kopf_looks_again_for_a_kind_that_nobody_knew_when_it_started(monkeypatch):
    """Kubeflow may be installed after the operator."""
    starts, known, thrice = [], [], asyncio.Event()

    async def lasts():
        await asyncio.Event().wait()

    async def spawn(**_):
        watchers = [asyncio.create_task(lasts(), name=f"watcher for {plural}.v1@x") for plural in known]
        return [asyncio.create_task(lasts(), name="root"), *watchers]

    def on_start():
        starts.append(1)
        if len(starts) == 3:
            thrice.set()
        known[:] = ["trainingruns", "persistentvolumeclaims", *(["pytorchjobs"] if len(starts) > 1 else [])]

    monkeypatch.setattr(kopf, "spawn_tasks", spawn)
    monkeypatch.setattr(handlers, "RESCAN_SECONDS", 0.01)
    keeper = asyncio.create_task(keep_kopf(World(), ("default",), on_start))
    await thrice.wait()
    await asyncio.wait((keeper,), timeout=0.1)  # ten more looks, which find nothing missing
    assert len(starts) == 3  # nothing, then two kinds, then all
    keeper.cancel()
    await asyncio.wait((keeper,))


def test_a_start_imports_neither_the_clients_synchronous_half_nor_its_models():
    script = "import sys, ddp_operator.main; print(*(name for name, module in sys.modules.items() if module))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"kopf", "kubernetes.aio"} <= imported
    assert not imported & {"requests", "oauthlib", "websocket", "kubernetes.client", "kubernetes.config", "kubernetes.aio.client.models"}


def test_the_clients_asyncio_half_works_without_the_rest():
    script = """
import asyncio
from ddp_operator.act import api_client
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration

async def main():
    try:
        await api_client.configuration()
    except api_client.ClusterError:
        print("no cluster")

asyncio.run(main())
"""
    environment = {"PATH": os.environ["PATH"], "KUBECONFIG": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["no", "cluster"], done.stderr
