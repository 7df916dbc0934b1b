"""The connection to the API server: raw JSON calls over the official client's asyncio transport.

`kubernetes.aio` brings configuration, certificates and tokens (re-read while it runs); its generated models are left alone, because they
cost more memory than a thousand runs. Nothing is retried here: whoever calls knows how long an answer is worth waiting for.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

import ddp_operator.act.aio_only  # noqa: F401  # by being imported
from ddp_operator.errors import ClusterError
from ddp_operator.observe.api import ApiError, Json, Query

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient
    from kubernetes.aio.client.configuration import Configuration

CONNECT_SECONDS: Final = 10.0
ANSWER_BYTES: Final = 64 * 2**20
"""Of one whole answer. A page of 500 large pods has 10 MB; more than this is no page that we asked for."""
LINE_BYTES: Final = 8 * 2**20
"""Of one watch event. etcd keeps no object above 1.5 MB."""
CHUNK_BYTES: Final = 2**18
REASON_CHARACTERS: Final = 300
RETRY_AFTER_SECONDS: Final = 30.0
"""The longest Retry-After that is believed: a proxy in between may say anything, and a minute after an outage all must work."""
OUTAGE_SECONDS: Final = 10.0
"""The lease is renewed every five seconds: so long without any answer, and it is the server that is away."""
JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"


async def configuration() -> Configuration:
    """Where the API server is and who we are: the pod's service account, else the kubeconfig ($KUBECONFIG, ~/.kube/config).

    Raises:
        ClusterError: with a sentence, if there is neither, or the kubeconfig cannot be read.
    """
    from kubernetes.aio import config
    from kubernetes.aio.client.configuration import Configuration

    loaders: Any = config  # its functions carry no types
    # the class remembers a default, and its metaclass copies that: start from an empty one
    loaded: Configuration = type.__call__(Configuration)
    try:
        loaders.load_incluster_config(client_configuration=loaded)
    except config.ConfigException:
        try:
            await loaders.load_kube_config(client_configuration=loaded, persist_config=False)
        except Exception as error:  # the loader lets KeyError, yaml and file errors through, whatever the file says
            raise ClusterError(
                f"There is no way to the cluster: this is no pod with a service account token, and the kubeconfig cannot be used "
                f"({error}). Set KUBECONFIG to a file that `kubectl cluster-info` works with."
            ) from error
    return loaded


async def connect(clock: Callable[[], float] = time.monotonic) -> ClusterApi:
    """A connection as `configuration` finds it. Nothing is sent yet.

    Raises:
        ClusterError: if nobody says where the cluster is, or its certificates cannot be read.
    """
    from kubernetes.aio.client.api_client import ApiClient

    loaded = await configuration()
    loaded.connection_pool_maxsize = 0  # no limit: a watch for each of many namespaces must not leave the writes without a connection
    # Looked up once, here: a session that trusts the environment reads it, and ~/.netrc, in two threads before each request.
    loaded.proxy = loaded.proxy or proxy_for(loaded.host)
    loaded.client_session_kwargs = {"trust_env": False}
    try:
        return ClusterApi(ApiClient(loaded), clock)
    except (OSError, ValueError) as error:
        raise ClusterError(f"The certificates for {loaded.host} cannot be read ({error}): mend the kubeconfig.") from error


def proxy_for(host: str) -> str | None:
    """What the environment (HTTPS_PROXY, NO_PROXY ...) names for this address."""
    address = urlsplit(host)
    return None if proxy_bypass(address.netloc) else getproxies().get(address.scheme)


class ClusterApi:
    """Implements `observe.api.Api`, and counts what it does."""

    def __init__(self, client: ApiClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client: Any = client
        self._clock = clock
        self.calls: Counter[tuple[str, str]] = Counter()
        """(verb, code): "get" "put" ... and "watch"; the HTTP status, "0" for no answer."""
        self.answered_at = clock()
        """When the server last gave an answer that was neither 5xx nor 429, on our clock: tells a dead server from a dead watcher."""
        self.back_at = float("-inf")
        """When it answered again after `OUTAGE_SECONDS` or more without an answer."""
        self.busy_at = float("-inf")
        """When it last said 429: it may serve some of us, such as the lease, while watchers must wait."""

    @property
    def host(self) -> str:
        """The server's address."""
        return str(self._client.configuration.host)

    async def close(self) -> None:
        """Give all connections back."""
        await self._client.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        content_type: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> Json:
        """One call and its whole answer, as `observe.api.Api` says."""
        verb = method.lower()
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=min(CONNECT_SECONDS, timeout_seconds))
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._send(verb, method, path, query, body, content_type, timeout)
            content = await _whole(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if response is None:
                self.calls[verb, "0"] += 1
            raise ApiError(0, _broken(error, timeout_seconds)) from error
        finally:
            if response is not None:
                response.release()
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(response, content)
        return _object(content) if content.strip() else {}

    async def stream(self, path: str, *, query: Query | None = None, read_timeout_seconds: float) -> AsyncIterator[Json]:
        """A watch, line by line, as `observe.api.Api` says."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=read_timeout_seconds)
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(read_timeout_seconds):  # sock_read does not bound the wait for a free connection
                response = await self._send("watch", "GET", path, query, None, None, timeout)
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise _refusal(response, await _whole(response))
            async for line in _lines(response):
                yield _object(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if response is None:
                self.calls["watch", "0"] += 1
            raise ApiError(0, _broken(error, read_timeout_seconds)) from error
        finally:
            if response is not None:
                response.close()  # a watch that is left in the middle must not go back to the pool

    async def _send(
        self, verb: str, method: str, path: str, query: Query | None, body: Any, content_type: str | None, bounds: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        # identity: inside a cluster the network is cheaper than both sides' time for gzip
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "ddp-operator"}
        headers["Content-Type"] = content_type or "application/json"
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = self.host.rstrip("/") + path + ("?" + urlencode(_texts(query)) if query else "")
        answer = await self._client.rest_client.request(method, url, headers=headers, body=body, _request_timeout=bounds)
        response: aiohttp.ClientResponse = answer.response
        self.calls[verb, str(response.status)] += 1
        now = self._clock()
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            self.busy_at = now
        elif response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            if now - self.answered_at > OUTAGE_SECONDS:
                self.back_at = now
            self.answered_at = now
        return response


def _texts(query: Query) -> dict[str, str]:
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in query.items()}


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(CHUNK_BYTES):
        size += len(part)
        if size > ANSWER_BYTES:
            response.close()
            raise ApiError(response.status, f"the answer is larger than {ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    # not aiohttp's own iteration by lines: that fails above 4 MB of one line, and a part without its end would look like a whole line
    rest = b""
    async for part in response.content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > LINE_BYTES:
            raise ApiError(0, f"a line of the watch is larger than {LINE_BYTES} bytes")
    if rest.strip():
        raise ApiError(0, "the watch broke off in the middle of a line")


def _object(content: bytes) -> Json:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ApiError(0, f"the answer is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ApiError(0, "the answer is not a JSON object")
    return found


def _refusal(response: aiohttp.ClientResponse, content: bytes) -> ApiError:
    try:
        message = _object(content).get("message")
    except ApiError:
        message = None
    text = (
        message
        if isinstance(message, str)
        else content[:REASON_CHARACTERS].decode(errors="replace") or response.reason or "no reason given"
    )
    return ApiError(response.status, clean(text), _retry_after(response.headers.get("Retry-After")))


def _retry_after(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:  # none, or a date, which Kubernetes never sends
        return None
    return min(seconds, RETRY_AFTER_SECONDS) if seconds >= 0 else None


def _broken(error: BaseException, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {seconds:g} s"
    return clean(f"the connection failed ({str(error) or type(error).__name__})")


def clean(text: str) -> str:
    """One line, without control characters, at most `REASON_CHARACTERS` long: it goes to logs and to users."""
    return "".join(character if character.isprintable() else " " for character in text[:REASON_CHARACTERS]).strip()
