"""`ddp local`: N agents on this machine, each as if it were a machine of its own, and a cluster's manners towards them.

The supervisor forks a nursery (a zygote) before anything else and starts every agent from it, so torch is imported once for all of them.
An agent that dies, or leaves with a code that asks for it (128 and above), is started again; a final code ends all, and so does node 0's
success, after which nobody is started again. Nothing outlives the supervisor: Ctrl-C stops the agents in order, and if it is killed
itself, the kernel kills the tree below it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ddp_trainer.checkpoint.snapshot import SnapshotMemory
from ddp_trainer.config import RunConfig
from ddp_trainer.errors import FINISHED, FIRST_RETRIED_CODE, ConfigError, DataError
from ddp_trainer.launchers.guard import claim
from ddp_trainer.launchers.identity import LAST_PORT
from ddp_trainer.launchers.view import View
from ddp_trainer.resilience.compiler_import import postpone
from ddp_trainer.resilience.entrypoint import PRELOAD, Node
from ddp_trainer.resilience.fault import MESSAGE_BYTES
from ddp_trainer.resilience.zygote import Death, Zygote, ZygoteError

AGENT_TARGET = "ddp_trainer.resilience.entrypoint:run"
LOOK_SECONDS = 0.1
LEAVE_SECONDS = 5.0
"""What an agent may take to leave beyond its grace for saving and for its ranks to die, before it is killed."""
HELD_KEY_SECONDS = 1.0
"""A Ctrl-C so soon after the first is the same one: a key that is held, or a wrapper that passes on what the terminal has sent as well."""
LATE_SECONDS = 5.0
"""What the others may take to leave by themselves: each has read of the end by then, or came too late to hear of it. Once node 0 has
finished they are killed then; after a final code they are asked to stop."""
AGENT_RESTARTS = 50
"""A cluster would go on for ever, with growing pauses; on a laptop somebody is looking."""
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104  # a name for it; nothing is bound here
INTERRUPTED = 130
"""The shell's code for a program ended by Ctrl-C."""


@dataclass
class _Agent:
    node: Node
    environment: dict[str, str]
    telemetry_port: int
    pid: int = 0
    restarts: int = 0


