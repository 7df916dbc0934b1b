"""From a rank's recorder over shared memory, the agent's telemetry and HTTP to a reader, with the rank a process of its own."""

import json
import subprocess
import sys
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ddp_trainer.telemetry import node as node_module
from ddp_trainer.telemetry.document import parse
from ddp_trainer.telemetry.events import EventLog, read_events
from ddp_trainer.telemetry.facts import FactsPage
from ddp_trainer.telemetry.fetch import fetch
from ddp_trainer.telemetry.hardware import StorageReading
from ddp_trainer.telemetry.node import COMPOSE_SECONDS, NodeTelemetry
from ddp_trainer.telemetry.progress import Ledger
from ddp_trainer.telemetry.server import StatusServer

RANK = """
import sys
from pathlib import Path
from ddp_trainer.config import RunConfig
from ddp_trainer.telemetry.facts import FactsPage
from ddp_trainer.telemetry.recorder import Recorder
config = RunConfig().with_values({"run.name": "demo", "data.global_batch": 64, "telemetry.tensorboard": False})
recorder = Recorder(config=config, rank=0, local_rank=0, world_size=1, page=FactsPage.open(Path(sys.argv[1])), run_dir=Path(sys.argv[2]),
                    attempt=1, total_steps=80, steps_per_epoch=20.0)
for step in range(1, 31):
    recorder.step(step, 64)
recorder.train_metrics(30, 1.5, 0.4, 0.1)
recorder.phase("training", "all said")
print("done", flush=True)
sys.stdin.read()
"""
SAVED = {"step": 30, "saved_at": 1000.0, "bytes": 188, "stall_seconds": 0.1, "persist_seconds": 0.4, "verified": True}
LEDGER = Ledger(run="demo", attempt=1, world_size=1, restarts={"crash": 1}, checkpoint=SAVED)


@pytest.fixture
def page(tmp_path):
    made = FactsPage.create(tmp_path / "facts", slots=1)
    yield made
    made.close()


@pytest.fixture
def server():
    made = StatusServer("127.0.0.1", 0)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def rank(page, run_dir):
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(page.path), str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"done\n"
    yield process
    process.kill()
    process.communicate()


def test_what_a_rank_said_reaches_a_reader_even_after_its_death(page, server, run_dir, rank):
    telemetry = NodeTelemetry(page, 1, server, run_dir)
    telemetry.tick(LEDGER, 1e9)
    alive = fetch(server.url)
    rank.kill()
    rank.wait()
    telemetry.tick(LEDGER, 1e9 + 1)
    dead = fetch(server.url)
    assert (alive.phase, alive.step, alive.total_steps, alive.loss, alive.restarts.crash) == ("training", 30, 80, 1.5, 1)
    assert alive.checkpoint is not None
    assert (alive.checkpoint.step, alive.ranks[0].pid) == (30, rank.pid)
    assert (dead.step, dead.ranks[0].pid, dead.checkpoint) == (30, rank.pid, alive.checkpoint)
    telemetry.close()


def test_metrics_of_a_real_rank_parse(page, server, run_dir, rank):
    telemetry = NodeTelemetry(page, 1, server, run_dir)
    telemetry.tick(LEDGER, 1e9)
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    telemetry.close()
    assert families["trainer_samples"].samples[0].value == 30 * 64
    assert families["trainer_checkpoint_last_durable_step"].samples[0].value == 30


def test_node_0_leaves_the_document_in_the_run_directory(page, run_dir, rank):
    telemetry = NodeTelemetry(page, 1, None, run_dir)
    telemetry.tick(LEDGER, 1e9)
    telemetry.close()
    assert telemetry.progress is not None
    assert parse((run_dir / "progress.json").read_bytes()).step == 30
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(".")] == []


