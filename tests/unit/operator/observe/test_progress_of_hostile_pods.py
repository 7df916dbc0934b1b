"""Whatever a pod's server does: a sentence in the look, within the bounds of time and size, and no harm to other runs."""

import asyncio
import gzip
import json
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from object_bodies import GIB, document_body, job_body, run_body
from scripted_api import Clock, until

from ddp_operator.decide.facts import PodFacts, ProgressLook
from ddp_operator.observe import progress
from ddp_operator.observe.document import MAX_BYTES, DocumentError, parse
from ddp_operator.observe.life import Life
from ddp_operator.observe.progress import ProgressScraper, open_session
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings

DEMO = ("team", "demo")
GOOD = json.dumps(document_body()).encode()


def answer(body, status="200 OK", headers=()):
    lines = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class PodServer:
    """A raw TCP server: `reply` is what it sends, or a coroutine function that does as it likes with the connection."""

    def __init__(self, reply):
        self.reply = reply
        self.requests: list[bytes] = []
        self.sent = 0
        self.open = 0
        self.most_open = 0
        self.writers = []

    async def serve(self, reader, writer):
        self.writers.append(writer)
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        writer.transport.set_write_buffer_limits(65536)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if isinstance(self.reply, bytes):
                writer.write(self.reply)
                await writer.drain()
            else:
                await self.reply(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


def world_of(port, runs=1, uid="pod-1"):
    world = World()
    for index in range(runs):
        name = "demo" if index == 0 else f"demo-{index}"
        world.put_run(run_body(name, job=name))
        world.put_job(job_body(name, uid=f"job-{name}"))
        pod = PodFacts(
            name=f"{name}-master-0", uid=uid, replica="master-0", phase="Running", started_at=1.0, ip="127.0.0.1", progress_port=port
        )
        world.put_pod("team", name, pod)
    return world


@asynccontextmanager
async def pod_serving(reply):
    server = PodServer(reply)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield server, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for writer in server.writers:
            writer.transport.abort()
        await until(lambda: server.open == 0)


async def look_at(reply, *, timeout_seconds=5.0, before=None):
    """The look after one request."""
    async with pod_serving(reply) as (server, port):
        world, clock = world_of(port), Clock()
        if before is not None:
            world.put_progress(*DEMO, before)
        scraper = ProgressScraper(world, Settings(progress_timeout_seconds=timeout_seconds), clock)
        if before is not None:
            scraper._note_asked(DEMO, before.pod_uid, was_slow=False)
        async with open_session(timeout_seconds) as session:
            await scraper.ask(session, DEMO)
        return world.look_of(*DEMO), server


async def test_good_document_is_taken_whole():
    look, server = await look_at(answer(GOOD))
    assert look == ProgressLook(look.document, "pod-1", heard_at=1000.0, asked_at=1000.0, answered_at=1000.0)
    facts = look.document
    assert (facts.step, facts.total_steps, facts.phase, facts.attempt, facts.world_size, facts.loss) == (420, 1000, "training", 2, 4, 0.25)
    assert (facts.checkpoint_step, facts.checkpoint_bytes, facts.checkpoint_verified) == (400, 123, True)
    assert facts.restarts == {"crash": 1, "hang": 0, "preemption": 2, "peer_loss": 0}
    assert (facts.volume_total_bytes, facts.volume_free_bytes) == (10 * GIB, 4 * GIB)
    request = server.requests[0].decode().lower()
    assert request.startswith("get /progress http/1.1")
    assert "accept-encoding: identity" in request
    assert "cookie" not in request
    assert "authorization" not in request


async def endless_body(server, _reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while server.sent < 10 * 2**20:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()
        server.sent += 65536


async def slow_loris(_server, _reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
    with suppress(ConnectionError):
        for _ in range(500):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)


async def slow_headers(_server, _reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    with suppress(ConnectionError):
        for index in range(500):
            writer.write(f"X-{index}: y\r\n".encode())
            await writer.drain()
            await asyncio.sleep(0.02)


async def silent(_server, reader, _writer):
    await reader.read()


async def closing(_server, _reader, _writer):
    pass


HOSTILE = {
    "ten megabytes": (answer(b'{"run": "' + b"x" * 10 * 2**20 + b'"}'), "larger than 65536 bytes"),
    "ten megabytes in chunks": (endless_body, "larger than 65536 bytes"),
    "a byte at a time": (slow_loris, "did not answer within 0.3 s"),
    "a header at a time": (slow_headers, "did not answer within 0.3 s"),
    "no answer": (silent, "did not answer within 0.3 s"),
    "closes at once": (closing, "cannot be read"),
    "redirect": (answer(b"", "302 Found", ["Location: http://169.254.169.254/latest"]), "answered 302"),
    "redirect with a document": (answer(GOOD, "307 Temporary Redirect", ["Location: /elsewhere"]), "answered 307"),
    "error": (answer(b"oops", "500 Internal Server Error"), "answered 500"),
    "gzip bomb": (answer(gzip.compress(b" " * 2**24), headers=["Content-Encoding: gzip"]), "packed answer"),
    "deflate that is no deflate": (answer(b"zzz", headers=["Content-Encoding: deflate"]), "packed answer"),
    "gzip that does not say so": (answer(gzip.compress(GOOD)), "no progress document"),
    "web page": (answer(b"<html>hello</html>"), "no progress document"),
    "nothing": (answer(b""), "no progress document"),
    "cut off": (answer(GOOD)[:-40], "cannot be read"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00" + b"\xff" * 600 + b"\r\n\r\n", "cannot be read"),
    "huge header": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10**6 + b"\r\n\r\n", "cannot be read"),
    "nonsense length": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + GOOD, "cannot be read"),
    "deep nesting": (answer(b"[" * 60_000), "no progress document"),
    "deep nesting in a key that nobody reads": (answer(GOOD[:-1] + b', "x": ' + b"[" * 50_000), "no progress document"),
    "list": (answer(b"[" + GOOD + b"]"), "no progress document"),
    "not UTF-8": (answer(b"\xff\xfe" + GOOD), "no progress document"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_answer_is_a_sentence_and_the_last_good_document_stays(name):
    reply, sentence = HOSTILE[name]
    before = ProgressLook(document=parse(GOOD), pod_uid="pod-0", heard_at=5.0, asked_at=990.0, answered_at=5.0)
    look, server = await look_at(reply, timeout_seconds=0.3 if "did not answer" in sentence else 5.0, before=before)
    assert sentence in look.error
    assert len(look.error) < 400
    assert look.error.isprintable()
    assert look == replace(before, asked_at=1000.0, error=look.error, unanswered_since=1000.0)
    assert server.sent < 2**20, "it was taken in far beyond the cap"
    assert len(server.requests) <= 2, "the library asks a server that closes at once a second time, and nobody more often"


async def test_refused_connection_is_a_sentence():
    async with pod_serving(b"") as (_, port):
        pass
    world = world_of(port)
    async with open_session(5.0) as session:
        await ProgressScraper(world, Settings(), Clock()).ask(session, DEMO)
    assert "cannot be read" in world.look_of(*DEMO).error


async def test_whatever_the_library_raises_ends_nothing(monkeypatch):
    def broken(_):
        raise AssertionError("deep inside\x1b[2J")

    monkeypatch.setattr(progress, "parse", broken)
    look, _ = await look_at(answer(GOOD))
    assert look.error.endswith("cannot be read: AssertionError: deep inside [2J")


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"schema_version": "1"},
        {"schema_version": True},
        {"schema_version": None},
        {"step": -1},
        {"step": 2**53 + 1},
        {"step": 10**400},
        {"step": 1.5},
        {"step": "7"},
        {"step": True},
        {"loss": float("nan")},
        {"loss": float("inf")},
        {"loss": "0.5"},
        {"goodput_ratio": 1.01},
        {"epoch": -0.5},
        {"samples_per_second": 1e300},
        {"phase": "dreaming"},
        {"run": 5},
        {"run": "x" * 2000},
        {"note": ["x"]},
        {"updated_at": None},
        {"checkpoint": {"step": 1}},
        {"checkpoint": []},
        {"restarts": {"crash": "many"}},
        {"storage": {"total_bytes": -1, "free_bytes": 0}},
    ],
)
def test_document_outside_the_schema_is_refused(change):
    with pytest.raises(DocumentError) as told:
        parse(json.dumps(document_body(**change)).encode())
    assert next(iter(change)) in str(told.value)
    assert str(told.value).isprintable()


@pytest.mark.parametrize("missing", ["schema_version", "run", "attempt", "phase", "updated_at", "world_size"])
def test_document_without_a_needed_field_is_refused(missing):
    body = document_body()
    del body[missing]
    with pytest.raises(DocumentError, match=missing):
        parse(json.dumps(body).encode())


def test_document_of_a_newer_trainer_is_read():
    body = document_body(invented={"deep": [1, 2]})
    body["checkpoint"]["invented"] = body["restarts"]["cosmic_ray"] = 5
    assert parse(json.dumps(body).encode()) == parse(GOOD)


def test_document_with_only_what_is_needed_is_read():
    facts = parse(
        json.dumps(
            {key: document_body()[key] for key in ("schema_version", "run", "attempt", "phase", "updated_at", "world_size")}
        ).encode()
    )
    assert (facts.checkpoint_step, facts.loss, facts.volume_total_bytes, facts.restarts["hang"]) == (None, None, 0, 0)


def test_texts_of_a_document_are_cleaned_and_cut():
    facts = parse(json.dumps(document_body(note="a\x1b[2J\u202e" + "x" * 900, run="de\nmo")).encode())
    assert facts.note == "a [2J " + "x" * 250
    assert facts.run == "de mo"


def test_document_at_the_cap_is_read_and_above_it_not():
    padded = GOOD + b" " * (MAX_BYTES - len(GOOD))
    assert parse(padded) == parse(GOOD)
    with pytest.raises(DocumentError, match="larger"):
        parse(padded + b" ")


async def test_document_of_the_trainer_itself_is_read():
    from ddp_trainer.telemetry.document import Checkpoint, Progress, Storage

    made = Progress(
        run="demo", attempt=1, phase="saving", updated_at=1.7e9, world_size=8, step=5, loss=0.5, goodput_ratio=0.9,
        checkpoint=Checkpoint(step=4, saved_at=1.7e9, bytes=7, stall_seconds=0.0, persist_seconds=1.0, verified=False),
        storage=Storage(total_bytes=9, free_bytes=3),
    )  # fmt: skip
    facts = parse(made.to_bytes())
    assert (facts.phase, facts.step, facts.checkpoint_step, facts.volume_free_bytes, facts.goodput_ratio) == ("saving", 5, 4, 3, 0.9)


async def test_heard_at_moves_only_when_the_document_moved():
    documents = [document_body(updated_at=at) for at in (50.0, 50.0, 60.0, 55.0, 55.0)]

    async def next_document(server, _reader, writer):
        writer.write(answer(json.dumps(documents[len(server.requests) - 1]).encode()))

    heard = []
    async with pod_serving(next_document) as (_, port):
        world, clock = world_of(port), Clock()
        scraper = ProgressScraper(world, Settings(), clock)
        async with open_session(5.0) as session:
            for _ in documents:
                clock.now += 10
                await scraper.ask(session, DEMO)
                heard.append(world.look_of(*DEMO).heard_at)
    assert heard == [1010, 1010, 1030, 1040, 1040]


# --- when who is asked


@asynccontextmanager
async def scraping(world, life=None, **settings):
    clock = Clock()
    scraper = ProgressScraper(world, Settings(**settings), clock, life, monotonic=clock, sleep=clock.sleep)
    task = asyncio.create_task(scraper.run())
    try:
        yield scraper, clock
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_each_run_is_asked_again_and_again_with_jitter():
    async with pod_serving(answer(GOOD)) as (server, port):
        async with scraping(world_of(port, runs=3)) as (scraper, clock):
            await until(lambda: scraper.requests >= 30)
            rounds = (clock.now - 1000) / 10
        assert scraper.requests <= 3 * (rounds / 0.85 + 1)
        assert server.requests


async def test_pods_that_do_not_run_cost_no_request():
    async with pod_serving(answer(GOOD)) as (server, port):
        world = world_of(port, runs=2)
        dead = replace(world.facts_of(*DEMO).pods[0], phase="Failed")
        world.put_pod("team", "demo", dead)
        world.put_job(
            job_body("demo-1", uid="job-demo-1", version=99, spec={"runPolicy": {"suspend": True}, "pytorchReplicaSpecs": {"Master": {}}})
        )
        async with scraping(world) as (scraper, clock):
            await until(lambda: clock.now > 1100)
            assert (scraper.requests, server.requests) == (0, [])
            world.put_pod("team", "demo", replace(dead, phase="Running", uid="pod-2"))
            await until(lambda: world.look_of(*DEMO).pod_uid == "pod-2")


async def test_no_more_than_the_bound_are_asked_at_once_and_none_twice(monkeypatch):
    monkeypatch.setattr(progress, "AT_ONCE", 4)
    gate = asyncio.Event()

    async def held(_server, _reader, writer):
        await gate.wait()
        writer.write(answer(GOOD))

    async with pod_serving(held) as (server, port):
        world = world_of(port, runs=12)
        async with scraping(world, progress_timeout_seconds=30) as (scraper, clock):
            await until(lambda: server.open == 4)
            before = clock.now
            assert scraper.requests == 4
            gate.set()
            await until(lambda: all(world.look_of(*key).document for key in world.names()))
            assert server.most_open == 4
            assert before < 1010
            assert scraper.failures == 0


@pytest.mark.parametrize(("runs", "longest_seconds"), [(1, 11.5), (1_000, 11.5), (5_000, 57.5)])
async def test_all_are_asked_more_rarely_where_there_are_very_many(runs, longest_seconds):
    world = world_of(9)
    world.asked_runs = runs
    scraper = ProgressScraper(world, Settings(), Clock(), monotonic=Clock())
    scraper._schedule(DEMO, 0.0)
    scraper._again(DEMO)
    assert 0.7 * longest_seconds < scraper._due.pop()[0] - 1000 <= longest_seconds
    assert scraper._counted_seconds >= 3 * longest_seconds, "a usual pause is no jump of the clock"


async def test_pod_that_does_not_answer_in_time_is_asked_ever_more_rarely_until_it_is_replaced():
    world = world_of(9)
    scraper = ProgressScraper(world, Settings(), Clock(), monotonic=Clock())
    scraper._schedule(DEMO, 0.0)
    pauses = []
    for _ in range(5):
        scraper._note_asked(DEMO, "pod-1", was_slow=True)
        scraper._again(DEMO)
        pauses.append(scraper._due.pop()[0] - 1000)
    assert 17 <= pauses[0] <= 23
    assert 25 <= pauses[-1] <= 35
    scraper._note_asked(DEMO, "pod-2", was_slow=True)
    scraper._again(DEMO)
    assert scraper._due.pop()[0] - 1000 <= 23
    for _ in range(1100):  # half a day
        scraper._note_asked(DEMO, "pod-2", was_slow=True)
    scraper._again(DEMO)
    assert 25 <= scraper._due.pop()[0] - 1000 <= 35
    scraper._note_asked(DEMO, "pod-2", was_slow=False)
    scraper._again(DEMO)
    assert scraper._due.pop()[0] - 1000 <= 11.5


async def test_a_pod_that_cannot_be_asked_for_a_while_is_asked_as_a_new_one():
    async with pod_serving(answer(GOOD)) as (_, port):
        world = world_of(port)
        async with scraping(world) as (scraper, _clock):
            await until(lambda: DEMO in scraper._asked)
            (pod,) = world.facts_of(*DEMO).pods
            world.put_pod("team", "demo", replace(pod, phase="Pending"))
            await until(lambda: DEMO not in scraper._asked)
            world.put_pod("team", "demo", pod)
            await until(lambda: DEMO in scraper._asked)


async def test_new_runs_are_found_and_lost_ones_forgotten():
    async with pod_serving(answer(GOOD)) as (_, port):
        world = world_of(port)
        async with scraping(world) as (scraper, _clock):
            await until(lambda: world.look_of(*DEMO).document)
            assert DEMO in scraper._asked
            world.drop_run(*DEMO)
            for name, other in (("late", world_of(port)),):
                world.put_run(run_body(name, job=name))
                world.put_job(job_body(name, uid="late-job"))
                world.put_pod("team", name, replace(other.facts_of(*DEMO).pods[0], name="late-master-0", uid="late"))
            await until(lambda: world.look_of("team", "late").document)
            await until(lambda: scraper._scheduled.keys() == {("team", "late")})
            assert DEMO not in scraper._asked
            assert {key for _, key in scraper._due} <= {("team", "late")}


async def test_scraper_gives_signs_of_life():
    clock = Clock()
    life = Life(clock)
    async with scraping(World(), life) as (_, own):
        await until(lambda: own.now > 1100)
        assert life.ages() == {"progress scraper": 0}


async def test_silence_is_counted_from_its_first_unanswered_request_and_ends_with_an_answer():
    before = ProgressLook(document=parse(GOOD), pod_uid="pod-1", heard_at=5.0, asked_at=990.0, error="silent", unanswered_since=300.0)
    look, _ = await look_at(HOSTILE["not UTF-8"][0], before=before)
    assert look.unanswered_since == 300.0
    look, _ = await look_at(answer(GOOD), before=before)
    assert look.unanswered_since == 0.0