@dataclass
class Local:
    """One run of N agents. `run` returns the exit code of the whole."""

    config: RunConfig
    environment: Mapping[str, str]
    view: View
    _agents: list[_Agent] = field(default_factory=list)
    _by_pid: dict[int, _Agent] = field(default_factory=dict)
    on_look: Callable[[Local], None] = lambda _: None  # a default that does nothing
    """Called about ten times a second while the run goes on."""
    _signal: int = 0
    _told_at: float = math.inf
    _is_impatient: bool = False
    _settled: int | None = None
    """The code of the whole, once an agent's end has settled it; the others are only waited for from then on."""
    _deadline: float = math.inf
    _tell_at: float = math.inf
    """When those that are left are asked to stop, after another's final code."""
    _notes: list[str] = field(default_factory=list)
    _memories: list[int] = field(default_factory=list)
    """Descriptors of the nodes' snapshot memories."""
    _last_words: list[int] = field(default_factory=list)
    """... and of memory for their last words, where the run directory cannot take them."""

    @property
    def _stop_seconds(self) -> float:
        """How long agents may take to leave after SIGTERM, or after another has left for good."""
        policy = self.config.fault_tolerance
        return policy.preemption_grace_seconds + policy.stop_grace_seconds + LEAVE_SECONDS

    @property
    def _seen_at(self) -> str:
        """The address at which this machine reaches what its agents say."""
        return "127.0.0.1" if (host := self.config.telemetry.host) == EVERY_ADDRESS else host

    def kill_agent(self, node: int) -> None:
        """SIGKILL one agent, as a lost machine would end it; for demonstrations."""
        pid = self._agents[node].pid
        if pid in self._by_pid:
            os.kill(pid, signal.SIGKILL)

    def run(self) -> int:
        """Start everything and stay until it ends.

        Raises:
            ConfigError, DataError: nothing was started.
        """
        logs = self.config.run_dir / "logs"
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"the run directory {self.config.run_dir} cannot be written: {error.strerror}; give another with --run-dir"
            ) from None
        # held here, a node's snapshots survive its agent: this process is the machine that the agent runs on
        self._memories = [SnapshotMemory.create() for _ in range(self.config.distributed.nodes)]
        self._last_words = [os.memfd_create("ddp-last-words") for _ in range(self.config.distributed.nodes)]
        if self.config.precision.compile == "off":
            postpone()
        nursery = Zygote.fork(PRELOAD)  # before the directory is claimed: agents must not keep it from the next run
        try:
            claimed = claim(self.config.run_dir)
        except DataError:
            nursery.close()
            raise
        with claimed:
            return self._supervise(nursery, logs)

    def _supervise(self, nursery: Zygote, logs: Path) -> int:
        code, words = FINISHED.code, {}
        before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._agents = self._plan(logs)
            self._check_ports()
            for signum in before:
                signal.signal(signum, self._on_signal)
            self.view.start(self.config, [f"http://{self._seen_at}:{agent.telemetry_port}" for agent in self._agents])
            for note in self._notes:
                self.view.say(note)
            for agent in self._agents:
                self._start(nursery, agent)
            code = self._watch(nursery)
            words = self._words(code) if code else {}
        except ZygoteError as error:  # all agents have died with it
            sentence = f"{error}; no agent is left, and the same command goes on from the last checkpoint"
            code, words = error.exit.code, {"cause": error.exit.cause, "message": sentence}
        finally:
            nursery.close()
        self.view.finish(code, words)
        for signum, handler in before.items():  # whoever called this may still have something to do that can be interrupted
            signal.signal(signum, handler)
        return code

    def _plan(self, logs: Path) -> list[_Agent]:
        nodes, per_node = self.config.distributed.nodes, self.config.distributed.procs_per_node
        store_port = free_port()
        base = self.config.telemetry.port
        gpus = self._gpus(nodes * per_node)
        agents = []
        for i in range(nodes):
            environment = dict(self.environment)
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(filter(None, gpus[i * per_node : (i + 1) * per_node]))
            node = Node(
                node=i,
                nodes=nodes,
                host="127.0.0.1",
                port=store_port,
                ranks_on_machine=nodes * per_node,
                rank_logs=str(logs),
                ending=str(logs / f"agent-{i}.end.json"),
                words=self._last_words[i],
                memory=self._memories[i],
            )
            agents.append(_Agent(node, environment, base + i if base else free_port()))
        return agents

    def _gpus(self, ranks: int) -> Sequence[str]:
        """A GPU for each rank, by number; none where ranks use the CPU."""
        if self.config.distributed.device == "cpu":
            return []
        gpus = visible_gpus(self.environment)
        if len(gpus) >= ranks:
            return gpus
        fitting = len(gpus) // self.config.distributed.procs_per_node
        if self.config.distributed.device == "auto":  # all on the CPU rather than some here and some there
            if gpus:
                remedy = f"; --set distributed.nodes={fitting} would use them" if fitting else ""
                self._notes.append(f"{ranks} ranks need {ranks} GPUs and {len(gpus)} are present, so all train on the CPU{remedy}")
            return [""] * ranks
        remedy = f"use --workers {fitting}, or " if fitting else "use "
        raise ConfigError(f"{ranks} ranks need {ranks} GPUs but {len(gpus)} are present; {remedy}--set distributed.device=cpu")

    def _check_ports(self) -> None:
        """Say it at once, before torch is imported, if somebody has a port."""
        for agent in self._agents:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.config.telemetry.host, agent.telemetry_port))
                except (OSError, OverflowError) as error:
                    reason = getattr(error, "strerror", None) or f"there is no port above {LAST_PORT}"
                    raise ConfigError(
                        f"port {agent.telemetry_port} on {self.config.telemetry.host} cannot be used for agent {agent.node.node}: "
                        f"{reason}; choose another with --set telemetry.port=..., or 0 for any free ones"
                    ) from None

    def _start(self, nursery: Zygote, agent: _Agent) -> None:
        config = self.config.with_values({"telemetry.port": agent.telemetry_port})
        arguments: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "node": asdict(agent.node),
            "environment": agent.environment,
        }
        with contextlib.suppress(OSError):  # the volume may not take it at this moment; see `_words_of`
            Path(str(agent.node.ending)).unlink(missing_ok=True)
        os.ftruncate(self._last_words[agent.node.node], 0)
        log = Path(str(agent.node.rank_logs)) / f"agent-{agent.node.node}.log"
        agent.pid = nursery.spawn(AGENT_TARGET, arguments, agent.environment, log, f"ddp-agent-{agent.node.node}")
        self._by_pid[agent.pid] = agent

    def _watch(self, nursery: Zygote) -> int:
        """Until all have ended: restart those that ask for it, show progress, stop all when one has ended for good."""
        while self._by_pid and not self._is_impatient and time.monotonic() < self._deadline:
            for death in nursery.deaths(timeout_seconds=LOOK_SECONDS):
                self._after(death, nursery)
            self.view.refresh()
            self.on_look(self)
            if self._signal and self._deadline == math.inf:
                self._stop_all(nursery)
            if time.monotonic() >= self._tell_at:
                self._tell_at = math.inf
                self._tell_all(nursery)
        for agent in self._by_pid.values():
            if self._settled == FINISHED.code:  # started again too late for the end, or let out of an elastic run
                self.view.say(f"agent {agent.node.node} is stopped: the run has finished without it")
            else:
                why = "is" if self._is_impatient else f"did not leave within {self._stop_seconds:.0f} s and is"
                self.view.say(f"agent {agent.node.node} {why} killed", "bad")
        if self._settled is not None:
            return self._settled
        return INTERRUPTED if self._signal == signal.SIGINT else 128 + self._signal

    def _after(self, death: Death, nursery: Zygote) -> None:
        """One agent has ended: done, to be started again, or the end of all."""
        agent = self._by_pid.pop(death.pid)
        code = death.code if death.code >= 0 else 128 - death.code
        if code == FINISHED.code and agent.node.node == 0:  # it has the run directory, so its success is the run's, signalled or not
            self._settle(code, LATE_SECONDS)
            return
        if self._signal or self._settled is not None:
            return
        if code >= FIRST_RETRIED_CODE and agent.restarts < AGENT_RESTARTS:
            agent.restarts += 1
            self.view.say(f"agent {agent.node.node} {_ended(death.code)}; starting it again", "bad")
            self._start(nursery, agent)
        elif code != FINISHED.code:
            self._settle(code, self._stop_seconds)
            # they leave by themselves, but for those that wait for one that never was there
            self._tell_at = time.monotonic() + LATE_SECONDS

    def _settle(self, code: int, bound_seconds: float) -> None:
        """This is the code of the whole; the other agents may take so long to leave."""
        if self._settled is None:
            self._settled = code
            self._deadline = min(self._deadline, time.monotonic() + bound_seconds)

    def _stop_all(self, nursery: Zygote) -> None:
        self._tell_all(nursery)
        self._deadline = time.monotonic() + self._stop_seconds

    def _tell_all(self, nursery: Zygote) -> None:
        again = "; Ctrl-C again kills them" if self._signal == signal.SIGINT else ""
        self.view.say(f"stopping the agents{again} ...")
        for pid in self._by_pid:
            nursery.kill(pid, signal.SIGTERM)

    def _words(self, code: int) -> dict[str, Any]:
        """The last words of the first agent that left with the code of the whole, else of the first that has any beyond success."""
        all_words = [words for agent in self._agents if (words := self._words_of(agent)).get("exit")]
        return next((words for words in all_words if words["exit"] == code), all_words[0] if all_words else {})

    def _words_of(self, agent: _Agent) -> dict[str, Any]:
        """From memory, where its file could not be written: then what the file says is of an earlier life. Else from there."""
        with contextlib.suppress(ValueError):
            kept: dict[str, Any] = json.loads(os.pread(self._last_words[agent.node.node], MESSAGE_BYTES, 0))
            return kept
        with contextlib.suppress(OSError, ValueError):
            written: dict[str, Any] = json.loads(Path(str(agent.node.ending)).read_text(encoding="utf-8"))
            return written
        return {}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002  # the signal module's signature
        now = time.monotonic()
        self._is_impatient |= self._signal == signum == signal.SIGINT and now - self._told_at > HELD_KEY_SECONDS
        self._told_at = now if not self._signal else self._told_at
        self._signal = signum


def free_port() -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that processes started with `environment` may use, as CUDA names them; set to nothing means none, as it does for CUDA."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i in range(count_gpus())]
    return [name for name in visible.split(",") if name.strip() not in {"", "-1"}]


def count_gpus() -> int:
    """NVIDIA GPUs on this machine, by the driver's library: asking CUDA would make forking impossible."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except Exception:  # whatever the driver's library raises, there is no GPU to be had
        return 0


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with {code}"