def test_the_document_is_written_again_only_when_something_changed(page, run_dir, monkeypatch):
    writes = []
    monkeypatch.setattr(node_module, "write_progress", lambda _, document: writes.append(json.loads(document)["step"]))
    telemetry = NodeTelemetry(page, 1, None, run_dir)
    monkeypatch.setattr(telemetry._disk, "start", lambda: None)
    now = 1e9
    for step, seconds in ((1, 1), (1, 2), (1, 3), (2, 4)):
        page.write(0, {"rank": 0, "total_steps": 80, "attempt": 1, "phase": "training", "step": step, "updated_at": float(step)})
        now += COMPOSE_SECONDS
        telemetry.tick(Ledger(run="demo", attempt=1, world_size=1, wall_seconds=float(seconds)), now)
        telemetry._visit_disk()
    assert writes == [1, 2]


def test_a_changed_ledger_is_shown_at_the_next_tick_and_facts_at_their_own_pace(page):
    telemetry = NodeTelemetry(page, 1, None)
    telemetry.tick(LEDGER, 1e9)
    page.write(0, {"rank": 0, "total_steps": 80, "attempt": 1, "phase": "training", "step": 5})
    telemetry.tick(LEDGER, 1e9 + COMPOSE_SECONDS / 2)
    assert telemetry.progress is not None
    assert telemetry.progress.step == 0
    telemetry.tick(Ledger(run="demo", attempt=1, world_size=1, phase="failed"), 1e9 + COMPOSE_SECONDS / 2)
    assert (telemetry.progress.phase, telemetry.progress.step) == ("failed", 5)
    telemetry.close()


def test_the_last_word_of_a_rank_is_in_the_last_document_however_soon_the_run_ends(page, run_dir):
    telemetry = NodeTelemetry(page, 1, None, run_dir)
    page.write(0, {"rank": 0, "total_steps": 80, "attempt": 1, "phase": "saving", "step": 4})
    telemetry.tick(LEDGER, 1e9)
    page.write(0, {"rank": 0, "total_steps": 80, "attempt": 1, "phase": "finished", "step": 5})
    telemetry.tick(LEDGER, 1e9 + COMPOSE_SECONDS / 2)
    telemetry.close()
    last = parse((run_dir / "progress.json").read_bytes())
    assert (last.phase, last.step) == ("finished", 5)


def test_a_new_agent_goes_on_with_what_the_last_one_knew(page, run_dir, rank):
    first = NodeTelemetry(page, 1, None, run_dir)
    first.tick(LEDGER, 1e9)
    first.close()
    page.clear(0)
    second = NodeTelemetry(page, 1, None, run_dir)
    second.tick(Ledger(run="demo", attempt=2, world_size=1), 1e9 + 60)
    second.close()
    assert second.progress is not None
    assert (second.progress.phase, second.progress.step) == ("starting", 30)
    assert second.progress.checkpoint is not None
    assert second.progress.checkpoint.step == 30


@pytest.mark.parametrize("content", [b"", b"{", b'{"run": "demo"}'])
def test_a_progress_file_that_cannot_be_read_is_no_hindrance(page, run_dir, content):
    (run_dir / "progress.json").write_bytes(content)
    telemetry = NodeTelemetry(page, 1, None, run_dir)
    telemetry.tick(LEDGER, 1e9)
    telemetry.close()
    assert parse((run_dir / "progress.json").read_bytes()).step == 0


def test_the_document_of_another_run_is_not_taken_over(page, run_dir, rank):
    first = NodeTelemetry(page, 1, None, run_dir)
    first.tick(LEDGER, 1e9)
    first.close()
    page.clear(0)
    other = NodeTelemetry(page, 1, None, run_dir)
    other.tick(Ledger(run="another", attempt=1, world_size=1), 1e9 + 60)
    other.close()
    assert other.progress is not None
    assert (other.progress.step, other.progress.checkpoint) == (0, None)


def test_a_volume_that_fills_up_is_noted_once_each_time(page, run_dir, monkeypatch):
    log = EventLog(run_dir / "events.jsonl")
    telemetry = NodeTelemetry(page, 1, None, run_dir, log)
    for free in (50, 4, 3, 50, 2):
        monkeypatch.setattr(node_module, "read_storage", lambda _, free=free: StorageReading(100, free))
        telemetry._visit_disk()
    assert ["free under" in event["message"] for event in read_events(log.path)] == [True, True]
