"""What is found of ranks that stand still, with real processes in every state that matters, and who is blamed for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import PATIENCE_SECONDS, Watch

from ddp_trainer.resilience import stacks

_CHILD = Path(__file__).with_name("stack_child.py")
AMPLE_SECONDS = 30.0
"""The bound of a collection that is expected to end by itself, on a busy machine."""
SHORT_SECONDS = 0.3
"""... and of one that is expected to be used up."""


class Child:
    """A process of `stack_child`, as far as doing what it was told."""

    def __init__(self, how, trace, *more):
        self.process = subprocess.Popen(
            [sys.executable, _CHILD, how, str(trace), *map(str, more)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        assert self.process.stdout.readline() == b"ready\n"
        self.pid, self.trace = self.process.pid, trace

    def awaits_state(self, state):
        wait_for(lambda: stacks._state(Path(f"/proc/{self.pid}")) == state)
        return self

    def stopped(self):
        os.kill(self.pid, signal.SIGSTOP)
        return self.awaits_state("T")

    def end(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stdin):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def wait_for(is_so, seen=()):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, seen[-1:]
        time.sleep(0.005)


@pytest.fixture
def child(tmp_path):
    children = []

    def start(how, *more):
        children.append(Child(how, tmp_path / f"stacks-{len(children)}.txt", *more))
        return children[-1]

    yield start
    for one in children:
        one.end()


def settled(child, place, first_line=""):
    """The text of a child that has come to where it stays: "ready" is said a moment before."""
    texts = []

    def is_there():
        texts.append(collect(child)[0])
        return stacks._place(texts[-1]).startswith(f"{place} (") and texts[-1].startswith(first_line)

    wait_for(is_there, texts)
    return texts[-1]


def collect(*children, bound_seconds=AMPLE_SECONDS):
    return stacks.collect({i: (child.pid, child.trace) for i, child in enumerate(children)}, os.kill, bound_seconds)


def test_sleeping_rank_tells_where(child):
    text = settled(child("sleeps"), "sleeps", "sleeping")
    assert text.startswith("sleeping (state S)\nmain thread, innermost frame first:\n")
    assert "in sleeps\n" in text
    assert stacks._place(text).startswith("sleeps (resilience/stack_child.py:")


def test_rank_in_a_c_call_that_holds_the_interpreter_lock_tells_where(child):
    text = settled(child("holds_the_lock"), "holds_the_lock", "sleeping")
    assert "in wants_the_lock\n" in text


def test_computing_rank_is_seen_to_run(child):
    assert settled(child("computes"), "computes").startswith("running (state R)\n")


def test_main_thread_comes_first_of_several(child):
    text = settled(child("has_threads"), "has_threads", "sleeping (state S), other threads: 3 S\n")
    heads = [line for line in text.splitlines() if "innermost frame first" in line]
    assert len(heads) == 4
    assert heads[0].startswith("main thread")
    assert not any(head.startswith("main") for head in heads[1:])
    assert text.count("in helps\n") == 3


def test_stopped_rank_is_called_stopped_and_costs_no_time_of_the_bound(child):
    stopped = child("sleeps").stopped()
    sent = []
    text = stacks.collect({3: (stopped.pid, stopped.trace)}, lambda *what: sent.append(what), 3600.0)[3]
    assert text == "stopped by a signal (state T)\nno Python stack: a process in this state cannot print one"
    assert sent == []


@pytest.fixture
def silent_pipe(tmp_path):
    """Nobody writes to it."""
    pipe = tmp_path / "nobody-writes"
    os.mkfifo(pipe)
    yield pipe
    descriptor = os.open(pipe, os.O_RDWR)  # lets its child go
    os.close(descriptor)


def test_rank_in_the_kernel_is_said_to_be_there_and_waited_for_no_longer_than_the_bound(child, silent_pipe):
    text = collect(child("is_in_the_kernel", silent_pipe).awaits_state("D"), bound_seconds=SHORT_SECONDS)[0]
    state, silence = text.splitlines()
    assert state.startswith("in the kernel (state D")
    if os.geteuid() == 0:  # else the kernel does not say where
        assert "wchan " in state
    assert silence == "no Python stack: it did not answer SIGUSR2 in time"
    assert stacks.suspect({0: text}, {}).local_rank == 0


def test_thread_in_the_kernel_is_told_of_beside_a_main_thread_that_is_not(child, silent_pipe):
    text = settled(child("has_a_thread_in_the_kernel", silent_pipe), "has_a_thread_in_the_kernel", "sleeping (state S), other threads: 1 D")
    if os.geteuid() == 0:
        assert "1 D in wchan " in text.splitlines()[0]


def test_state_d_counts_only_when_it_is_seen_twice():
    asleep, on_disk = stacks._Process("S", "", (), True), stacks._Process("D", "wchan folio_wait", (), True)
    assert asleep.steadier(on_disk) is asleep
    assert on_disk.steadier(asleep) is asleep
    assert on_disk.steadier(on_disk) is on_disk


def test_process_whose_name_looks_like_a_state_is_read_right(tmp_path):
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "3600"]) as process:
        try:
            wait_for(lambda: stacks._state(Path(f"/proc/{process.pid}")) == "S")
        finally:
            process.kill()


def test_rank_that_has_not_armed_yet_is_not_killed_by_the_question(child):
    unarmed = child("unarmed")
    text = collect(unarmed)[0]
    assert text.endswith("no Python stack: it has not come to arm SIGUSR2")
    assert Watch(unarmed.pid).lives()


def test_rank_that_has_ended_is_no_error(child, tmp_path):
    ended = child("sleeps")
    ended.process.kill()
    ended.awaits_state("Z")
    gone = child("sleeps")
    gone.end()
    texts = stacks.collect({0: (ended.pid, ended.trace), 1: (gone.pid, tmp_path / "never-written")}, os.kill, AMPLE_SECONDS)
    assert texts[0].startswith("ended (state Z)")
    assert texts[1].startswith("ended (state X)")
    assert stacks.suspect(texts, {0: 1, 1: 1}).local_rank is None


def test_rank_that_ends_while_it_is_asked_is_no_error(child):
    def kill(pid, signum):
        one.end()
        raise ProcessLookupError

    one = child("sleeps")
    text = stacks.collect({0: (one.pid, one.trace)}, kill, SHORT_SECONDS)[0]
    assert text == "ended (state X)\nno Python stack: it ended while it was asked"


def test_second_question_is_answered_with_the_stacks_of_now(child):
    one = child("sleeps").awaits_state("S")
    assert collect(one)[0].count("main thread") == 1
    assert collect(one)[0].count("main thread") == 1


def test_the_warning_that_slurm_sends_to_all_does_not_end_a_rank(child):
    one = child("heeds_the_user")
    os.kill(one.pid, signal.SIGUSR1)
    one.process.stdin.write(b"still here\n")
    one.process.stdin.flush()
    assert one.process.stdout.readline() == b"still here\n"


def test_rank_answers_and_goes_on(child):
    one = child("heeds_the_user")
    settled(one, "heeds_the_user", "sleeping")
    one.process.stdin.write(b"still here\n")
    one.process.stdin.flush()
    assert one.process.stdout.readline() == b"still here\n"


def test_what_an_earlier_rank_left_is_not_taken_for_an_answer(child, tmp_path):
    (tmp_path / "stacks-0.txt").write_text('main thread 0x1\nThread 0x1 (most recent call first):\n  File "old.py", line 1 in old\n')
    text = settled(child("sleeps"), "sleeps")
    assert "old" not in text
    assert "main thread" in text


def test_deep_stacks_are_cut_to_the_innermost_frames_and_to_the_share_of_an_event(child):
    text = settled(child("goes_deep"), "sleeps")
    short = stacks.trimmed(text, ranks=1)
    assert short.splitlines()[1] == "main thread, innermost frame first:"
    assert short.splitlines()[2].startswith("  resilience/stack_child.py:")
    assert short.splitlines()[2].endswith(" sleeps")
    assert short.count("goes_deep") == stacks.EVENT_FRAMES - 1
    assert text.count("goes_deep") > stacks.EVENT_FRAMES


@given(st.integers(1, 64), st.text(max_size=300), st.integers(0, 40), st.integers(0, 40))
def test_stacks_of_a_whole_node_fit_into_one_event(ranks, name, threads, frames):
    frame = f'  File "/a/{name}.py", line 7 in {name}\n'
    text = "sleeping (state S)\n" + "".join(f"thread 0x{i:x}, innermost frame first:\n" + frame * frames for i in range(threads))
    line = json.dumps({str(rank): stacks.trimmed(text, ranks) for rank in range(ranks)})
    assert len(line) <= stacks.EVENT_BYTES + 1024


def stack(state, *frames, more=""):
    """A text as `collect` makes it; frames are "file:function", innermost first."""
    lines = "".join(f'  File "{frame.split(":")[0]}", line 7 in {frame.split(":")[1]}\n' for frame in frames)
    return f"words (state {state})\nmain thread, innermost frame first:\n{lines}{more}"


WAITING = stack("S", "/site/torch/distributed/distributed_c10d.py:all_reduce", "/app/ddp_trainer/engine.py:one_step")
BACKWARD = stack("S", "/site/torch/autograd/graph.py:_engine_run_backward", "/site/torch/_tensor.py:backward", "/app/engine.py:one_step")
IN_USERS_CODE = stack("S", "/home/me/model.py:augment", "/app/ddp_trainer/engine.py:one_step")


@pytest.mark.parametrize(
    ("texts", "steps", "blamed", "word"),
    [
        ({0: WAITING, 1: stack("T"), 2: IN_USERS_CODE, 3: stack("D")}, {}, 1, "SIGCONT"),
        ({0: WAITING, 1: stack("t")}, {}, 1, "state t"),
        ({0: WAITING, 1: IN_USERS_CODE, 2: stack("D, wchan nfs_wait")}, {}, 2, "nfs_wait"),
        ({0: WAITING, 1: BACKWARD, 2: IN_USERS_CODE}, {}, 2, "augment (me/model.py:7)"),
        ({0: WAITING, 1: "sleeping (state S)\nno Python stack: it did not answer"}, {}, 1, "silent"),
        ({0: WAITING, 1: WAITING, 2: BACKWARD}, {0: 42, 1: 41, 2: 42}, 1, "step 41"),
        ({0: IN_USERS_CODE, 1: IN_USERS_CODE}, {0: 41, 1: 42}, 0, "step 41"),
        ({0: WAITING, 1: WAITING}, {0: 42, 1: 12}, None, "no single rank"),
        ({0: WAITING, 1: WAITING, 2: WAITING}, {0: 42, 1: 41, 2: 41}, None, "no single rank"),
        ({0: WAITING, 1: BACKWARD.replace("state S", "state R")}, {0: 42, 1: 42}, 1, "computing"),
        ({0: WAITING, 1: BACKWARD}, {0: 42, 1: 42}, None, "all ranks of its node wait"),
        ({0: IN_USERS_CODE, 1: IN_USERS_CODE, 2: WAITING}, {}, None, "2 of 3"),
        ({0: IN_USERS_CODE}, {0: 3}, 0, "not in a collective"),
        ({0: WAITING}, {0: 3}, None, "wait"),
        ({0: WAITING.replace("state S", "state R")}, {0: 3}, None, "wait"),
        ({0: WAITING, 1: "ended (state Z)\nno Python stack"}, {0: 2, 1: 1}, None, "no single rank"),
        ({}, {}, None, "ended"),
        ({0: stack("S", "/site/torch/utils/_contextlib.py:inner", "/site/torch/distributed/utils.py:sync")}, {}, None, "wait"),
        ({0: stack("S", "/site/torch/nn/parallel/distributed.py:_pre_forward")}, {}, None, "wait"),
        ({0: stack("S", "/site/torch/nn/parallel/distributed.py:forward")}, {}, 0, "forward"),
    ],
)
def test_blame_goes_to(texts, steps, blamed, word):
    found = stacks.suspect(texts, steps)
    assert found.local_rank == blamed
    assert word in found.reason
    assert "\n" not in found.reason


def test_users_code_called_by_torch_in_a_backward_pass_is_no_wait():
    text = stack(
        "S", "/home/me/ops.py:backward", "/site/torch/autograd/function.py:apply", "/site/torch/autograd/graph.py:_engine_run_backward"
    )
    assert stacks.suspect({0: WAITING, 1: text}, {}).local_rank == 1


def test_other_threads_do_not_excuse_the_main_one():
    helper = "thread 0x7f, innermost frame first:\n" + WAITING.split("first:\n")[1]
    for frames in (["/home/me/model.py:augment"], []):
        text = stack("S", *frames, more=helper)
        assert stacks.suspect({0: WAITING, 1: text}, {}).local_rank == 1


@pytest.mark.parametrize("how", ["backward", "all_reduce", "all_gather", "broadcast", "barrier", "construction", "meeting"])
def test_the_rank_that_does_not_come_to_a_real_collective_is_blamed(warm_parent, tmp_path, how):
    meeting = tmp_path / "meeting"
    traces = {rank: tmp_path / f"stacks-{rank}.txt" for rank in range(2)}
    pids = {
        rank: warm_parent.spawn(
            "stack_ranks:main",
            dict(os.environ),
            tmp_path / f"{rank}.log",
            how=how,
            rank=rank,
            trace=str(traces[rank]),
            meeting=str(meeting),
        )
        for rank in range(2)
    }
    try:
        wait_for(lambda: all(Path(f"{meeting}.ready-{rank}").exists() for rank in range(2)))

        def found():
            texts = stacks.collect({rank: (pids[rank], traces[rank]) for rank in range(2)}, os.kill, AMPLE_SECONDS)
            return stacks.suspect(texts, {})

        wait_for(lambda: found().local_rank == 1)  # the waiting one may still be on its way into the collective
        assert "users_code (resilience/stack_ranks.py:" in found().reason
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        warm_parent.deaths(2)
