"""One node's agent process, from the first instruction to the exit code: PID 1 in a container, a child of `ddp local` on a laptop.

The order matters. SIGTERM is listened to first: to PID 1 the kernel delivers only what it has a handler for. Then a child answers
`/healthz`, torch is imported (once for all of this node), and the zygote is forked, while there is one thread. The exit code is
contract 3.2's, and the root cause is left as one JSON line where the kubelet looks for it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ddp_trainer.config import RunConfig
from ddp_trainer.errors import FINISHED, PREEMPTED, RANK_CRASHED, DataError, DdpError
from ddp_trainer.resilience.compiler_import import postpone
from ddp_trainer.resilience.fault import one_line
from ddp_trainer.resilience.zygote import Zygote
from ddp_trainer.telemetry.events import EVENTS_FILE, EventLog
from ddp_trainer.telemetry.server import StatusServer

if TYPE_CHECKING:
    from ddp_trainer.resilience.fault import Ending

_log = logging.getLogger(__name__)

PRELOAD = (
    "torch.distributed",
    "torch.nn.parallel",
    "torchvision.models",
    "ddp_trainer.resilience.rank",
    "ddp_trainer.resilience.agent",
    "ddp_trainer.resilience.persister",
)
"""What a rank or an agent would import before its first step."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Kubernetes, Compose and Slurm stop with the first; Slurm can announce the end with the last."""
TERMINATION_LOG = Path("/dev/termination-log")
"""Where the kubelet reads a container's last words: a bind mount, so it is written in place."""


class AgentFailedError(DdpError):
    """The agent itself met what it has no sentence for."""

    exit = RANK_CRASHED


@dataclass(frozen=True)
class Node:
    """Which node this is, and where the nodes meet."""

    node: int
    nodes: int
    host: str
    port: int
    ranks_on_machine: int
    rank_logs: str | None = None
    """Folder for `rank-N.log`; None lets ranks write to this process's output."""
    ending: str | None = None
    """File for the last words; None means the kubelet's, where there is one."""
    words: int | None = None
    """Descriptor of memory that takes the last words where the file cannot, since it lies on the volume that is full."""
    memory: int | None = None
    """Descriptor of the node's snapshot memory, where somebody keeps it who outlives this agent; None: it is this agent's own."""


def run(config: dict[str, Any], node: dict[str, Any], environment: dict[str, str]) -> int:
    """Be the agent: the target of `ddp local`'s forks and the body of `ddp launch`. Returns the exit code."""
    me, resolved = Node(**node), RunConfig.model_validate(config)
    for signum in STOP_SIGNALS:
        signal.signal(signum, lambda signum, _: _leave_at_once(me, signum))
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s agent {me.node} %(message)s", force=True)
    logging.getLogger("torch.distributed").setLevel(logging.WARNING)
    if resolved.precision.compile == "off":
        postpone()
    server = StatusServer(resolved.telemetry.host, resolved.telemetry.port)
    zygote = None
    try:
        with server.answered_by_a_child() if "torch" not in sys.modules else contextlib.nullcontext():
            for name in PRELOAD:
                importlib.import_module(name)
        from ddp_trainer.checkpoint.snapshot import SnapshotMemory

        me = replace(me, memory=SnapshotMemory.create() if me.memory is None else me.memory)  # before the fork, so that all inherit it
        gc.collect()
        gc.freeze()  # a collection in this process or in the zygote would write to the pages that they share
        zygote = Zygote.fork(PRELOAD)
        server.start()
        return _supervise(resolved, me, environment, zygote, server)
    except DdpError as error:
        _log.error("%s", error)  # a sentence for people
        last_words_of_error(error, me)
        return error.exit.code
    except Exception as error:  # the process's edge: what is wrong in here is not wrong with the run
        _log.exception("the agent failed")
        failed = AgentFailedError(f"the agent failed: {type(error).__name__}: {error}; see the traceback in its log")
        last_words_of_error(failed, me)
        return failed.exit.code
    finally:
        server.stop()
        if zygote:
            zygote.close()


