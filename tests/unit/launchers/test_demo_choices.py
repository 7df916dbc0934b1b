"""What `ddp demo` chooses, says and leaves: a directory of its own, a bounded length, and an epilogue from what was really seen."""

from __future__ import annotations

import io
import json
import random
import shlex
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest

from ddp_trainer.config import load
from ddp_trainer.launchers.demo import Machine, Typed, epilogue, fitted, fresh, training_images, try_next
from ddp_trainer.telemetry.events import EventLog
from ddp_trainer.telemetry.jsonl import JsonLines

DEMO = Path(__file__).parents[3] / "configs" / "demo.json"


def configured(*settings):
    return load(DEMO, settings)


@pytest.mark.parametrize(
    ("source", "images", "machine", "epochs", "words"),
    [
        ("sample", 5_000, Machine(2, 0), 4, "5,000 images (sample) on 2 CPU cores, 1 thread each: 4 epochs, about 4 minutes"),
        ("sample", 5_000, Machine(16, 0), 4, "on 16 CPU cores, 4 threads each: 4 epochs, about 1 minute"),
        (
            "download",
            50_000,
            Machine(2, 0),
            0.6,
            "0.6 epochs, about 6 minutes once they are downloaded (0.6 and not 4, since there are 10 times the",
        ),
        ("download", 50_000, Machine(8, 0), 2, "2 epochs, about 5 minutes once they are downloaded (2 and not 4"),
        ("/a.tar", 1_000_000, Machine(2, 0), 0.03, "0.03 epochs, about 6 minutes (0.03 and not 4, since there are 200 times"),
        ("sample", 5_000, Machine(16, 4), 30, "5,000 images (sample) on 4 of 4 GPUs: 30 epochs"),
        ("download", 50_000, Machine(16, 8), 6, "on 4 of 8 GPUs: 6 epochs (6 and not 30, since there are 10 times"),
        ("sample", 5_000, Machine(2, 3), 4, "on 2 CPU cores"),  # fewer GPUs than workers: all on the CPU
        ("/nowhere", None, Machine(2, 0), 4, "4 workers train resnet50 on images (/nowhere) on 2 CPU cores, 1 thread each: 4 epochs"),
    ],
)
def test_the_length_is_bounded_whatever_the_data_and_the_choice_is_explained(source, images, machine, epochs, words):
    config, sentence = fitted(configured(f"data.source={source}"), images, machine)
    assert config.optim.epochs == epochs
    assert words in sentence
    assert config.telemetry.eval_every_epochs <= epochs / 2  # so that the accuracy can be seen to rise


@pytest.mark.parametrize("setting", ["optim.epochs=7", "optim.max_steps=9"])
@pytest.mark.parametrize("machine", [Machine(2, 0), Machine(2, 4)])
def test_whoever_says_how_long_is_obeyed(setting, machine):
    config, sentence = fitted(configured(setting), 50_000, machine, {setting.partition("=")[0]})
    assert config.optim == configured(setting).optim
    assert " and not " not in sentence


def test_whoever_says_how_often_to_evaluate_is_obeyed():
    key = "telemetry.eval_every_epochs"
    assert fitted(configured(f"{key}=5"), 50_000, Machine(2, 0), {key})[0].telemetry.eval_every_epochs == 5


def test_no_time_is_promised_for_a_network_that_was_not_measured():
    assert "minute" not in fitted(configured("model.stem=cifar"), 5_000, Machine(2, 0))[1]


def test_every_demo_gets_a_directory_of_its_own(tmp_path):
    config = configured(f"run.root={tmp_path}")
    names = []
    for _ in range(3):
        mine = fresh(config)
        names.append(mine.run.name)
        mine.run_dir.mkdir()
        (mine.run_dir / "events.jsonl").touch()
    assert names == ["demo", "demo-2", "demo-3"]
    assert fresh(configured(f"run.root={tmp_path}", "run.name=other")).run.name == "other"


def test_a_directory_of_a_start_that_was_refused_is_used_again_and_a_foreign_one_is_not(tmp_path):
    config = configured(f"run.root={tmp_path}")
    (tmp_path / "demo" / "logs").mkdir(parents=True)
    (tmp_path / "demo" / "supervisor.lock").touch()
    assert fresh(config).run.name == "demo"
    (tmp_path / "demo" / "my notes").touch()
    (tmp_path / "demo-2").touch()
    assert fresh(config).run.name == "demo-3"


