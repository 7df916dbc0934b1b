"""The generation barrier: how agents meet, and how whoever learns of trouble makes all of them meet again.

Node 0's agent hosts a store (agent_store.py). In it stands one number, the generation. Joining a generation is to claim one's own place in
it and to wait until its membership is complete (membership.py), so nobody who never came can be counted. Asking for the next generation is
a compare-and-set from the one that failed, so that many agents who notice one incident ask for the same number, and there is no cascade.
Healthy agents see the new number within one look and come back.

What n agents ask of the store is bounded for every n: a look is one small request, and looks are the rarer the more nodes there are.

A plug-in of torch's rendezvous registry: `rendezvous_handler_registry.create_handler(RendezvousParameters(backend="generation", ...))`.
Every wait is bounded by `distributed.peer_timeout_seconds`, counted anew while node 0 says that it still prepares (patience.py).
"""

from __future__ import annotations

import contextlib
import math
import random
import time
import uuid
from collections.abc import Callable

from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # the stubs do not export it
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from ddp_trainer.errors import PeerLostError
from ddp_trainer.resilience.agent_store import OPERATION_SECONDS, AgentStore, StoreLostError
from ddp_trainer.resilience.fault import Fault
from ddp_trainer.resilience.membership import Membership
from ddp_trainer.resilience.patience import Patience

__all__ = ["BACKEND", "GenerationBarrier", "StoreLostError", "SupersededError", "register"]

BACKEND = "generation"
POLL_SECONDS = (0.01, 0.25)
"""First and longest pause between two looks while waiting in a small run: quick when all are near, cheap for the store when one is far."""
LOOK_SECONDS = 0.1
"""Between two looks of a small run's agent: what a fault waits for at most before it is noticed."""
LOOKS_PER_SECOND = 2000
"""Looks of all agents together that the store bears without effort: a tenth of a core, its host's own looks included."""
FAREWELL_SECONDS = 5.0
"""How long node 0 keeps the store open for the others to read the end."""
HURRY_SECONDS = 0.5
"""What a store's answer is waited for by a node that has no time left: a thousand times what it takes."""
REPLACED = "the agent was lost and has been replaced"
"""Said of a node by its successor, in the diary."""
NAMED = 8
"""Absent nodes that an error names: a line, not a list."""


def _nothing() -> None:
    """The wait has nothing else to do."""


class SupersededError(Exception):
    """A newer generation has begun while this one was forming: meet again."""


