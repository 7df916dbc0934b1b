"""What `observe` needs of the Kubernetes API: two calls and one error. `act.api_client` implements it over a real connection.

Bodies are plain JSON. A path is the part after the host ("/api/v1/pods"), already escaped; `query` is not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

Json = dict[str, Any]
Query = Mapping[str, str | int | bool]


class ApiError(Exception):
    """A call that failed. `status` is the HTTP status; 0: no (whole) answer came, because of the connection or a timeout."""

    def __init__(self, status: int, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{status or 'no answer'}: {reason}")
        self.status = status
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        """The server's Retry-After header, where it sent one that can be understood."""


class Api(Protocol):
    """A connection to the API server; every call has a bound."""

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
        """One call and its whole answer; an empty answer is {}.

        Raises:
            ApiError: for every status >= 400, every broken or late answer, and an answer that is not a JSON object.
        """
        ...

    def stream(self, path: str, *, query: Query | None = None, read_timeout_seconds: float) -> AsyncIterator[Json]:
        """A watch: one object per line, until the server ends it. Close it (`aclosing`) to give the connection back.

        Raises:
            ApiError: for a status >= 400 at the start, a broken connection, a line that is not a JSON object, and when nothing came for
                `read_timeout_seconds`. An event of type ERROR is handed on like any other.
        """
        ...