def test_images_are_counted_by_name(tmp_path):
    for name in ("train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "train/b/.DS_Store", "test/a/1.jpg"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for root in ("", "./", "pictures/"):
        with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as tar:
            for name in ("train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"):
                tar.addfile(tarfile.TarInfo(root + name), io.BytesIO())
        assert training_images(str(tmp_path / "images.tar.gz")) == 2
    (tmp_path / "cifar" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "cifar" / "cifar-10-batches-py" / "batches.meta").touch()
    assert training_images(str(tmp_path / "tree")) == 3
    assert training_images(str(tmp_path / "cifar")) == training_images("download") == 50_000
    assert training_images("sample") == 5_000


@pytest.mark.parametrize("content", [None, b"", b"not a tar", b"\x1f\x8b\x08\x00torn"])
def test_what_cannot_be_counted_is_left_to_the_run_to_complain_about(tmp_path, content):
    path = tmp_path / "images.tar.gz"
    if content is not None:
        path.write_bytes(content)
    assert training_images(str(path)) is None


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_tar_that_is_damaged_in_the_middle_is_left_to_the_run_to_complain_about(tmp_path, compression):
    path = tmp_path / "images.tar"
    chance = random.Random(1)
    with tarfile.open(path, f"w:{compression}") as tar:
        for number in range(50):
            member = tarfile.TarInfo(f"train/a/{number}.jpg")
            member.size = 1000
            tar.addfile(member, io.BytesIO(chance.randbytes(1000)))
    whole = path.read_bytes()
    assert training_images(str(path)) == 50
    for _ in range(20):
        at = chance.randrange(len(whole) // 4, len(whole) - 100)
        path.write_bytes(whole[:at] + chance.randbytes(50) + whole[at + 50 :])
        assert (training_images(str(path)) or 0) <= 50  # by names alone: a picture's damage may show nowhere


# --- the epilogue --------------------------------------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self):
        self.now += 1.0
        return self.now


def write(run_dir, *, accuracies, is_killed=True):
    events, metrics = EventLog(run_dir / "events.jsonl", Clock()), JsonLines(run_dir / "metrics.jsonl")
    events.append("start", attempt=0, nodes=4, procs_per_node=1)
    events.append("form", attempt=1, generation=1, world_size=4)
    events.append("first_step", step=1, attempt=1)
    if is_killed:
        events.append("fault", cause="peer_loss", rank=None, node=3, exit=-9, step=40, message="lost")
        events.append("form", attempt=2, generation=2, world_size=4)
        events.append("resume", step=33, source="disk", lost_steps=7, attempt=2)
        events.append("first_step", step=34, attempt=2)
    for i, accuracy in enumerate(accuracies):
        metrics.append({"kind": "eval", "step": 50 + i, "time": 1010.0 + i, "attempt": 2, "accuracy": accuracy})
    classes = [str(i) for i in range(10)]
    document = {"step": 60, "classes": classes, "confusion": [[1] * 10] * 10, "samples": []}
    (run_dir / "evaluation.json").write_text(json.dumps(document))
    events.append("finish", step=60, metrics={}, seconds=60.0, attempt=2)


def test_the_epilogue_tells_what_was_seen(tmp_path):
    config = configured(f"run.root={tmp_path}")
    write(config.run_dir, accuracies=[0.213, 0.3, 0.389])
    lines = epilogue(config, killed_at=1003.5)
    assert lines[0] == "test accuracy  rose from 21.3% to 38.9% (chance is 10%)"
    assert lines[1] == "restarts       1, 7 steps done again; 3.5 s from the kill to the first new step"
    assert lines[2] == f"report         {config.run_dir / 'report.html'}"
    assert (config.run_dir / "report.html").exists()


def test_the_epilogue_claims_nothing_that_was_not_seen(tmp_path, monkeypatch):
    config = configured(f"run.root={tmp_path}", "run.name=a")
    write(config.run_dir, accuracies=[0.2, 0.1], is_killed=False)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    lines = epilogue(config, killed_at=None)
    assert lines[0] == "test accuracy  went from 20.0% to 10.0% (chance is 10%)"
    assert lines[1].startswith("report         not written: the report draws its charts with plotly")
    assert len(lines) == 2


def test_commands_to_try_next_are_called_as_the_user_called_this_one(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tensorboard").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    text = "\n".join(try_next(configured("run.name=demo-2"), Typed("bin/ddp", Path("my configs/demo.json"))))
    assert "try next       bin/ddp local --config 'my configs/demo.json' --workers 2" in text
    assert "bin/tensorboard --logdir runs/demo-2/tensorboard" in text
    assert "bin/ddp demo --config 'my configs/demo.json' --data full" in text
    own = configured("data.source=my images", "task.name=imagefolder", "model.name=resnet18", "optim.epochs=9")
    first, *_ = try_next(own, Typed("ddp", None), said={"task.name", "model.name", "optim.epochs", "run.name"})
    words = shlex.split(first.removeprefix("try next"))
    settings = [value for flag, value in pairwise(words) if flag == "--set"]
    again = load(None, settings)
    assert (again.data.source, again.task.name, again.model.name, again.optim.epochs) == ("my images", "imagefolder", "resnet18", 2)
    text = "\n".join(try_next(configured("data.source=download"), Typed("elsewhere/ddp", None)))
    assert "tensorboard" not in text
    assert "--data full" not in text
    assert "elsewhere/ddp local --workers 2" in text
