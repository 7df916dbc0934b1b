"""Node 0's office: decide on each generation's fault, once and for all agents, and write down what it was and what follows.

The first root cause that any node posts stands. An echo (a failed collective, a rank that waits for others) is only taken for the cause
when nobody has named a better one for a while. Ranks that lost a node cannot say which one it was: that comes to light when it has been
replaced, or has stayed away, and is written down then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import asdict, replace

from ddp_trainer.config import FaultToleranceSection
from ddp_trainer.errors import BY_CAUSE, DIVERGED, HANG, PREEMPTED, Exit
from ddp_trainer.resilience.chronicle import Chronicle
from ddp_trainer.resilience.fault import FAILED_COLLECTIVE, REJOIN, Ending, Fault
from ddp_trainer.resilience.rendezvous import REPLACED, GenerationBarrier, StoreLostError
from ddp_trainer.resilience.verdict import judge
from ddp_trainer.telemetry.events import EventLog

_log = logging.getLogger(__name__)

ECHO_SECONDS = 1.0
"""How long node 0 waits for a root cause after the first echo: ten monitor intervals of the agent that must report it."""
HANG_ECHO_SECONDS = 5.0
"""... after a hang that only waits for others: nodes have medians of their own, so the one with the culprit may notice seconds later."""


class Judge:
    """One per agent; only node 0's decides and writes, the others' `close` alone has an effect."""

    def __init__(self, barrier: GenerationBarrier, chronicle: Chronicle, events: EventLog | None, policy: FaultToleranceSection) -> None:
        self._barrier = barrier
        self._chronicle = chronicle
        self._events = events
        self._policy = policy
        self._leads = barrier.node == 0
        self._echo_since: float | None = None
        self._is_unexplained = False
        """Whether the fault of the generation that ended last is only what others suffered from it."""
        self._members = list(barrier.members)

    def begin_attempt(self, attempt: int, world_size: int) -> None:
        """A generation has formed."""
        self._echo_since = None
        if self._leads:
            self._name_lost()
        self._chronicle.world_size = world_size
        self._chronicle.begin_attempt(attempt)
        if self._events:
            self._events.append("form", attempt=attempt, generation=self._barrier.generation, world_size=world_size)

    def _name_lost(self) -> None:
        """Who was lost, where the fault could not say it."""
        present, before = self._barrier.members, self._members
        # a node that stood outside before was lost some time ago, and is no news
        lost = dict.fromkeys((node for node in self._barrier.take_replaced() if node in before), REPLACED)
        lost |= dict.fromkeys((node for node in before if node not in present), "the agent was lost and has not come back")
        for node, message in lost.items() if self._is_unexplained else ():
            _log.warning("node %d: %s", node, message)
            if self._events:
                self._events.append("lost", node=node, message=message)
        self._members, self._is_unexplained = list(present), False

    def look(self) -> None:
        """Decide on this generation's fault, if there is one and the decision is not made."""
        if not self._leads or self._barrier.is_superseded():
            return
        fault = self._agreed_fault()
        if fault is None:
            return
        verdict = judge(fault, self._chronicle.durable_step, self._chronicle.record, self._policy)
        self._chronicle.record = verdict.record
        if verdict.leave is None:
            if fault.cause == DIVERGED.cause and fault.window:
                self._chronicle.skipped.append(fault.window)
            self._barrier.ask_for_next()
            return
        _log.error("%s", verdict.reason)
        self.record(fault)
        self._chronicle.save()
        self.close(verdict.leave, fault, verdict.reason)

    def _agreed_fault(self) -> Fault | None:
        text = self._barrier.fault()
        if text is not None:
            return Fault.from_json(text)
        word = self._barrier.echo()
        self._echo_since = self._echo_since or (time.monotonic() if word else None)
        if word is None or self._echo_since is None:
            return None
        echo = Fault.from_json(word)
        if time.monotonic() - self._echo_since <= (HANG_ECHO_SECONDS if echo.cause == HANG.cause else ECHO_SECONDS):
            return None
        fault = echo if echo.cause == HANG.cause else replace(echo, cause=FAILED_COLLECTIVE, message=f"lost its peers: {echo.message}")
        self._barrier.post_fault(fault.to_json())
        agreed = Fault.from_json(self._barrier.fault() or fault.to_json())  # a root cause may have been posted since the look
        self._is_unexplained = agreed == fault
        return agreed

    def account(self) -> None:
        """Write down why a generation ended, before the next one forms."""
        if not self._leads or self._barrier.ending() is not None:
            return
        text = self._barrier.fault()
        fault = Fault.from_json(text) if text else self.fault_here("peer_loss", 0, "a node came back")
        if fault.cause != REJOIN:
            self.record(fault if fault.step else replace(fault, step=self._chronicle.reached_step))
        self._chronicle.restarted(fault.cause, fault.still_seconds)
        self._chronicle.save()
        if self._events:
            self._events.append("restart", cause=fault.cause, node=fault.node, attempt=self._chronicle.attempt + 1)
        _log.warning("re-forming after: %s", fault.sentence)

    def preempted(self, fault: Fault) -> None:
        """This node was asked to stop: said to the others, who would else find a lost peer, or have them leave as well."""
        with contextlib.suppress(StoreLostError):
            self._barrier.post_fault(fault.to_json())
        if self._leads:
            self.record(fault)
            if self._policy.on_preemption == "leave":
                self.close(PREEMPTED, fault, fault.sentence)
                self._barrier.farewell()

    def after_leaving(self, since: float) -> None:
        """All ranks have left after a step, as asked: a node that came back is let in, or the one that asked has not been heard of."""
        if not self._leads or self._barrier.is_superseded() or self._barrier.fault() is not None:
            return
        if self._barrier.waiting():
            self._barrier.post_fault(self.fault_here(REJOIN, 0, "a node came back and is let in").to_json())
        elif time.monotonic() - since > self._policy.preemption_grace_seconds:
            words = "ranks were asked to leave by a node that has not been heard of since"
            self._barrier.post_fault(self.fault_here(PREEMPTED.cause, PREEMPTED.code, words).to_json())

    def close(self, leave: Exit, fault: Fault | None, reason: str) -> None:
        """End the run for all agents, with the same words."""
        with contextlib.suppress(StoreLostError):
            self._barrier.close(last_word(leave, fault, reason))

    def record(self, fault: Fault) -> None:
        """Into the diary; of a hang also what the ranks did, those of the culprit's node and of this one."""
        if self._events is None:
            return
        for node in dict.fromkeys((fault.node, self._barrier.node)) if fault.cause == HANG.cause else ():
            if (stacks := self._barrier.stacks_of(node)) is not None:
                self._events.append("stacks", stacks=json.loads(stacks))
        self._events.append("fault", **asdict(fault))

    def fault_here(self, cause: str, code: int, message: str) -> Fault:
        """A fault of this node as a whole, now."""
        return Fault(cause, self._barrier.node, None, code, self._chronicle.reached_step, message)


def last_word(leave: Exit, fault: Fault | None, reason: str) -> str:
    """What `GenerationBarrier.close` is given, and `ending_of` reads."""
    return json.dumps({"cause": leave.cause, "fault": asdict(fault) if fault else None, "reason": reason})


def ending_of(text: str) -> Ending:
    """How all agents end, from `last_word`."""
    raw = json.loads(text)
    fault = Fault.from_json(json.dumps(raw["fault"])) if raw.get("fault") else None
    if fault:
        fault = replace(fault, message=raw["reason"].removeprefix(f"{fault.who}: "))  # the reason says more than the fault does
    return Ending(BY_CAUSE[raw["cause"]], fault)
