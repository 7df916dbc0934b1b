"""What the terminal says of the run's events."""

from __future__ import annotations

import pytest

from ddp_trainer.config import load
from ddp_trainer.launchers.view import View
from ddp_trainer.telemetry.events import EventLog


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        ("resume", {"step": 33, "source": "disk", "lost_steps": 7}, "resumed at step 33, 7 steps to do again"),
        ("resume", {"step": 33, "source": "memory", "lost_steps": 0}, "resumed at step 33"),
        ("resume", {"step": 0, "source": "nothing", "lost_steps": 4}, "started again from the beginning, 4 steps to do again"),
        (
            "fault",
            {"node": 1, "rank": 2, "step": 9, "message": "rank 2 was killed by SIGKILL"},
            "rank 2: rank 2 was killed by SIGKILL (step 9)",
        ),
        ("restart", {"cause": "crash"}, "all nodes meet again"),
        ("evaluate", {"step": 5, "metrics": {"accuracy": 0.25}}, "test accuracy 25.0% at step 5"),
    ],
)
def test_an_event_is_one_line_for_people(tmp_path, capsys, kind, fields, line):
    config = load(None, [f"run.root={tmp_path}"])
    view = View()
    view.start(config, ["http://127.0.0.1:9"])
    EventLog(config.run_dir / "events.jsonl").append(kind, **fields)
    view.finish(0, {})
    assert capsys.readouterr().out.rstrip().endswith("  " + line)


def test_what_an_earlier_run_in_the_directory_did_is_not_told_again(tmp_path, capsys):
    config = load(None, [f"run.root={tmp_path}"])
    EventLog(config.run_dir / "events.jsonl").append("note", message="old")
    view = View()
    view.start(config, ["http://127.0.0.1:9"])
    view.finish(0, {})
    assert capsys.readouterr().out == ""


def test_a_disk_that_takes_and_gives_nothing_does_not_end_the_run_that_is_shown(tmp_path, capsys):
    config = load(None, [f"run.root={tmp_path}"])
    for file in ("events.jsonl", "endpoints.json"):
        (config.run_dir / file).mkdir(parents=True)  # as good as an I/O error, for whoever opens it
    view = View()
    view.start(config, ["http://127.0.0.1:9"])
    view._announce(config.run_dir / "endpoints.json")
    view.finish(0, {})
    assert "endpoints.json cannot be written (Is a directory); give `ddp top` the addresses: http://127.0.0.1:9" in capsys.readouterr().out