def _leave_at_once(me: Node, signum: int) -> NoReturn:
    """Before there is an agent nothing has to be saved or stopped in order. Not an Exception: torch's import would swallow it."""
    message = f"asked to stop by {signal.Signals(signum).name} while this node was starting"
    _log.warning("%s", message)
    _leave_words(me, {"cause": PREEMPTED.cause, "exit": PREEMPTED.code, "node": me.node, "rank": None, "message": message})
    raise SystemExit(PREEMPTED.code)


def _supervise(config: RunConfig, me: Node, environment: Mapping[str, str], zygote: Zygote, server: StatusServer) -> int:
    from ddp_trainer.checkpoint.snapshot import SnapshotMemory
    from ddp_trainer.resilience.agent import GangAgent
    from ddp_trainer.resilience.chronicle import LEDGER_FILE, Chronicle
    from ddp_trainer.resilience.custody import Custody
    from ddp_trainer.resilience.local_ranks import LocalRanks
    from ddp_trainer.resilience.preface import Preface
    from ddp_trainer.resilience.preparation import prepare_or_refuse
    from ddp_trainer.resilience.rendezvous import REPLACED
    from ddp_trainer.telemetry.facts import FactsPage
    from ddp_trainer.telemetry.node import NodeTelemetry

    leads = me.node == 0
    with _run_lock(config, leads=leads) as next_attempt, _scratch(config, me.node) as scratch:
        events = EventLog(config.run_dir / EVENTS_FILE) if leads else None
        ledger = config.run_dir / LEDGER_FILE if leads else None
        chronicle = Chronicle(config.run.name, me.node, config.world_size, ledger, config.run.resume)
        interrupted_by = chronicle.recall()
        barrier = _barrier(config, me)
        if leads:
            preface = Preface(config.run_dir, chronicle.ledger())
            server.progress = preface.document
            prepare_or_refuse(config, chronicle, barrier, preface)
        chronicle.forget_crashes()
        if events:
            _write_config(config)
            if interrupted_by == "peer_loss":
                events.append("fault", cause="peer_loss", node=0, rank=None, exit=0, step=chronicle.reached_step, message=REPLACED)
            if interrupted_by:
                chronicle.restarted(interrupted_by)
            events.append("start", attempt=chronicle.attempt, nodes=me.nodes, procs_per_node=config.distributed.procs_per_node)
        slots = config.distributed.procs_per_node
        page = FactsPage.create(scratch / "facts", slots + 1)  # the ranks, and the background writer
        assert me.memory is not None
        logs = Path(me.rank_logs) if me.rank_logs else None
        custody = Custody(
            memory=SnapshotMemory(me.memory),
            page=page,
            writer_slot=slots,
            zygote=zygote,
            config=config if leads else None,
            environment=environment,
            log=logs / "writer.log" if logs else None,
            alarm=lambda message: events.append("note", message=message) if events else None,
        )
        telemetry = NodeTelemetry(page, slots, server, config.run_dir if leads else None, events)
        agent = GangAgent(
            config=config,
            barrier=barrier,
            zygote=zygote,
            custody=custody,
            ranks=LocalRanks(config, me.node, zygote, page, scratch, logs),
            telemetry=telemetry,
            chronicle=chronicle,
            events=events,
            next_attempt=next_attempt,
            ranks_on_machine=me.ranks_on_machine,
            environment=environment,
        )
        for signum in STOP_SIGNALS:
            signal.signal(signum, lambda signum, _: agent.ask_to_stop(signal.Signals(signum).name))
        ending = agent.supervise()
        _report(ending, me, chronicle, telemetry, events if chronicle.path else None)
        custody.close(lambda: agent.left_seconds)
    return ending.exit.code


