import asyncio
import re

import aiohttp
import pytest
from board_runs import HOSTILE, cast, document, found_in, run, sources_of
from page_checks import Page

from ddp_operator.web import server
from ddp_operator.web.server import serve


@pytest.fixture
async def get():
    """A function that starts a server over some sources (once) and asks it."""
    runners, sessions = [], []

    async def ask(path, sources=None, method="GET", **more):
        if not runners:
            runners.append(await serve(0, sources or sources_of(cast), "127.0.0.1"))
            sessions.append(aiohttp.ClientSession())
        port = runners[0].addresses[0][1]
        async with sessions[0].request(method, f"http://127.0.0.1:{port}{path}", **more) as response:
            return response.status, response.headers, await response.text()

    yield ask
    for session in sessions:
        await session.close()
    for runner in runners:
        await runner.cleanup()


def nonce_of(headers):
    return re.search(r"script-src 'nonce-([^']+)'", headers["Content-Security-Policy"])[1]


@pytest.mark.parametrize(
    "path", ["/", "/?phase=Running&namespace=team-a", "/runs/team-a/resnet", "/runs/team-b/evil", "/nothing", "/runs/a/b"]
)
async def test_every_page_is_sound_under_its_own_policy(get, path):
    _, headers, text = await get(path)
    assert Page(text, nonce_of(headers)).complaints == []
    assert headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/nothing"])
async def test_every_answer_has_the_headers_that_keep_others_out(get, path):
    _, headers, _ = await get(path)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "aiohttp" not in headers["Server"]


async def test_no_two_answers_have_the_same_nonce(get):
    assert nonce_of((await get("/"))[1]) != nonce_of((await get("/"))[1])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/runs/team-a/resnet"])
async def test_nothing_but_reading_is_allowed(get, method, path):
    status, headers, text = await get(path, method=method, data=b"x" * 10_000)
    assert status == 405
    assert headers["Allow"] == "GET,HEAD"
    assert f"only answers GET and HEAD, not {method}" in Page(text, nonce_of(headers)).said


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/runs/team-a/resnet"])
async def test_head_is_answered_without_a_body(get, path):
    status, _, text = await get(path, method="HEAD")
    assert (status, text) == (200, "")


async def test_a_run_that_is_not_there_is_named_in_a_sentence(get):
    status, headers, text = await get("/runs/team-a/%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    page = Page(text, nonce_of(headers))
    assert (status, page.complaints) == (404, [])
    assert "There is no run <script>alert(1)</script> in namespace team-a" in page.said


async def test_a_page_that_is_not_there_says_which_are(get):
    status, _, text = await get("/admin")
    assert status == 404
    assert "all runs are at /, one run at /runs/NAMESPACE/NAME" in text


async def test_endless_requests_are_refused(get):
    assert (await get("/?namespace=" + "x" * 20_000))[0] == 400


async def test_a_page_that_fails_is_a_sentence_and_the_next_one_works(get, caplog):
    looks = iter([lambda: 1 / 0, cast, cast, cast])

    def runs():
        return next(looks)()

    status, _, text = await get("/", sources_of(runs, run=found_in(cast())))
    assert status == 500
    assert "the operator's log says why" in text.replace("&#39;", "'")
    assert "ZeroDivisionError" not in text
    assert "ZeroDivisionError" in caplog.text
    assert (await get("/"))[0] == 200


@pytest.mark.parametrize(("path", "key"), [("/healthz", "health"), ("/readyz", "ready")])
async def test_probes_fail_with_the_sentences_that_say_why(get, path, key):
    complaints = []
    sources = sources_of(cast, **{key: lambda: complaints})
    assert (await get(path, sources))[::2] == (200, "ok\n")
    complaints.append("The watcher of pods is silent for 99 s.")
    assert (await get(path))[::2] == (503, "The watcher of pods is silent for 99 s.\n")


async def test_metrics_are_served_as_prometheus_expects(get):
    status, headers, text = await get("/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'ddp_operator_runs{phase="Hung"} 1.0' in text
    assert HOSTILE[:20] not in text.replace('claim="', "").split("ddp_claim")[0]


async def test_losses_are_noted_while_it_serves(get, monkeypatch):
    monkeypatch.setattr("ddp_operator.web.server.SAMPLE_SECONDS", 0.001)
    steps = iter(range(10**9))

    def documents():
        step = next(steps)
        if step == 3:
            raise RuntimeError("one bad look")
        return [("team-a", "resnet", document(step))]

    await get("/healthz", sources_of(lambda: [run()], documents=documents))
    async with asyncio.timeout(20):
        while "<polyline" not in (await get("/"))[2]:
            pass


async def test_cleanup_ends_the_sampling():
    before = asyncio.all_tasks()
    runner = await serve(0, sources_of(cast), "127.0.0.1")
    assert "web-history" in {task.get_name() for task in asyncio.all_tasks() - before}
    await runner.cleanup()
    assert "web-history" not in {task.get_name() for task in asyncio.all_tasks() - before}


def many(count, taken, others):
    """Runs that are made when they are taken; what ran in between is noted among them."""
    for number in range(count):
        taken.append(others[0])
        yield run(f"run-{number:04}")


@pytest.mark.parametrize("path", ["/", "/metrics"])
async def test_the_event_loop_goes_on_while_all_runs_are_read(get, path):
    turns, taken = [0], []

    async def others():
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    assert (await get(path, sources_of(lambda: many(1000, taken, turns), run=lambda *_: None)))[0] == 200
    task.cancel()
    longest = max(taken.count(turn) for turn in set(taken))
    assert (len(taken), longest) == (1000, server.CHUNK_RUNS)


async def test_neither_sampling_nor_a_page_of_one_run_reads_all_runs(get, monkeypatch):
    monkeypatch.setattr(server, "SAMPLE_SECONDS", 0.001)
    sampled = asyncio.Event()

    def documents():
        sampled.set()
        return []

    def runs():
        raise AssertionError("all statuses are unpacked")

    assert (await get("/runs/team-a/resnet", sources_of(runs, run=found_in(cast()), documents=documents)))[0] == 200
    assert (await get("/runs/team-a/none"))[0] == 404
    await asyncio.wait_for(sampled.wait(), 20)


@pytest.mark.parametrize(("path", "bound"), [("/", "OVERVIEW_SECONDS"), ("/metrics", "METRICS_SECONDS")])
async def test_many_who_ask_at_once_cost_one_look_and_a_later_one_sees_anew(get, monkeypatch, path, bound):
    monkeypatch.setattr(server, bound, 3600.0)
    looks = []

    def runs():
        looks.append(1)
        return cast()

    await get(path, sources_of(runs, run=found_in(cast())))
    await asyncio.gather(*(get(path) for _ in range(8)))
    assert len(looks) == 1
    monkeypatch.setattr(server, bound, 0.0)
    await get(path)
    assert len(looks) == 2
