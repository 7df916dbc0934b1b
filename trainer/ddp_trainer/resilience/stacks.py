"""What the ranks of a node are doing while they stand still, and which of them is to blame.

A rank that is armed prints the Python stacks of all its threads when it gets SIGUSR2, from C and without the interpreter lock, so also
while a C call holds that. A rank that is stopped or stuck in the kernel prints nothing: what the kernel says of it stands in instead.
Nothing here raises for what a rank in trouble does, and `collect` returns within its bound.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

POLL_SECONDS = 0.01
QUIET_SECONDS = 0.1
"""A file that has not grown for this long is complete: faulthandler writes without a pause, and ends without a mark."""
CALM_LOOKS = 2
CALM_SHARE = 0.3
"""Part of the bound after which busy threads are put up with: most are torch's own, which have no Python frames."""
TEXT_BYTES = 64 * 1024
"""Most that is kept of one rank: 100 threads of 10 frames. The main thread comes first, so it is never what is lost."""
EVENT_FRAMES = 12
EVENT_BYTES = 7 * 1024
"""What the stacks of all ranks of a node may take in an event, as JSON; the event's line stays below 8 KiB."""
USUAL_RANKS = 8
"""Ranks of a large node."""

_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in the kernel",
    "T": "stopped by a signal",
    "t": "held by a debugger",
    "I": "idle",
    "Z": "ended",
    "X": "ended",
}
_ENDED = frozenset("ZX")
_MUTE = _ENDED | frozenset("Tt")
"""States in which no signal is handled."""
_STATE = re.compile(r"^[^\n]*\(state (\w)")
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\S+) in (?P<function>.*)$', re.MULTILINE)
_THREAD = re.compile(r"^(?:Current thread|Thread) (?P<ident>0x[0-9a-f]+)[^\n]*$", re.MULTILINE)
_WAITS = re.compile(
    r"(?:^|/)(?:"
    r"torch/distributed/.*"
    r"|ddp_trainer/distributed\.py:.*"
    r"|ddp_trainer/exchange/gradient_sum\.py:.*"
    r"|ddp_trainer/exchange/piggyback\.py:heard"
    r"|torch/autograd/graph\.py:_engine_run_backward"
    r"|torch/nn/parallel/distributed\.py:(?:__init__|_pre_forward|_sync_\w+)"
    r"|torch/cuda/.*:synchronize"
    r")$"
)
"""`file:function` of innermost frames in which a rank may well be waiting for the others: the end of a backward pass, a collective, the
store, or a GPU that has a collective in its queue."""

_trace: TextIO | None = None
"""Kept open for as long as the process lives: faulthandler knows the descriptor only."""


@dataclass(frozen=True)
class Suspect:
    """Who is most likely to blame, None where nobody stands out; `reason` continues a sentence about that rank, and names no number."""

    local_rank: int | None
    reason: str


def arm(path: Path) -> None:
    """In a rank, first of all, from its main thread: print all stacks to `path` on SIGUSR2, and ignore SIGUSR1.

    Slurm sends SIGUSR1 to every process of a step as its warning before the end, and its default is death; the agent acts on it.
    """
    global _trace  # noqa: PLW0603  # the process has one SIGUSR2
    if _trace is not None:
        faulthandler.unregister(signal.SIGUSR2)
        _trace.close()
    _trace = path.open("w", encoding="utf-8")  # without what an earlier process of this rank has left
    _trace.write(f"main thread {threading.main_thread().ident or 0:#x}\n")
    _trace.flush()
    faulthandler.register(signal.SIGUSR2, file=_trace, all_threads=True, chain=False)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def collect(ranks: Mapping[int, tuple[int, Path]], kill: Callable[[int, int], None], bound_seconds: float = 1.0) -> dict[int, str]:
    """The state and the stacks of every rank, as text: the first line says the state, the main thread comes first.

    Blocks until all have answered, at most `bound_seconds`.

    Args:
        ranks: process id, and the path it was armed with, by local rank.
        kill: (pid, signal), sends a signal to a rank; what it raises as OSError is taken for a rank that has just ended.
        bound_seconds: for all ranks together.
    """
    before = {local_rank: _Process.read(pid) for local_rank, (pid, _) in ranks.items()}
    starts = {local_rank: _size(path) for local_rank, (_, path) in ranks.items()}
    asked = [local_rank for local_rank, process in before.items() if process.is_armed and process.state not in _MUTE]
    deadline = time.monotonic() + bound_seconds
    _await_calm({ranks[local_rank][0] for local_rank in asked}, time.monotonic() + CALM_SHARE * bound_seconds)
    for local_rank in asked:
        with contextlib.suppress(OSError):
            kill(ranks[local_rank][0], signal.SIGUSR2)
    _await_quiet({local_rank: (ranks[local_rank][1], starts[local_rank]) for local_rank in asked}, deadline)
    texts = {}
    for local_rank, (pid, path) in ranks.items():
        process = before[local_rank].steadier(_Process.read(pid))
        printed = _ordered(path, starts[local_rank])
        texts[local_rank] = f"{process.words()}\n{printed or process.silence(was_asked=local_rank in asked)}"
    return texts


