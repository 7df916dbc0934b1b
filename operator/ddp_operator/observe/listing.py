"""Complete lists, page by page."""

from __future__ import annotations

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
