"""All known objects of one kind, each in its newest version.

What may come late, doubled or from a stale cache cannot do harm: an older version never replaces a newer one, a deleted object never comes
back (a uid is never used again), and a list cannot drop what is newer than the list itself. What could blind us for ever is believed in the
end: a store that was set back, whose versions are all old.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, ItemsView, KeysView
from dataclasses import replace
from typing import Final, Generic, TypeVar

from ddp_operator.observe.slim import Seen

Key = tuple[str, str]
"""Namespace and name."""
Facts = TypeVar("Facts")

BURIED: Final = 1024
"""How many deleted objects are remembered: more than are deleted while one list is made."""
LISTS_TO_BELIEVE: Final = 3
"""So many lists in a row that are older than one before: not a stale cache, the store itself was set back (an etcd restore)."""

log = logging.getLogger(__name__)


class Shelf(Generic[Facts]):
    """The objects. `essence` is what of the facts has to change to be news; `kind` is for the log."""

    def __init__(self, kind: str, essence: Callable[[Facts], object] = lambda facts: facts) -> None:
        self._kind = kind
        self._essence = essence
        self._known: dict[Key, Seen[Facts]] = {}
        self._buried: dict[str, None] = {}
        self._listed: set[str] = set()
        self._newest_list: dict[frozenset[str], tuple[int, int]] = {}
        """For a set of namespaces: the highest version of a list, and how many lower ones came since."""

    def get(self, key: Key) -> Seen[Facts] | None:
        """The newest version of an object."""
        return self._known.get(key)

    def keys(self) -> KeysView[Key]:
        """The names of all objects."""
        return self._known.keys()

    def items(self) -> ItemsView[Key, Seen[Facts]]:
        """All objects."""
        return self._known.items()

    def put(self, seen: Seen[Facts]) -> bool:
        """Keep it, unless it is older than what is known, or deleted; whether that was news."""
        key = (seen.namespace, seen.name)
        before = self._known.get(key)
        if seen.uid in self._buried or (before is not None and 0 < seen.version < before.version):
            return False
        self._known[key] = seen
        return before is None or before.uid != seen.uid or self._essence(before.facts) != self._essence(seen.facts)

    def drop(self, key: Key, uid: str = "") -> Seen[Facts] | None:
        """It was deleted: what it was, None if it is not known. With `uid`, another object of the same name stays."""
        before = self._known.get(key)
        gone = uid or (before.uid if before else "")
        if gone:
            self._buried[gone] = None
            if len(self._buried) > BURIED:
                del self._buried[next(iter(self._buried))]
        return self._known.pop(key) if before is not None and before.uid == gone else None

    def missing(self, namespaces: frozenset[str], names: Collection[Key], version: int) -> list[Seen[Facts]]:
        """Take out what a complete list of these namespaces (none: of all) should have and has not."""
        gone = [
            seen
            for key, seen in self._known.items()
            if key not in names and (not namespaces or key[0] in namespaces) and not 0 < version < seen.version
        ]
        for seen in gone:  # not buried: only a DELETED is for good, this list may have been a stale one
            del self._known[seen.namespace, seen.name]
        self._note_age(namespaces, version)
        return gone

    def note_listed(self, namespaces: frozenset[str]) -> frozenset[str]:
        """Which of the namespaces ("": all) were now listed for the first time."""
        news = (namespaces or frozenset({""})) - self._listed
        self._listed |= news
        return news

    def is_listed(self, namespace: str) -> bool:
        """Whether absence of an object there means anything."""
        return "" in self._listed or namespace in self._listed

    def _note_age(self, namespaces: frozenset[str], version: int) -> None:
        newest, older_lists = self._newest_list.get(namespaces, (0, 0))
        older_lists = older_lists + 1 if 0 < version < newest else 0
        self._newest_list[namespaces] = (max(newest, version), older_lists)
        if older_lists < LISTS_TO_BELIEVE:
            return
        log.warning("Versions of %s went back from %d to %d: the store was set back, and is believed again", self._kind, newest, version)
        self._newest_list[namespaces] = (version, 0)
        for key, seen in self._known.items():
            if not namespaces or key[0] in namespaces:
                self._known[key] = replace(seen, version=0)