def suspect(texts: Mapping[int, str], steps: Mapping[int, int]) -> Suspect:
    """Who is to blame for the hang, from what `collect` found and the last step of each rank. Pure.

    A rank alone on its node is judged by what it does: it is to blame unless it waits for others.
    """
    states = {rank: found[1] if (found := _STATE.match(text)) else "?" for rank, text in texts.items()}
    texts = {rank: text for rank, text in texts.items() if states[rank] not in _ENDED}  # the agent hears of a death by itself
    if not texts:
        return Suspect(None, "all ranks of its node have ended")
    steps = {rank: step for rank, step in steps.items() if rank in texts}
    for letters, then in (("Tt", "; continue it with SIGCONT, or find out who stops it"), ("D", "; look at its file systems and drivers")):
        for rank in texts:
            if states[rank] in letters:
                return Suspect(rank, f"it is {texts[rank].splitlines()[0]}{then}")
    busy = [rank for rank, text in texts.items() if not _is_waiting(text)]
    if len(busy) == 1:
        place = _place(texts[busy[0]])
        others = " while all others of its node wait for it in a collective" if len(texts) > 1 else ", not in a collective"
        return Suspect(busy[0], f"it is {f'in {place}' if place else 'silent, without a Python stack'}{others}")
    behind = [rank for rank in steps if steps[rank] == min(steps.values())]
    others_at = {step for rank, step in steps.items() if rank not in behind}
    if len(behind) == 1 and others_at == {steps[behind[0]] + 1}:  # ranks are never further apart; more is only the age of its last word
        return Suspect(behind[0], f"it was last seen at step {steps[behind[0]]}, all others of its node one step further")
    running = [rank for rank in texts if states[rank] == "R"]
    if len(running) == 1 and len(texts) > 1:
        return Suspect(running[0], f"it is computing in {_place(texts[running[0]])} while all others of its node sleep")
    doing = (
        "all ranks of its node wait for others" if not busy else f"{len(busy)} of {len(texts)} ranks of its node are not in a collective"
    )
    return Suspect(None, f"no single rank stands out: {doing}")


def trimmed(text: str, ranks: int = USUAL_RANKS) -> str:
    """One rank's text for an event that carries `ranks` of them: the innermost frames of each thread, in short, the main thread first."""
    bound_bytes = EVENT_BYTES // max(1, ranks)
    kept, size, frames = [], 2, 0
    for line in text.splitlines():
        frame = _FRAME.match(line)
        frames = frames + 1 if frame else 0
        if frames > EVENT_FRAMES:
            continue
        short = f"  {_short(frame['file'])}:{frame['line']} {frame['function']}" if frame else line
        size += len(json.dumps(short))  # its two quotation marks stand for the line break
        if size + len(json.dumps("...")) > bound_bytes:
            kept.append("...")
            break
        kept.append(short)
    return "\n".join(kept)


@dataclass(frozen=True)
class _Process:
    """What the kernel says of a process."""

    state: str
    place: str
    """Where in the kernel it waits; empty if it does not, or we may not know."""
    threads: tuple[str, ...]
    """States of the threads beside the main one; those in state D with their place."""
    is_armed: bool
    """It handles SIGUSR2; one that does not would die of it."""

    @classmethod
    def read(cls, pid: int) -> _Process:
        process = Path(f"/proc/{pid}")
        state = _state(process)
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", _text(process / "status"), re.MULTILINE)
        threads = []
        with contextlib.suppress(OSError):
            for thread in sorted((process / "task").iterdir(), key=lambda path: int(path.name)):
                if thread.name != str(pid):
                    letter = _state(thread)
                    threads.append(f"{letter} in {place}" if letter == "D" and (place := _kernel_place(thread)) else letter)
        is_armed = bool(caught and int(caught[1], 16) >> (signal.SIGUSR2 - 1) & 1)
        return cls(state, _kernel_place(process) if state == "D" else "", tuple(threads), is_armed)

    def steadier(self, after: _Process) -> _Process:
        """Of two looks, the one to be believed: every page fault passes through state D, so that only D twice means anything."""
        return self if after.state == "D" != self.state else after

    def words(self) -> str:
        place = f", {self.place}" if self.place else ""
        words = f"{_STATES.get(self.state, 'in an unknown state')} (state {self.state}{place})"
        if not self.threads:
            return words
        counted = ", ".join(f"{count} {state}" for state, count in Counter(self.threads).most_common())
        return f"{words}, other threads: {counted}"

    def silence(self, *, was_asked: bool) -> str:
        if was_asked:
            return "no Python stack: " + ("it ended while it was asked" if self.state in _ENDED else "it did not answer SIGUSR2 in time")
        return "no Python stack: " + (
            "a process in this state cannot print one" if self.state in _MUTE else "it has not come to arm SIGUSR2"
        )


