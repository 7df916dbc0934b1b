"""Complete lists, page by page, and how long to wait after a failure."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from ddp_operator.observe.api import Api, ApiError, Query
from ddp_operator.observe.fields import at, text

GONE: Final = 410
"""The version, or the continue token, is too old: list again from the start."""
PAGE_OBJECTS: Final = 100
"""Pods are 5-15 kB each and several times that when parsed: a page is then about 4 MB for a moment, and 4,000 pods are 40 calls."""
MAX_PAGES: Final = 4000
"""A million objects: a server that goes on for longer turns in a circle."""
PAGE_TIMEOUT_SECONDS: Final = 30.0

FIRST_DELAY_SECONDS: Final = 0.5
LONGEST_DELAY_SECONDS: Final = 15.0
LONGEST_RETRY_AFTER_SECONDS: Final = 30.0
"""A server may ask for more patience than our own; not for so much that we would count as dead."""


class Backoff:
    """Delays that double, with jitter, up to a bound and for ever: an operator that gives up is blind."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._failures = 0

    def succeeded(self) -> None:
        """The next failure is a first one."""
        self._failures = 0

    def after(self, error: ApiError) -> float:
        """Seconds to wait now. What the server asks for (Retry-After) is honoured, within its own bound."""
        bound = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        delay = bound * self._rng.uniform(0.5, 1.0)
        return max(delay, min(error.retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS))


async def list_pages(api: Api, path: str, query: Query, on_item: Callable[[Any], None], on_page: Callable[[], None]) -> str:
    """Hand each object of a complete list to `on_item`, and return the list's resourceVersion.

    One page is in memory at a time. `on_page` is called after each. Nothing is complete until this returns: if it raises, objects that were
    not seen may exist.

    Raises:
        ApiError: a page failed; 410 (GONE) if the list took so long that it has to be started again.
    """
    token = ""
    for _ in range(MAX_PAGES):
        page = await api.request(
            "GET",
            path,
            query={**query, "limit": PAGE_OBJECTS, **({"continue": token} if token else {})},
            timeout_seconds=PAGE_TIMEOUT_SECONDS,
        )
        items = page.get("items")
        if not isinstance(items, list):  # absent or null in an empty list of some servers; anything else is no list at all
            if items is not None or at(page, "metadata") is None:
                raise ApiError(0, f"the answer for {path} is no list; is this a Kubernetes API server?")
            items = []
        for item in items:
            on_item(item)
        version, token = text(at(page, "metadata", "resourceVersion"), 64), at(page, "metadata", "continue")
        del page, items  # before the next one is read: two pages at once double the peak
        on_page()
        if not isinstance(token, str) or not token:
            return version
    raise ApiError(0, f"the list of {path} did not end after {MAX_PAGES} pages")
