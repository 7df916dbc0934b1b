"""The connection: every answer is a JSON object or an ApiError, and every wait has a bound."""

import asyncio
from contextlib import aclosing

import pytest
from aiohttp import web
from fake_api_server import RefusalError
from kubernetes.aio.client.configuration import Configuration

from ddp_operator import handlers
from ddp_operator.act import api_client
from ddp_operator.observe.api import ApiError

PODS = "/api/v1/pods"


@pytest.fixture
async def hostile(connect_to):
    """(answer) -> connection to a server that gives it."""
    opened = []

    async def serve(handler):
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        connection = connect_to(f"http://127.0.0.1:{runner.addresses[0][1]}")
        opened.extend((connection.close, runner.cleanup))
        return connection

    yield serve
    for end in opened:
        await end()


async def test_calls_are_counted_by_verb_and_answer(server, api):
    await api.request("GET", PODS)
    with pytest.raises(ApiError):
        await api.request("DELETE", "/api/v1/namespaces/default/pods/none")
    async with aclosing(api.stream(PODS, query={"watch": True, "timeoutSeconds": 0}, read_timeout_seconds=5)) as events:
        async for _ in events:
            pass
    assert api.calls == {("get", "200"): 1, ("delete", "404"): 1, ("watch", "200"): 1}


async def test_a_refusal_carries_the_servers_words_and_its_retry_after(server, api):
    for header, seconds in (({"Retry-After": "7"}, 7.0), ({}, None), ({"Retry-After": "soon"}, None), ({"Retry-After": "1e9"}, 30.0)):
        server.fault = lambda _, header=header: RefusalError(429, "too many\x1b[31m requests\n" + "x" * 1000, header)
        with pytest.raises(ApiError) as caught:
            await api.request("GET", PODS)
        assert (caught.value.status, caught.value.retry_after_seconds) == (429, seconds)
        assert caught.value.reason.startswith("too many [31m requests")
        assert caught.value.reason.isprintable()
        assert len(caught.value.reason) <= 300


async def test_a_server_that_is_away_is_status_zero(connect_to):
    connection = connect_to("http://127.0.0.1:1")
    with pytest.raises(ApiError) as caught:
        await connection.request("GET", PODS)
    assert caught.value.status == 0
    assert connection.calls == {("get", "0"): 1}
    await connection.close()


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '"text"', "[" * 100_000])
async def test_an_answer_that_is_no_object_is_an_error_unless_it_is_empty(hostile, text):
    async def answer(_):
        return web.Response(text=text)

    connection = await hostile(answer)
    if not text:
        assert await connection.request("GET", PODS) == {}
        return
    with pytest.raises(ApiError):
        await connection.request("GET", PODS)


async def test_an_answer_that_never_ends_is_cut_off(hostile, monkeypatch):
    monkeypatch.setattr(api_client, "ANSWER_BYTES", 2**20)

    async def answer(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 2**16)

    with pytest.raises(ApiError, match="larger than"):
        await (await hostile(answer)).request("GET", PODS)


async def test_a_server_that_does_not_answer_is_not_waited_for_longer_than_asked(hostile):
    async def answer(_):
        await asyncio.sleep(30)

    with pytest.raises(ApiError, match=r"nothing came for 0\.2 s"):
        await (await hostile(answer)).request("GET", PODS, timeout_seconds=0.2)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b'{"type":"ADDED"}\n{"type"'], "middle of a line"),
        ([b'{"type":"ADDED"}\n', b"nonsense\n"], "not JSON"),
        ([b'{"type":"ADDED"}\n', b"x" * 4096], "larger than"),
        ([b'{"type":', b'"ADDED"}\n', None], "nothing came for"),
    ],
    ids=["torn", "nonsense", "endless", "silent"],
)
async def test_a_watch_hands_on_what_is_whole_and_then_says_what_broke_it(hostile, monkeypatch, lines, reason):
    monkeypatch.setattr(api_client, "LINE_BYTES", 1024)

    async def answer(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            if line is None:
                await asyncio.sleep(30)
            await response.write(line)
        return response

    events = (await hostile(answer)).stream(PODS, read_timeout_seconds=0.3 if None in lines else 30)
    seen = [await anext(events)]
    with pytest.raises(ApiError, match=reason):
        await anext(events)
    assert seen == [{"type": "ADDED"}]


async def test_an_outage_and_its_end_are_noticed(server, connect_to):
    now = [0.0]
    connection = connect_to(server.url)
    connection._clock = lambda: now[0]
    connection.answered_at = 0.0
    server.fault = lambda _: RefusalError(503, "away")
    now[0] = 30.0
    with pytest.raises(ApiError):
        await connection.request("GET", PODS)
    assert connection.answered_at == 0.0
    server.fault = lambda _: None
    now[0] = 40.0
    await connection.request("GET", PODS)
    assert (connection.answered_at, connection.back_at) == (40.0, 40.0)
    await connection.close()


async def test_the_proxy_of_the_environment_is_looked_up_once_and_no_request_asks_for_it(server, monkeypatch):
    async def configuration():
        where = type.__call__(Configuration)
        where.host = server.url
        return where

    monkeypatch.setattr(api_client, "configuration", configuration)
    for name in ("HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    connection = await api_client.connect()
    assert connection._client.configuration.proxy == "http://proxy.example:3128"
    await connection.close()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    connection = await api_client.connect()
    assert connection._client.configuration.proxy is None
    await connection.request("GET", PODS)
    assert not connection._client.rest_client.pool_manager.trust_env
    await connection.close()


async def test_kopf_goes_the_same_way_as_our_own_client_and_nothing_of_the_environment_replaces_its_token(monkeypatch):
    async def configuration():
        where = type.__call__(Configuration)
        where.host = "https://api.example:6443"
        where.api_key, where.api_key_prefix = {"BearerToken": "secret"}, {"BearerToken": "Bearer"}
        return where

    monkeypatch.setattr(handlers, "configuration", configuration)
    for name in ("HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    found = await handlers.login()
    assert (found.proxy_url, found.trust_env, found.scheme, found.token) == ("http://proxy.example:3128", False, "Bearer", "secret")
    monkeypatch.setenv("no_proxy", "api.example")
    assert (await handlers.login()).proxy_url is None