class GenerationBarrier(RendezvousHandler):
    """One node's view of the barrier. Used by one thread."""

    def __init__(
        self,
        *,
        node: int,
        nodes: int,
        host: str,
        port: int,
        run_id: str,
        timeout_seconds: float,
        min_nodes: int | None = None,
        rejoin_wait_seconds: float = 30.0,
    ) -> None:
        self.node = node
        self.nodes = nodes
        self.host = host
        self.port = port
        self.generation = -1
        """The generation this node has joined last; -1 before the first."""
        self.members = list(range(nodes))
        """Sorted nodes of the generation that formed last; all of them before the first."""
        self.while_waiting: Callable[[], None] = _nothing
        """Called at every look while waiting; may raise to end the wait."""
        self._run_id = run_id
        self._timeout_seconds = timeout_seconds
        self._hurry_seconds = math.inf
        self._token = uuid.uuid4().hex
        self._store = AgentStore(host, port, is_host=node == 0)
        self._membership = Membership(self._store, node, nodes, min_nodes, rejoin_wait_seconds)

    # --- torch's interface -------------------------------------------------------------------------------------------------------

    def get_backend(self) -> str:
        """The name in torch's registry."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Ranks meet in the agents' store, under a prefix of the generation."""
        return True

    def next_rendezvous(self, bound_seconds: float = math.inf) -> RendezvousInfo:
        """Join the newest generation and wait until it is complete; the rank is this node's place among the members.

        `bound_seconds`: where that shall take less than the peer timeout.

        Raises:
            PeerLostError: somebody did not come within the peer timeout, nor gave a sign of life as node 0; the message names them.
            RendezvousClosedError: the run has ended; `ending` says how.
        """
        patience = Patience(min(self._timeout_seconds, bound_seconds), self._beats)
        while True:
            try:
                if self._join(patience):
                    store = PrefixStore(self.prefix, self._store.torchs)
                    place = self.members.index(self.node)
                    return RendezvousInfo(store, place, len(self.members), RendezvousStoreInfo(self.host, self.port))
            except StoreLostError:
                self._store.disconnect()
                if time.monotonic() >= patience.deadline:
                    raise

    def is_closed(self) -> bool:
        """Whether the run has ended for all."""
        return self.ending() is not None

    def set_closed(self) -> None:
        """Torch's form of `close`, without a reason."""
        self.close("{}")

    def num_nodes_waiting(self) -> int:
        """1 when this node's generation is over, which makes a torch agent re-form."""
        return int(self.is_superseded())

    def get_run_id(self) -> str:
        """The run's name."""
        return self._run_id

    def shutdown(self) -> bool:
        """Nothing to do: the store goes with its host's process."""
        return True

    # --- what the agent uses beyond it -------------------------------------------------------------------------------------------

    @property
    def look_seconds(self) -> float:
        """How often an agent may look without all of them keeping the store busy."""
        return max(LOOK_SECONDS, self.nodes / LOOKS_PER_SECOND)

    def beat(self) -> None:
        """Node 0 has not come, and gets on with what keeps it: a sign of life for those that wait. Raises nothing, may be any thread's."""
        with contextlib.suppress(StoreLostError):
            self._store.count("beats", 1)

    def waiting(self) -> int:
        """Nodes that stand outside this generation and want to be let in. One small request, and none where all are members."""
        return self._membership.waiting(self.generation) if len(self.members) < self.nodes else 0

    @property
    def prefix(self) -> str:
        """Keys of this generation's ranks."""
        return f"ranks/{self.generation}/"

    def is_superseded(self) -> bool:
        """Whether somebody has asked for a newer generation. One small request."""
        return self._newest() > self.generation

    def ask_for_next(self) -> None:
        """Make everybody re-form, once per incident however many ask."""
        self._ask_beyond(self.generation)

    def post_fault(self, fault_json: str) -> None:
        """Propose the root cause of this generation's end; the first one stands."""
        self._store.first(f"fault/{self.generation}", fault_json)

    def fault(self) -> str | None:
        """The root cause agreed for this generation."""
        return self._store.peek(f"fault/{self.generation}")

    def take_replaced(self) -> list[int]:
        """Nodes that died and came back too late to say so as a generation's fault, in the order in which they did; each is given once."""
        return self._membership.take_replaced()

    def post_stacks(self, stacks_json: str) -> None:
        """What this node's ranks were doing when they stood still, for the diary, which node 0 writes."""
        self._store.first(f"stacks/{self.generation}/{self.node}", stacks_json)

    def stacks_of(self, node: int) -> str | None:
        """What a node said with `post_stacks` in this generation."""
        return self._store.peek(f"stacks/{self.generation}/{node}")

    def post_echo(self, fault_json: str) -> None:
        """Say that ranks here failed because of somebody else."""
        self._store.first(f"echo/{self.generation}", fault_json)

    def echo(self) -> str | None:
        """The first such word in this generation."""
        return self._store.peek(f"echo/{self.generation}")

    def post_finished(self) -> None:
        """All ranks of this node have finished this generation's work. Call once per generation."""
        self._store.count(f"finished/{self.generation}", 1)

    def all_finished(self) -> bool:
        """Whether every member has."""
        return self._store.count(f"finished/{self.generation}") >= len(self.members)

    def share(self, key: str, value: str) -> None:
        """Node 0: tell the other nodes of this generation something."""
        self._store.do(lambda store: store.set(f"{key}/{self.generation}", value))

    def shared(self, key: str) -> str:
        """What node 0 told this generation; waits at most `OPERATION_SECONDS` for it.

        Raises:
            SupersededError: a newer generation has begun, so node 0 may never say it.
            StoreLostError: node 0 did not say it in time.
        """
        deadline = time.monotonic() + OPERATION_SECONDS
        pauses = self._pauses()
        while (value := self._store.peek(f"{key}/{self.generation}")) is None:
            if self.is_superseded():
                raise SupersededError
            if time.monotonic() >= deadline:
                raise StoreLostError(f"node 0 did not tell {key} of generation {self.generation} within {OPERATION_SECONDS:.0f} s")
            self._rest(pauses)
        return value

    def close(self, ending_json: str) -> None:
        """End the run for all agents, with these words; the first ones stand."""
        self._store.first("ending", ending_json)
        self._ask_beyond(self._newest())  # not only beyond one's own: others may already wait in a later one

    def ending(self) -> str | None:
        """How the run ended, if it has."""
        return self._store.peek("ending")

    def hurry(self, bound_seconds: float) -> None:
        """This node has to leave soon: from here on no operation, and no farewell, may take longer than this."""
        self._store.patience_seconds = max(HURRY_SECONDS, bound_seconds)
        self._hurry_seconds = bound_seconds

    def farewell(self) -> None:
        """The common end was read here; as node 0, keep the store open until all have read it, at most `FAREWELL_SECONDS`."""
        with contextlib.suppress(StoreLostError):
            self._store.do(lambda store: store.set(f"left/{self.node}", "1"))
            if self.node != 0:
                return
            listening = [*self.members, *self._membership.outsiders(self.generation, self.members)]
            everybody = [f"left/{node}" for node in listening]
            deadline = time.monotonic() + min(FAREWELL_SECONDS, self._hurry_seconds)
            while time.monotonic() < deadline and not self._store.has(everybody):
                time.sleep(POLL_SECONDS[0])

    # --- inside ------------------------------------------------------------------------------------------------------------------

    def _join(self, patience: Patience) -> bool:
        """One attempt: True when the generation is complete with this node in it, False when a newer one has begun."""
        self._connect(patience.deadline)
        if (ending := self.ending()) is not None:
            raise RendezvousClosedError(ending)
        newest = self._newest()
        members = self._membership.closed(newest)
        if members is not None and self.node not in members:
            return self._outside(newest, patience.deadline)
        if newest == self.generation or not self._membership.enter(newest, self._token):
            # this place was taken by oneself before a fault, or by a predecessor that has died: it cannot be taken twice
            if newest != self.generation:
                is_successor = self._membership.introduce()
                words = REPLACED if is_successor else "the connection to node 0 was lost and has been made again"
                lost = Fault("peer_loss", self.node, None, 0, 0, words).to_json()
                if self._store.first(f"fault/{newest}", lost) != lost and is_successor:
                    self._membership.tell_of_replacement()
            self._ask_beyond(newest)
            return False
        self.generation = newest
        since = time.monotonic()
        pauses = self._pauses()
        while self._newest() == newest:
            members = self._membership.members(newest, since)
            if members is not None:
                if self.node not in members:  # came while node 0 was closing the membership
                    return self._outside(newest, patience.deadline)
                self.members = members
                return True
            if patience.is_over():
                since_when = " of node 0's last sign of life" if patience.is_prolonged else ""
                raise PeerLostError(
                    f"{self._absent(newest)} did not come to generation {newest} within {self._timeout_seconds:.0f} s{since_when}; "
                    f"see why they do not start, or raise distributed.peer_timeout_seconds"
                )
            self._rest(pauses)
        return False

    def _outside(self, generation: int, deadline: float) -> bool:
        """The generation runs without this node: ask to be let in, and wait for the next one, which gives False."""
        self.generation = -1  # of none: what is posted from here on is nobody's fault
        self._membership.stand_outside(generation)
        try:
            self._await_next(generation, deadline)
        except StoreLostError:
            raise
        except BaseException:  # it leaves, so nobody has to be disturbed for it any more
            with contextlib.suppress(StoreLostError):
                self._membership.go_away(generation)
            raise
        return False

    def _await_next(self, generation: int, deadline: float) -> None:
        pauses = self._pauses()
        while self._newest() == generation:
            if time.monotonic() >= deadline:
                raise PeerLostError(
                    f"generation {generation} runs without node {self.node} and did not let it in within {self._timeout_seconds:.0f} s; "
                    f"see whether its steps are that long, or raise distributed.peer_timeout_seconds"
                )
            self._rest(pauses)

    def _connect(self, deadline: float) -> None:
        if self._store.connect(deadline, self._timeout_seconds, self.while_waiting):
            self.generation = -1  # a new store counts anew, and in an old one the place is taken
            self._token = uuid.uuid4().hex
            self._membership.forget()

    def _pauses(self) -> list[float]:
        """The next pause of a wait and its longest, in seconds: a wait is two requests per look, and all wait at once."""
        return [POLL_SECONDS[0], max(POLL_SECONDS[1], 2 * self.look_seconds if self.node else 0)]

    def _rest(self, pauses: list[float]) -> None:
        """Between two looks; each pause longer, and of a random part, so that a thousand nodes do not look in step."""
        self.while_waiting()
        time.sleep(pauses[0] * random.uniform(0.5, 1.0))  # noqa: S311  # no secret
        pauses[0] = min(pauses[0] * 1.5, pauses[1])

    def _absent(self, generation: int) -> str:
        absent = self._membership.absent(generation, NAMED + 1)
        listed = ", ".join(map(str, absent[:NAMED])) + (", ..." if len(absent) > NAMED else "")
        return f"node{'s' * (len(absent) > 1)} {listed}"

    def _beats(self) -> int:
        return self._store.count("beats")

    def _newest(self) -> int:
        return self._store.count("generation")

    def _ask_beyond(self, generation: int) -> None:
        self._store.do(lambda store: store.compare_set("generation", str(generation), str(generation + 1)))


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    host, _, port = parameters.endpoint.rpartition(":")
    return GenerationBarrier(
        node=int(parameters.config["node"]),
        nodes=parameters.max_nodes,
        host=host,
        port=int(port),
        run_id=parameters.run_id,
        timeout_seconds=float(parameters.config["timeout_seconds"]),
        min_nodes=parameters.min_nodes,
        rejoin_wait_seconds=float(parameters.config.get("rejoin_wait_seconds", 30.0)),
    )


def register() -> None:
    """Enter the barrier in torch's registry; calling it again changes nothing."""
    rendezvous_handler_registry.register(BACKEND, _create)
