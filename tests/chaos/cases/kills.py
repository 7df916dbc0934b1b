"""Any process of a run is killed, alone or with others, once or again and again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from drill import Drill
from outcome import lost_steps, pid_of, recovery_seconds
from runs import Run, command, wait_until_gone
from table import LeftOutError, Row, Sight

from cases.survival import ended, goes_on, kill, kill_whole

IN_A_ROW = 10
SIZES = ((2, 1), (4, 1), (8, 1), (2, 2))
"""Nodes, and ranks of each."""
LONG_STEPS = 200
LIMIT_MEGABYTES = 64
EATEN_AT = 24
LOST_SECONDS = 15.0
"""The default of checkpoint.every_seconds: the promise for a gang that is lost as a whole."""
SLACK_SECONDS = 3.0
"""Of that promise, for a write that was under way, on a machine that is busy."""


def rank(drill: Drill) -> Iterator[Row]:
    """SIGKILL of one rank."""
    yield goes_on(drill, "SIGKILL of rank 2 of 4", kill("ddp-rank-2"), within_seconds=15)


def rank_0(drill: Drill) -> Iterator[Row]:
    """SIGKILL of the rank that decides when the state is kept."""
    yield goes_on(drill, "SIGKILL of rank 0 of 4", kill("ddp-rank-0"))


def one_of_a_pair(drill: Drill) -> Iterator[Row]:
    """The second rank of an agent, which has no place in the barrier of its own."""
    yield goes_on(drill, "SIGKILL of local rank 1 of node 1 (2 x 2)", kill("ddp-rank-3"), workers=2, procs=2)


def two_ranks(drill: Drill) -> Iterator[Row]:
    """Two at once are one incident."""
    yield goes_on(drill, "SIGKILL of ranks 1 and 3 at once", kill("ddp-rank-1", "ddp-rank-3"))


def twice(drill: Drill) -> Iterator[Row]:
    """The same rank again, before it has done a step."""

    def disturb(run: Run) -> None:
        first = pid_of(run, "ddp-rank-2")
        os.kill(first, signal.SIGKILL)
        run.until(lambda: len(run.of_kind("form")) == 2, "second generation")
        os.kill(
            run.until(lambda: next((p for p in run.processes() if command(p) == "ddp-rank-2" and p != first), 0), "rank 2"), signal.SIGKILL
        )

    yield goes_on(drill, "SIGKILL of rank 2, and again while it starts", disturb)


def of_eight(drill: Drill) -> Iterator[Row]:
    """More ranks than cores."""
    yield goes_on(drill, "SIGKILL of rank 5 of 8", kill("ddp-rank-5"), workers=8)


def out_of_memory(drill: Drill) -> Iterator[Row]:
    """The kernel kills a rank that takes more memory than its limit, as in a container."""
    group, once = Path("/sys/fs/cgroup/memory", f"ddp-chaos-{os.getpid()}"), drill.new_folder("once")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_MEGABYTES * 2**20))
    except OSError as error:
        raise LeftOutError(
            f"no memory limit can be set here: {error}; run as root, with cgroup v1; SIGKILL of a rank stands in for it"
        ) from None

    def disturb(run: Run) -> None:
        (group / "cgroup.procs").write_text(str(pid_of(run, "ddp-rank-1")))

    def was_killed(run: Run, sight: Sight) -> None:
        sight.fact("killed by the kernel" if once.exists() else "not killed", once.exists())
        sight.fact(run.of_kind("fault")[0]["message"] if run.of_kind("fault") else "no word", "out of memory" in str(run.of_kind("fault")))

    try:
        plan = {"eat": [EATEN_AT, 4 * LIMIT_MEGABYTES, str(once)]}
        yield goes_on(
            drill, f"a memory limit of {LIMIT_MEGABYTES} MB on rank 1", disturb, plan=plan, at_step=EATEN_AT - 12, check=was_killed
        )
    finally:
        drill.clear()
        group.rmdir()


def agent(drill: Drill) -> Iterator[Row]:
    """An agent dies, and its rank with it."""
    yield goes_on(drill, "SIGKILL of agent 2", kill("ddp-agent-2"), causes=("peer_loss",))


def agent_0(drill: Drill) -> Iterator[Row]:
    """The agent that holds the store in which all meet."""
    yield goes_on(drill, "SIGKILL of agent 0", kill("ddp-agent-0"), causes=("peer_loss",))


def fork_server(drill: Drill) -> Iterator[Row]:
    """The process that ranks are forked from; its agent cannot go on without it."""
    for node, cause in ((1, "peer_loss"), (0, "crash")):  # node 0's agent has the diary, and says itself what it was

        def disturb(run: Run, name: str = f"ddp-agent-{node}") -> None:
            os.kill(next(pid for pid in run.pids("zygote") if command(pid) == name), signal.SIGKILL)

        yield goes_on(drill, f"SIGKILL of node {node}'s fork server", disturb, causes=(cause,))


def writer(drill: Drill) -> Iterator[Row]:
    """The process that makes states durable, in the middle of doing so: training does not notice."""
    once = drill.new_folder("once")
    plan = {"kill_before": "fsync of data", "once": str(once), "skip": 2}

    def killed(run: Run, sight: Sight) -> None:
        sight.fact("the writer was killed" if once.exists() else "the writer was not killed", once.exists())

    yield goes_on(drill, "SIGKILL of the writer in a write", lambda _: None, causes=(), lost_at_most=0, plan=plan, check=killed)


def final_save(drill: Drill) -> Iterator[Row]:
    """Rank 0 dies while it waits for the last state to be on disk; the other ranks have ended."""

    def disturb(run: Run) -> None:
        run.until(lambda: run.progress["phase"] == "saving", "last save")
        kill("ddp-rank-0")(run)

    slow = {"checkpoint.write_megabytes_per_second": 0.02, "checkpoint.every_steps": 40}
    yield goes_on(drill, "SIGKILL of rank 0 in its final save, the others done", disturb, settings=slow)


def ten_in_a_row(drill: Drill) -> Iterator[Row]:
    """One after each return, in gangs of several sizes: nothing is used up as long as there is progress."""
    for nodes, procs in SIZES:
        last_rank, last_agent = f"ddp-rank-{nodes * procs - 1}", f"ddp-agent-{nodes - 1}"
        for victim, name, cause in (
            ("the last rank", last_rank, "crash"),
            ("the last agent", last_agent, "peer_loss"),
            ("agent 0", "ddp-agent-0", "peer_loss"),
        ):
            yield _ten_in_a_row(drill, f"SIGKILL of {victim}, ten times in a row ({nodes} x {procs})", [name], cause, nodes, procs)
    agents = [f"ddp-agent-{node}" for node in range(4)]
    yield _ten_in_a_row(drill, "SIGKILL of the agents in turn, ten times in a row (4 x 1)", agents, "peer_loss", 4, 1)


def _ten_in_a_row(drill: Drill, fault: str, names: Sequence[str], cause: str, nodes: int, procs: int) -> Row:
    reference = drill.undisturbed(nodes * procs, LONG_STEPS)
    run = drill.start(workers=nodes, procs=procs, settings={"optim.max_steps": LONG_STEPS, "fault_tolerance.max_restarts": 100})
    seconds, sight = [], Sight()
    for number in range(IN_A_ROW):
        run.trained_to(2 + LONG_STEPS // (IN_A_ROW + 1) * (number + 1))
        run.until(lambda n=number: len(run.of_kind("first_step")) > n, "first step")
        since = time.time()
        kill(names[number % len(names)])(run)
        run.until(lambda t=since: recovery_seconds(run, t) is not None, "return")
        seconds.append(recovery_seconds(run, since) or 0.0)
    run.wait()
    ended(run, sight, reference, LONG_STEPS)
    causes, forms = [event["cause"] for event in run.of_kind("fault")], len(run.of_kind("form"))
    sight.fact(f"{len(causes)} faults, {forms} generations", causes == [cause] * IN_A_ROW and forms == IN_A_ROW + 1)
    lost = lost_steps(run)
    sight.fact(f"{min(seconds):.1f} to {max(seconds):.1f} s", lost <= 4 * IN_A_ROW)
    drill.clear(keep=bool(sight.wrong))
    expected = "ends with the undisturbed bits; one generation each; at most 4 steps lost each"
    return sight.row(fault, expected, sorted(seconds)[len(seconds) // 2], lost)


def whole_gang(drill: Drill) -> Iterator[Row]:
    """Every process of the run at once, as a power cut ends them; with the default interval of checkpoints."""
    steps = 250
    reference = drill.undisturbed(steps=steps)
    home = drill.new_folder("run")
    settings = {"optim.max_steps": steps, "checkpoint.every_steps": "null", "checkpoint.every_seconds": LOST_SECONDS}
    first = drill.start(settings=settings, run_dir=home, plan={"step_seconds": 0.1})
    first.until(lambda: first.of_kind("checkpoint"), "checkpoint")
    saved_at = float(first.of_kind("checkpoint")[-1]["time"])
    first.until(lambda: time.time() > saved_at + LOST_SECONDS / 2 or len(first.of_kind("checkpoint")) > 1, "time to pass")
    since = time.time()
    wait_until_gone(kill_whole(first))
    again = drill.start(settings=settings, run_dir=home, plan={"step_seconds": 0.0})
    sight = Sight()
    again.wait()
    ended(again, sight, reference, steps)
    resumes = again.of_kind("resume")
    sight.fact(f"resumed from {', '.join(event['source'] for event in resumes)}", [event["source"] for event in resumes] == ["disk"])
    known = {event["step"]: event["time"] for event in again.of_kind("checkpoint") if event["time"] < since}
    lost = since - known.get(resumes[0]["step"], 0.0) if resumes else 0.0
    sight.fact(f"{lost:.0f} s of work lost", lost <= LOST_SECONDS + SLACK_SECONDS)
    expected = f"a new start ends with the undisturbed bits, from disk, at most {LOST_SECONDS:.0f} s of work lost"
    yield sight.row("SIGKILL of the whole gang", expected, recovery_seconds(again, since), lost_steps(again))


CASES = (
    rank,
    rank_0,
    one_of_a_pair,
    two_ranks,
    twice,
    of_eight,
    out_of_memory,
    agent,
    agent_0,
    fork_server,
    writer,
    final_save,
    ten_in_a_row,
    whole_gang,
)
