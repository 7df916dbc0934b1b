"""The fork server with real processes: what runs, with what, and that nothing outlives whom it belongs to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest
from processes import Parent, Watch, exists, threads_of

from ddp_trainer.parentage import children
from ddp_trainer.resilience.entrypoint import PRELOAD

HERE = "zygote_targets"


@pytest.fixture
def start():
    parents = []

    def make(preload=(HERE,)):
        parents.append(Parent(preload))
        return parents[-1]

    yield make
    for parent in parents:
        parent.end()


@pytest.fixture
def parent(start):
    return start()


def read(path):
    return json.loads(path.read_text())


# --- what runs, and how it ended -----------------------------------------------------------------------------------------------------


def test_every_way_to_end_is_reported_as_it_was(parent, tmp_path):
    log = tmp_path / "log"
    assert parent.run("returns", value=None) == 0
    assert parent.run("returns", value=0) == 0
    assert parent.run("returns", value=7) == 7
    assert parent.run("leaves", value=9) == 9
    assert parent.run("leaves", value=None) == 0
    assert parent.run("leaves", value="a sentence", log=log) == 1
    assert parent.run("raises", message="on purpose", log=log) == 1
    assert parent.run("does_not_exist", log=log) == 1
    assert parent.run("dies", signum=int(signal.SIGKILL)) == -signal.SIGKILL
    assert parent.run("dies", signum=int(signal.SIGTERM)) == -signal.SIGTERM
    assert "ValueError: on purpose" in log.read_text()
    assert "has no attribute 'does_not_exist'" in log.read_text()


def test_many_children_at_once_are_each_reported_once_and_none_stays_a_zombie(parent):
    pids = {parent.spawn("returns", value=n): n for n in range(30)}
    assert len(pids) == 30
    assert parent.deaths(30) == pids
    assert parent.ask("deaths", 0.0) == []
    assert not any(exists(pid) for pid in pids)


def test_what_a_killed_child_leaves_behind_is_ended_when_asked_for_and_becomes_no_zombie(parent, tmp_path):
    living = Watch(parent.spawn("stays"))
    assert parent.run("leaves_a_process", path=str(tmp_path / "pid")) == -signal.SIGKILL
    left = Watch(int((tmp_path / "pid").read_text()))
    assert left.lives()
    assert left.pid in children(parent.ask("pid"))
    parent.ask("orphans")
    assert left.ends()
    assert parent.run("returns", value=3) == 3, "its end is nobody's death"
    assert not exists(left.pid)
    assert living.lives()


def test_signals_reach_children_and_nobody_else(parent):
    child = parent.spawn("stays")
    with subprocess.Popen(["sleep", "600"]) as stranger:
        parent.ask("kill", stranger.pid, int(signal.SIGKILL))
        parent.ask("kill", child, int(signal.SIGTERM))
        assert parent.deaths(1) == {child: -signal.SIGTERM}
        parent.ask("kill", child, int(signal.SIGKILL))  # it is gone, and its number may be somebody else's
        assert parent.run("returns", value=3) == 3
        assert stranger.poll() is None
        stranger.kill()


def test_a_signal_sent_as_soon_as_a_child_exists_is_not_lost(parent):
    for _ in range(30):
        child = parent.spawn("stays")
        parent.ask("kill", child, int(signal.SIGTERM))
        assert parent.deaths(1) == {child: -signal.SIGTERM}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_deaf_child_is_ended_by_sigkill_alone(parent, signum):
    for _ in range(10):
        child = parent.spawn("stays", is_deaf=True)
        parent.ask("kill", child, int(signum))
        assert parent.run("returns", value=5) == 5
        parent.ask("kill", child, int(signal.SIGKILL))
        assert parent.deaths(1) == {child: -signal.SIGKILL}


def test_a_child_has_exactly_the_environment_that_was_given(parent, tmp_path):
    given = {"PATH": "/usr/bin", "RANK": "3", "EMPTY": "", "WORDS": "zwölf ☃"}
    parent.run("tells", path=str(tmp_path / "about"), environment=given)
    about = read(tmp_path / "about")
    assert about["environment"] == given
    assert {name for name in given if f"{name}={given[name]}" in about["inherited_by_programs"]} == given.keys()
    assert "HOME" not in about["environment"]


def test_output_of_both_kinds_is_appended_to_the_log(parent, tmp_path):
    log = tmp_path / "logs" / "rank-0.log"
    parent.run("speaks", out="first", err="problem", log=log)
    parent.run("speaks", out="second", err="worse", log=log)
    assert log.read_text() == "first\nproblem\nfrom below\nsecond\nworse\nfrom below\n"


# --- the preload ---------------------------------------------------------------------------------------------------------------------


def test_the_preload_takes_effect_a_child_imports_nothing_again(parent, tmp_path):
    parent.run("tells", path=str(tmp_path / "about"))
    about = read(tmp_path / "about")
    assert about["imported_by"] == about["parent"] == parent.ask("pid")


def test_ranks_find_torch_imported_in_a_zygote_of_one_thread(warm_parent, tmp_path):
    parent = warm_parent
    parent.run("tells", path=str(tmp_path / "about"))
    about = read(tmp_path / "about")
    assert {"torch", *PRELOAD} <= set(about["modules"])
    assert about["imported_by"] == about["parent"]
    assert threads_of(parent.ask("pid")) == 1  # a lock that another thread holds would not survive the fork
    assert about["threads"] == 1


@pytest.mark.parametrize(
    ("preload", "words"),
    [
        ("no_such_module_anywhere", "cannot import what ranks need: ModuleNotFoundError.*no_such_module_anywhere"),
        ("antigravity_exit", "gone"),
    ],
)
def test_a_preload_that_fails_is_an_error_and_not_silence(start, tmp_path, preload, words):
    parent = start([preload])
    kind, sentence = parent.ask("ready")
    assert kind == "ZygoteError"
    assert re.search(words, sentence)
    assert parent.spawn("returns", value=0)[0] == "ZygoteError"


# --- nothing outlives whom it belongs to ---------------------------------------------------------------------------------------------


def test_children_die_with_their_zygote_and_the_parent_is_told(parent):
    children = [Watch(parent.spawn("stays")) for _ in range(3)]
    os.kill(parent.ask("pid"), signal.SIGKILL)
    assert all(child.ends() for child in children)
    assert parent.ask("deaths", 60.0)[0] == "ZygoteError"
    assert parent.spawn("stays")[0] == "ZygoteError"


def test_the_zygote_and_its_children_die_with_the_parent(parent):
    watched = [Watch(parent.ask("pid")), *(Watch(parent.spawn("stays")) for _ in range(3))]
    parent.process.kill()
    assert all(process.ends() for process in watched)


@pytest.mark.parametrize("victim", ["supervisor", "nursery", "agent"])
def test_killing_any_process_of_a_run_ends_the_whole_chain_below_it(parent, tmp_path, victim):
    agent = Watch(parent.spawn("agent", path=str(tmp_path / "pids")))
    assert parent.ask("deaths", 0.0) == []
    pids = wait_for(tmp_path / "pids", agent)
    below = [Watch(pids["zygote"]), Watch(pids["rank"])]
    killed = {"supervisor": parent.process.pid, "nursery": parent.ask("pid"), "agent": agent.pid}[victim]
    os.kill(killed, signal.SIGKILL)
    assert agent.ends()
    assert all(process.ends() for process in below)


def wait_for(path, process):
    while process.lives():
        try:
            return read(path)
        except (OSError, ValueError):
            os.sched_yield()
    pytest.fail("the agent ended before it had started its rank")


def test_closing_ends_all_and_leaves_no_zombie(parent):
    zygote = parent.ask("pid")
    child = Watch(parent.spawn("stays"))
    assert parent.ask("close") is None
    assert child.ends()
    assert not exists(zygote)
    assert parent.process.poll() is None


def test_ctrl_c_on_the_terminal_and_a_stray_sigterm_do_not_reach_the_ranks(parent, tmp_path):
    parent.run("tells", path=str(tmp_path / "about"))
    about = read(tmp_path / "about")
    assert about["session"] != os.getsid(parent.process.pid)
    assert about["sigterm_is_default"]
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(parent.ask("pid"), signum)
    assert parent.run("returns", value=4) == 4
