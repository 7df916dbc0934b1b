"""Other tasks than the default train through the whole program: the page's own, which has no classes, and a folder of other images."""

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from runs import REPOSITORY

PAGE = (REPOSITORY / "docs" / "your-own-model.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def page_modules(tmp_path):
    """What makes the page's files importable."""
    for name, source in MODULES.items():
        (tmp_path / name).write_text(source)
    return {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(Path(__file__).parents[1]), str(tmp_path)])}


def lines_of(run):
    (evaluation,) = [line for line in run.metrics if line["kind"] == "eval"]
    trained = [line for line in run.metrics if line["kind"] == "train"]
    return trained, evaluation


def test_a_regression_has_a_loss_and_no_accuracy_anywhere(ddp, ddp_apart, quick, page_modules):
    settings = ("task.name=my_regression:Saddle", "optim.max_steps=40", "optim.lr=0.1", "telemetry.log_every_steps=5")
    run = ddp(*quick, "--workers", 2, *(part for setting in settings for part in ("--set", setting)), env=page_modules)
    assert run.wait() == 0, run.output
    trained, evaluation = lines_of(run)
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert all(line["accuracy"] is None for line in trained)
    assert "accuracy" not in evaluation
    assert run.progress["accuracy"] is None
    assert "train acc" not in run.output
    code, _, errors = ddp_apart("report", run.run_dir)
    assert code == 0, errors
    page = (run.run_dir / "report.html").read_text(encoding="utf-8")
    assert "This task has no classes." in page
    assert "Test loss" in page
    assert "did not get that far" not in page
    assert "files are missing" not in page


def test_a_folder_of_other_images_trains(ddp, quick, tmp_path):
    for part, count in (("train", 16), ("test", 4)):
        for shade, name in ((40, "dark"), (200, "light")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30), (shade + i, shade, shade)).save(folder / f"{i}.png")
    settings = ("task.name=imagefolder", f"data.source={tmp_path / 'images'}", "data.global_batch=8", "optim.max_steps=4")
    run = ddp(*quick, "--workers", 2, *(part for setting in settings for part in ("--set", setting)))
    assert run.wait() == 0, run.output
    assert json.loads((run.run_dir / "evaluation.json").read_text())["classes"] == ["dark", "light"]
    assert 0 <= lines_of(run)[1]["accuracy"] <= 1