def _state(process: Path) -> str:
    """The state's letter of a process or thread; X for one that is gone."""
    fields = _text(process / "stat").rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return fields[0] if fields else "X"


def _kernel_place(process: Path) -> str:
    names = re.findall(r"^\[<[^>]*>\] ([\w.]+)", _text(process / "stack"), re.MULTILINE)  # for root only
    wchan = _text(process / "wchan").strip()
    wchan = names[0] if wchan in {"", "0"} and names else wchan
    words = [f"wchan {wchan}"] if wchan not in {"", "0"} else []
    return ", ".join([*words, *([f"called from {' < '.join(names[1:6])}"] if names[1:] else [])])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended, or we may not look
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _await_calm(pids: set[int], deadline: float) -> None:
    """Wait until no thread beside the main one was running in two looks.

    faulthandler reads the frames of threads that may be changing them, and 1 in 150 ranks died of that where threads had just been started.
    """
    calm_looks = dict.fromkeys(pids, 0)
    while time.monotonic() < deadline:
        for pid in pids:
            calm_looks[pid] = 0 if "R" in _Process.read(pid).threads else calm_looks[pid] + 1
        if all(looks >= CALM_LOOKS for looks in calm_looks.values()):
            return
        time.sleep(POLL_SECONDS)


def _await_quiet(files: Mapping[int, tuple[Path, int]], deadline: float) -> None:
    """Wait until every file has grown beyond its size at the start and then rested."""
    sizes, since = {rank: start for rank, (_, start) in files.items()}, dict.fromkeys(files, 0.0)
    waiting = set(files)
    while waiting and (now := time.monotonic()) < deadline:
        for rank in list(waiting):
            path, start = files[rank]
            size = _size(path)
            if size != sizes[rank]:
                sizes[rank], since[rank] = size, now
            elif size > start and now - since[rank] >= QUIET_SECONDS:
                waiting.discard(rank)
        time.sleep(POLL_SECONDS)


def _ordered(path: Path, start: int) -> str:
    """What a rank has printed since its file had `start` bytes, the main thread first and called so."""
    text = _text(path)
    ident = int(found[1], 16) if (found := re.match(r"main thread (0x[0-9a-f]+)", text)) else 0
    printed = text.encode()[start:].decode(errors="replace")
    heads = list(_THREAD.finditer(printed))
    blocks = []
    for number, head in enumerate(heads):
        end = heads[number + 1].start() if number + 1 < len(heads) else len(printed)
        is_main = int(head["ident"], 16) == ident
        name = "main thread" if is_main else f"thread {head['ident']}"
        blocks.append((not is_main, f"{name}, innermost frame first:\n{printed[head.end() : end].strip(chr(10))}"))
    ordered = "\n".join(block for _, block in sorted(blocks, key=lambda block: block[0]))
    return ordered.encode()[:TEXT_BYTES].decode(errors="ignore")


def _main_frames(text: str) -> list[re.Match[str]]:
    """The frames of the first thread, which is the main one."""
    _, _, stack = text.partition("\nmain thread")
    return list(_FRAME.finditer(re.split(r"^thread ", stack, maxsplit=1, flags=re.MULTILINE)[0]))


def _is_waiting(text: str) -> bool:
    """Whether the main thread's innermost frames are a wait for others, with nothing but torch's own code on top of it."""
    for frame in _main_frames(text):
        if _WAITS.search(f"{frame['file']}:{frame['function']}"):
            return True
        if "/torch/" not in frame["file"]:
            return False
    return False


def _place(text: str) -> str:
    frames = _main_frames(text)
    return f"{frames[0]['function']} ({_short(frames[0]['file'])}:{frames[0]['line']})" if frames else ""


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-2:])