def _barrier(config: RunConfig, me: Node) -> Any:
    from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry

    from ddp_trainer.resilience import rendezvous

    rendezvous.register()
    return rendezvous_handler_registry.create_handler(
        RendezvousParameters(
            backend=rendezvous.BACKEND,
            endpoint=f"{me.host}:{me.port}",
            run_id=config.run.name,
            min_nodes=config.distributed.min_nodes or me.nodes,
            max_nodes=me.nodes,
            node=me.node,
            timeout_seconds=config.distributed.peer_timeout_seconds,
            rejoin_wait_seconds=config.distributed.rejoin_wait_seconds,
        )
    )


@contextlib.contextmanager
def _run_lock(config: RunConfig, *, leads: bool) -> Iterator[Any]:
    """Node 0 owns the run directory; the others need none."""
    if not leads:
        yield None
        return
    from ddp_trainer.checkpoint.lock import RunLock

    lock = RunLock.acquire(config.run_dir, config.fault_tolerance.lock_wait_seconds)
    try:
        yield lock.next_attempt
    finally:
        lock.release()


@contextlib.contextmanager
def _scratch(config: RunConfig, node: int) -> Iterator[Path]:
    """Memory-backed files shared with the ranks, under a name that a successor of a killed agent finds and cleans."""
    digest = hashlib.sha256(str(config.run_dir.absolute()).encode()).hexdigest()[:12]
    shm = Path("/dev/shm")  # noqa: S108  # its contents are this run's own, mode 0700
    folder = (shm if shm.is_dir() else Path(tempfile.gettempdir())) / f"ddp-{digest}-node-{node}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise DataError(
            f"{folder}, which this node shares with its ranks, cannot be made: {error.strerror}; make {folder.parent} writable"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_config(config: RunConfig) -> None:
    from ddp_trainer.checkpoint.durable import write_durably

    document = {**config.model_dump(mode="json"), "config_hash": config.digest()}
    try:
        write_durably(config.run_dir / "config.json", json.dumps(document, indent=1).encode())
    except OSError as error:  # a full disk must not end a run that can still train
        _log.warning("%s cannot be written: %s", config.run_dir / "config.json", error.strerror)


def _report(ending: Ending, me: Node, chronicle: Any, telemetry: Any, events: EventLog | None) -> None:
    if ending.exit is not FINISHED:
        if ending.fault:
            _log.error("leaving with %d (%s): %s", ending.exit.code, ending.exit.cause, ending.fault.sentence)
        chronicle.phase, chronicle.note = "failed", ending.exit.cause
        if events:
            message = ending.fault.message if ending.fault else ending.exit.meaning
            events.append("stop", cause=ending.exit.cause, exit=ending.exit.code, step=chronicle.reached_step, message=message)
    chronicle.end(ending.exit)
    import time

    telemetry.tick(chronicle.ledger(), time.time())
    telemetry.close()
    fault = asdict(ending.fault) if ending.fault else {}
    words = {**fault, "cause": ending.exit.cause, "exit": ending.exit.code, "step": chronicle.reached_step}
    _leave_words(me, {**words, "durable_step": chronicle.durable_step})


def last_words_of_error(error: DdpError, me: Node | None = None) -> None:
    """Why a node ended before it had an agent, where the kubelet or the supervisor looks for it."""
    node = me.node if me else None
    _leave_words(me, {"cause": error.exit.cause, "exit": error.exit.code, "node": node, "rank": None, "message": str(error)})


def _leave_words(me: Node | None, words: Mapping[str, Any]) -> None:
    """One JSON line of at most 4 KiB, written in place."""
    text = one_line({"message": "", **words})
    path = Path(me.ending) if me and me.ending else TERMINATION_LOG
    if path == TERMINATION_LOG and not path.exists():
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        if me and me.words is not None:
            os.pwrite(me.words, text.encode(), 0)
        with contextlib.suppress(OSError):  # the log may lie on the same full volume, and the exit code must not be lost to it
            print(f"cannot write {path}: {error.strerror}", file=sys.stderr)  # noqa: T201  # the last thing that can be tried
