"""What `ddp local` decides before it starts anything: ports, GPUs, logs; what it refuses; and what an agent's end means."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_trainer.config import load
from ddp_trainer.errors import ConfigError, DataError
from ddp_trainer.launchers import local
from ddp_trainer.launchers.guard import claim
from ddp_trainer.launchers.local import Local, free_port
from ddp_trainer.launchers.view import View
from ddp_trainer.resilience.entrypoint import _leave_words
from ddp_trainer.resilience.zygote import Death


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count):
        monkeypatch.setattr(local, "count_gpus", lambda: count)

    pretend(0)
    return pretend


def planned(tmp_path, *settings, environment=None, nodes=2):
    config = load(None, [f"distributed.nodes={nodes}", "telemetry.port=0", f"run.root={tmp_path}", "data.micro_batches=8", *settings])
    made = Local(config, environment or {}, View())
    made._memories = list(range(100, 100 + nodes))  # descriptors; nothing is started
    made._last_words = [os.memfd_create("last-words") for _ in range(nodes)]
    made._agents = made._plan(config.run_dir / "logs")
    return made


def visible(made):
    """The GPUs that each agent sees; None where nothing is said."""
    return [agent.environment.get("CUDA_VISIBLE_DEVICES") for agent in made._agents]


@pytest.mark.parametrize(
    ("present", "settings", "nodes", "environment", "expected"),
    [
        (4, [], 4, {}, ["0", "1", "2", "3"]),
        (8, [], 4, {}, ["0", "1", "2", "3"]),
        (8, ["distributed.procs_per_node=2"], 4, {}, ["0,1", "2,3", "4,5", "6,7"]),
        (4, [], 2, {"CUDA_VISIBLE_DEVICES": "3,1"}, ["3", "1"]),
        (0, [], 2, {"CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb"}, ["GPU-aa", "GPU-bb"]),
        # too few for all: all ranks on the CPU, rather than some here and some there
        (1, [], 2, {}, ["", ""]),
        (3, ["distributed.procs_per_node=2"], 2, {}, ["", ""]),
        (0, [], 2, {}, ["", ""]),
        # the user hid them
        (8, [], 2, {"CUDA_VISIBLE_DEVICES": ""}, ["", ""]),
        (8, [], 2, {"CUDA_VISIBLE_DEVICES": "-1"}, ["", ""]),
        (8, ["distributed.device=cpu"], 2, {}, [None, None]),
    ],
)
def test_every_agent_sees_its_own_gpus_or_all_use_the_cpu(gpus, tmp_path, present, settings, nodes, environment, expected):
    gpus(present)
    assert visible(planned(tmp_path, *settings, nodes=nodes, environment=environment)) == expected


@pytest.mark.parametrize(
    ("present", "settings", "sentence"),
    [
        (2, [], r"^4 ranks need 4 GPUs but 2 are present; use --workers 2, or --set distributed\.device=cpu$"),
        (5, ["distributed.procs_per_node=2"], r"^8 ranks need 8 GPUs but 5 are present; use --workers 2, or"),
        (0, [], r"^4 ranks need 4 GPUs but 0 are present; use --set distributed\.device=cpu$"),
    ],
)
def test_more_gpus_asked_than_present_is_one_sentence_with_what_would_fit(gpus, tmp_path, present, settings, sentence):
    gpus(present)
    with pytest.raises(ConfigError, match=sentence):
        planned(tmp_path, "distributed.device=cuda", *settings, nodes=4)


@pytest.mark.parametrize(
    ("present", "settings", "note"),
    [
        (3, [], "4 ranks need 4 GPUs and 3 are present, so all train on the CPU; --set distributed.nodes=3 would use them"),
        (1, ["distributed.procs_per_node=2"], "8 ranks need 8 GPUs and 1 are present, so all train on the CPU"),
        (0, [], None),
        (4, [], None),
        (3, ["distributed.device=cpu"], None),
    ],
)
def test_gpus_that_are_there_and_not_used_are_explained(gpus, tmp_path, present, settings, note):
    gpus(present)
    assert planned(tmp_path, *settings, nodes=4)._notes == ([note] if note else [])


def test_agents_have_fixed_places_and_logs_of_their_own(gpus, tmp_path):
    agents = planned(tmp_path, nodes=4)._agents
    assert [(agent.node.node, agent.node.nodes, agent.node.host) for agent in agents] == [(i, 4, "127.0.0.1") for i in range(4)]
    assert len({agent.node.port for agent in agents}) == 1
    assert len({agent.node.ending for agent in agents}) == 4
    assert {agent.node.ranks_on_machine for agent in agents} == {4}


def test_each_agent_serves_its_telemetry_on_the_next_port_or_on_free_ones(gpus, tmp_path):
    assert [a.telemetry_port for a in planned(tmp_path, "telemetry.port=9500", nodes=4)._agents] == [9500, 9501, 9502, 9503]
    free = [a.telemetry_port for a in planned(tmp_path, "telemetry.port=0", nodes=8)._agents]
    assert all(1024 <= port <= 65535 for port in free)


def test_a_port_in_use_is_found_before_anything_is_started(gpus, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = planned(tmp_path, f"telemetry.port={port}", nodes=1)
        with pytest.raises(
            ConfigError, match=rf"port {port} on 127\.0\.0\.1 cannot be used for agent 0: Address already in use; choose another"
        ):
            made._check_ports()


def test_a_port_beyond_the_last_one_is_one_sentence(gpus, tmp_path):
    made = planned(tmp_path, "telemetry.port=65535", nodes=2)
    with pytest.raises(ConfigError, match=r"port 65536 on 127\.0\.0\.1 cannot be used for agent 1: there is no port above 65535"):
        made._check_ports()


def test_an_address_that_is_not_this_machines_is_one_sentence(gpus, tmp_path):
    made = planned(tmp_path, "telemetry.host=192.0.2.1")
    with pytest.raises(ConfigError, match=r"on 192\.0\.2\.1 cannot be used for agent 0: Cannot assign requested address"):
        made._check_ports()


@pytest.mark.parametrize(("host", "seen_at"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.2", "127.0.0.2")])
def test_agents_are_asked_at_the_address_at_which_they_answer(gpus, tmp_path, host, seen_at):
    made = planned(tmp_path, f"telemetry.host={host}")
    made._check_ports()
    assert made._seen_at == seen_at


def test_a_run_directory_that_cannot_be_made_is_refused_before_anything_is_started(gpus, tmp_path):
    (tmp_path / "file").write_text("")
    config = load(None, [f"run.root={tmp_path / 'file'}"])
    with pytest.raises(DataError, match=r"file/run cannot be written: Not a directory; give another with --run-dir"):
        Local(config, {}, View()).run()


def test_a_free_port_can_be_bound_and_differs_from_those_in_use():
    with socket.create_server(("127.0.0.1", free_port())) as first:
        other = free_port()
        assert other != first.getsockname()[1]
        socket.create_server(("127.0.0.1", other)).close()


def test_without_a_driver_there_are_no_gpus_and_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert local.count_gpus() == 0


@pytest.mark.parametrize(
    "module",
    [
        "ddp_trainer.cli",
        "ddp_trainer.launchers.demo",
        "ddp_trainer.launchers.local",
        "ddp_trainer.launchers.identity",
        "ddp_trainer.resilience.entrypoint",
    ],
)
def test_what_runs_before_the_fork_does_not_import_torch(module):
    # the zygote must be forked from one thread, and `/healthz` must answer before seconds of imports
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what an agent's end means --------------------------------------------------------------------------------------------------------


class Nursery:
    """Forks nobody; hands out process numbers, and deaths as they are scheduled."""

    def __init__(self, *deaths):
        self.scheduled = list(deaths)
        self.spawned = 0

    def spawn(self, *_):
        self.spawned += 1
        return self.spawned

    def deaths(self, **_):
        return [self.scheduled.pop(0)] if self.scheduled else []

    def kill(self, pid, signum):
        self.scheduled.append(Death(pid, -signum))


class Quiet(View):
    def refresh(self):
        pass


def watched(tmp_path, *deaths, nodes=3, signum=0):
    """Agents 0, 1 and 2 have the process numbers 1, 2 and 3; the next ones started have 4 and so on. Gives code and starts again."""
    made = planned(tmp_path, "data.global_batch=96", "data.micro_batches=24", nodes=nodes)
    made.view = Quiet()
    (made.config.run_dir / "logs").mkdir(parents=True)
    nursery = Nursery(*deaths)
    for agent in made._agents:
        made._start(nursery, agent)
    made._signal = signum
    return made._watch(nursery), nursery.spawned - nodes


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(local.Local, "_stop_seconds", 0.05)
    monkeypatch.setattr(local, "LATE_SECONDS", 0.05)


@pytest.mark.parametrize(
    ("what", "deaths", "code", "restarts"),
    [
        ("all finish", [(1, 0), (2, 0), (3, 0)], 0, 0),
        ("all finish, node 0 last", [(3, 0), (2, 0), (1, 0)], 0, 0),
        ("one is killed and comes back", [(2, -9), (4, 0), (1, 0), (3, 0)], 0, 1),
        ("one asks to be started again", [(1, 162), (2, 162), (3, 162), (4, 0), (5, 0), (6, 0)], 0, 3),
        ("one has failed for good", [(2, 3), (1, 3), (3, 3)], 3, 0),
        ("the others echo a failure", [(2, 1), (1, 160), (3, 160)], 1, 0),
        ("node 0 has finished and another is killed", [(1, 0), (2, -9), (3, 0)], 0, 0),
        ("node 0 has finished and another fails", [(1, 0), (2, 160), (3, 1)], 0, 0),
        ("node 0 has finished and nobody else leaves", [(1, 0)], 0, 0),
        ("one has failed and nobody else leaves", [(3, 2)], 2, 0),
    ],
)
def test_the_code_of_the_whole_and_who_is_started_again(gpus, impatient, tmp_path, what, deaths, code, restarts):
    assert watched(tmp_path, *(Death(*death) for death in deaths)) == (code, restarts)


def test_who_is_late_for_the_end_of_a_finished_run_is_not_given_the_time_to_save(gpus, monkeypatch, tmp_path):
    monkeypatch.setattr(local.Local, "_stop_seconds", 10**6)
    monkeypatch.setattr(local, "LATE_SECONDS", 0.05)
    assert watched(tmp_path, Death(2, -9), Death(3, 0), Death(1, 0)) == (0, 1)


@pytest.mark.parametrize(
    ("what", "deaths", "code"),
    [("it finishes all the same", [(2, 0), (1, 0), (3, 0)], 0), ("node 0 does not", [(2, 0), (3, 0), (1, 143)], 143)],
)
def test_a_run_that_is_told_to_stop_when_it_has_finished_has_finished(gpus, tmp_path, what, deaths, code):
    assert watched(tmp_path, *(Death(*death) for death in deaths), signum=signal.SIGTERM) == (code, 0)


def test_last_words_are_read_from_memory_where_the_volume_could_not_take_them(gpus, tmp_path):
    made = planned(tmp_path, nodes=2)
    node = made._agents[1].node
    assert made._words(3) == {}
    _leave_words(node, {"exit": 3, "message": "the volume is full"})  # whose folder does not exist
    assert made._words(3) == {"message": "the volume is full", "exit": 3}
    made.config.run_dir.joinpath("logs").mkdir(parents=True)
    Path(node.ending).touch()  # room for a name, and none for words
    assert made._words(3)["message"] == "the volume is full"
    made._start(Nursery(), made._agents[1])
    assert made._words(3) == {}, "they were the words of the agent before"


def test_the_words_of_the_whole_are_those_of_the_agent_whose_code_it_is(gpus, tmp_path):
    made = planned(tmp_path, nodes=4)
    made.config.run_dir.joinpath("logs").mkdir(parents=True)
    for agent, code in zip(made._agents, (143, 3, 162, 143), strict=True):  # node 0 was only asked to stop, since node 1 had left
        _leave_words(agent.node, {"exit": code, "message": f"code {code}"})
    assert made._words(3)["message"] == "code 3"
    assert made._words(160)["exit"] == 143, "of a code that nobody has words for, somebody's"


# --- one run at a time ------------------------------------------------------------------------------------------------------------------


def test_a_directory_is_claimed_by_one_supervisor_until_it_lets_go(tmp_path):
    with (
        claim(tmp_path),
        pytest.raises(
            DataError,
            match=rf"{tmp_path} is in use by another run \(process {os.getpid()}\); wait for it, stop it, or give another --run-dir",
        ),
    ):
        claim(tmp_path)
    claim(tmp_path).close()


def test_a_claim_ends_with_the_process_that_made_it_however_it_ends(tmp_path):
    code = f"import os, pathlib, ddp_trainer.launchers.guard as g; g.claim(pathlib.Path({str(tmp_path)!r})); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    claim(tmp_path).close()


def test_a_second_supervisor_touches_nothing_of_the_first(gpus, tmp_path):
    config = load(None, [f"run.root={tmp_path}", "telemetry.port=0"])
    (config.run_dir / "logs").mkdir(parents=True)
    words = config.run_dir / "logs" / "agent-0.end.json"
    words.write_text("{}")
    with claim(config.run_dir), pytest.raises(DataError, match="in use by another run"):
        Local(config, {}, View()).run()
    assert words.read_text() == "{}"
