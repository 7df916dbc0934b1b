"""The tasks printed in docs/your-own-model.md run as they stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from ddp_trainer.config import load
from ddp_trainer.errors import ConfigError
from ddp_trainer.tasks.registry import load_task

PAGE = Path(__file__).parents[3] / "docs" / "your-own-model.md"
TEXT = PAGE.read_text(encoding="utf-8")
MODULES = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^ddp local .*--set (task\.name=\S+)", TEXT, re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The reader's folder: the files of the page saved under their names."""
    for name, source in MODULES.items():
        (tmp_path / name).write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_every_module_of_the_page_is_started_by_one_of_its_commands():
    assert {setting.partition("=")[2].partition(":")[0] + ".py" for setting in COMMANDS} == set(MODULES)


@pytest.mark.parametrize("setting", COMMANDS)
def test_a_task_of_the_page_learns(folder, cache_dir, setting):
    task = load_task(load(None, [setting, f"data.cache_dir={cache_dir}"]))
    train, test = task.datasets(lambda *_: None)
    torch.manual_seed(0)
    model = task.build_model()
    inputs, targets = train.batch(torch.arange(0, len(train), 20), torch.zeros(len(range(0, len(train), 20)), dtype=torch.int64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = task.loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    held_out, answers = test.batch(torch.arange(10), None)
    assert all(value.ndim == 0 for value in task.metrics(model(held_out), answers).values())
    assert train.fingerprint != test.fingerprint
    assert train.fingerprint == task.datasets(lambda *_: None)[0].fingerprint


def test_options_reach_the_users_task(folder, cache_dir):
    task = load_task(load(None, ["task.name=my_task:SmallCnn", "task.options.width=8", f"data.cache_dir={cache_dir}"]))
    assert task.build_model()[0].out_channels == 8


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("my_tusk:SmallCnn", "there is no module 'my_task'"),
        ("my_task:LargeCnn", "has no 'SmallCnn'"),
        ("broken:SmallCnn", "my_task does not import: ..."),
        ("bare:SmallCnn", "has no 'metrics', which a task needs"),
    ],
)
def test_the_messages_of_the_page_are_those_of_the_code(folder, name, row):
    (folder / "broken.py").write_text("import no_such_library")
    (folder / "bare.py").write_text(
        re.sub(r"    def metrics.*?\n\n", "", MODULES["my_regression.py"] + "\n\nSmallCnn = Saddle\n", flags=re.DOTALL)
    )
    assert f"| `{row}` |" in TEXT
    expected = row.replace("my_task", name.partition(":")[0]).replace("SmallCnn", name.partition(":")[2]).removesuffix("...")
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_task(load(None, [f"task.name={name}"]))
