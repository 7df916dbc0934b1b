"""Who belongs to a generation: each node claims its place once, and the membership is complete when all have, or is closed without some.

A run is elastic where `min_nodes` is below `nodes`. Then the members of a generation are one list in the store, written once: by the node
that comes last, when all have come; else by node 0, when those have come who were in the last generation or had asked to be let in, or
when they have been waited for long enough and enough are there. So a node that is gone is waited for once, not at each later fault,
until node 0 itself is replaced and its store with it.
Whoever comes later reads the list, does not find itself, and stands outside until the next generation, disturbing nobody.
"""

from __future__ import annotations

import json
import time
import uuid

from ddp_trainer.resilience.agent_store import AgentStore


class Membership:
    """One node's part in it. Knows the store's keys; the waiting is the barrier's."""

    def __init__(self, store: AgentStore, node: int, nodes: int, min_nodes: int | None, rejoin_wait_seconds: float) -> None:
        self._store = store
        self._node = node
        self._nodes = nodes
        self._min_nodes = min_nodes or nodes
        self._rejoin_wait_seconds = rejoin_wait_seconds
        self._life = uuid.uuid4().hex
        """Of this process, through all its connections: another one in the store is a predecessor's."""
        self._is_introduced = False
        self._replacements_told = 0

    @property
    def is_elastic(self) -> bool:
        """Whether a generation may be complete without some."""
        return self._min_nodes < self._nodes

    def closed(self, generation: int) -> list[int] | None:
        """The members of an elastic generation whose list is written; else None."""
        written = self._store.peek(f"members/{generation}") if self.is_elastic else None
        return None if written is None else json.loads(written)

    def enter(self, generation: int, token: str) -> bool:
        """Claim this node's place; False where somebody has it: this node before a fault, or a predecessor that has died."""
        if self._store.first(f"node/{generation}/{self._node}", token) != token:
            return False
        if self.introduce():
            self.tell_of_replacement()
        if self._store.count(f"joined/{generation}", 1) >= self._nodes and self.is_elastic:
            self._close(generation, list(range(self._nodes)))
        return True

    def tell_of_replacement(self) -> None:
        """For node 0: this node was lost. Before it is counted, so that who sees the generation complete knows."""
        place = self._store.count("replacements", 1)
        self._store.do(lambda store: store.set(f"replaced/{place}", str(self._node)))

    def introduce(self) -> bool:
        """Say who this node is now; whether another process was it before, in this store. Introduced already, it is not told again."""
        if self._is_introduced:
            return False
        known = self._store.first(f"life/{self._node}", self._life)
        if known != self._life:
            self._store.do(lambda store: store.set(f"life/{self._node}", self._life))
        self._is_introduced = True
        return known != self._life

    def forget(self) -> None:
        """The connection is a new one, perhaps to a store that knows nobody."""
        self._is_introduced = False

    def take_replaced(self) -> list[int]:
        """Nodes of which successors have told that they were lost, since this was asked last."""
        told, self._replacements_told = self._replacements_told, self._store.count("replacements")
        said = (self._store.peek(f"replaced/{place + 1}") for place in range(told, self._replacements_told))
        return [int(node) for node in said if node is not None]

    def members(self, generation: int, since: float) -> list[int] | None:
        """Sorted members once they are known, None before; `since` is when the generation began to form here (monotonic seconds)."""
        if not self.is_elastic:
            return list(range(self._nodes)) if self._joined(generation) >= self._nodes else None
        known = self.closed(generation)
        if known is not None or self._node != 0:
            return known
        is_due = time.monotonic() - since >= self._rejoin_wait_seconds
        joined = self._joined(generation)  # before the look at who is there, so that it is not more than they are
        expected = self._expected(generation)
        if joined < self._min_nodes or (joined < len(expected) and not is_due):
            return None  # a look is a few requests, and all places are searched when that may be the last time
        absent = set(self.absent(generation, self._nodes))
        present = [node for node in range(self._nodes) if node not in absent]
        # a place is claimed a moment before its node has said that it is a replacement, and only then is it counted
        have_come = joined == len(present) and absent.isdisjoint(expected)
        return self._close(generation, present) if is_due or have_come else None

    def absent(self, generation: int, most: int) -> list[int]:
        """Nodes that have not claimed their place, in order, the search ending soon after `most`."""
        return self._store.missing([f"node/{generation}/{node}" for node in range(self._nodes)], most)

    def stand_outside(self, generation: int) -> None:
        """Register as one who wants to be let in."""
        self._store.do(lambda store: store.set(f"outside/{generation}/{self._node}", "1"))
        self._store.count(f"waiting/{generation}", 1)

    def go_away(self, generation: int) -> None:
        """Take that back."""
        self._store.do(lambda store: store.delete_key(f"outside/{generation}/{self._node}"))
        self._store.count(f"waiting/{generation}", -1)

    def waiting(self, generation: int) -> int:
        """How many have registered; one request."""
        return self._store.count(f"waiting/{generation}")

    def outsiders(self, generation: int, members: list[int]) -> list[int]:
        """Which nodes have."""
        others = sorted(set(range(self._nodes)) - set(members))
        return [node for node in others if self._store.peek(f"outside/{generation}/{node}")]

    def _expected(self, generation: int) -> list[int]:
        """Who is waited for: the members of the last generation that formed, and those outside it; before the first one, all."""
        for past in reversed(range(generation)):
            members = self.closed(past)
            if members is not None:  # one that a fault ended while it formed has none
                return [*members, *self.outsiders(past, members)]
        return list(range(self._nodes))

    def _joined(self, generation: int) -> int:
        return self._store.count(f"joined/{generation}")

    def _close(self, generation: int, members: list[int]) -> list[int]:
        closed: list[int] = json.loads(self._store.first(f"members/{generation}", json.dumps(members)))
        return closed
