"""From task.name to a task, or to the sentence that says why not."""

from __future__ import annotations

import inspect
import sys
import textwrap

import pytest

from ddp_trainer.config import RunConfig, validate
from ddp_trainer.errors import CONFIG_ERROR, ConfigError
from ddp_trainer.tasks.cifar10 import Cifar10
from ddp_trainer.tasks.imagefolder import ImageFolder
from ddp_trainer.tasks.protocol import TASK_MEMBERS, Task
from ddp_trainer.tasks.registry import load_task


def configured(name: str, **data) -> RunConfig:
    return validate({"task": {"name": name}, "data": data}, "the test")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory, and a way to write modules into it that no other test sees."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)

    def write(name: str, source: str) -> None:
        (tmp_path / name).write_text(textwrap.dedent(source))

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


COMPLETE = """
class Mine:
    classes = ()
    def __init__(self, config): self.config = config
    def build_model(self): ...
    def datasets(self, report): ...
    def loss(self, outputs, targets): ...
    def metrics(self, outputs, targets): ...
def factory(config): return Mine(config)
def two(config, more): ...
number = 3
"""


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_task(configured(name))
    assert caught.value.exit is CONFIG_ERROR
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_built_in_tasks_load_without_touching_any_data(tmp_path):
    missing = str(tmp_path / "nowhere")
    assert type(load_task(configured("cifar10", source=missing))) is Cifar10
    assert type(load_task(configured("imagefolder", source=missing))) is ImageFolder


def test_a_model_that_torchvision_lacks_is_refused_before_the_data_are_fetched(tmp_path):
    config = validate({"model": {"name": "vgg16"}, "data": {"source": str(tmp_path / "nowhere")}}, "the test")
    with pytest.raises(ConfigError, match=r"model.name is 'vgg16'; known are .*resnet50, .*wide_resnet50_2"):
        load_task(config)


@pytest.mark.parametrize("name", ["Mine", "factory"])
def test_a_class_or_function_in_the_current_directory_is_called_with_the_configuration(here, name):
    here("mine_complete.py", COMPLETE)
    config = configured(f"mine_complete:{name}")
    assert load_task(config).config is config


def test_a_file_here_cannot_stand_in_for_the_standard_library(here, monkeypatch):
    here("json.py", "raise SystemExit('imported the wrong json')")
    here("mine_innocent.py", "import json\n" + COMPLETE)
    monkeypatch.delitem(sys.modules, "json")  # so that it is looked for again
    assert load_task(configured("mine_innocent:Mine")).classes == ()


def test_an_unknown_built_in_task_lists_the_known_ones():
    assert "built-in task (cifar10, imagefolder)" in refusal("mnist")


def test_a_missing_module_is_named_with_where_it_was_looked_for(here, tmp_path):
    message = refusal("not_there.task:Mine")
    assert "no module 'not_there'" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\nimport no_such_library\n", r"ModuleNotFoundError: No module named 'no_such_library'"),
        ("x = 1\ndef broken(:\n", "SyntaxError"),
        ("x = 1\nraise RuntimeError('no luck today')\n", "RuntimeError: no luck today"),
    ],
    ids=["import", "syntax", "any exception"],
)
def test_a_module_that_does_not_import_is_named_with_its_line(here, source, says):
    here("mine_broken.py", source)
    message = refusal("mine_broken:Mine")
    assert "mine_broken does not import" in message
    assert says in message
    assert "mine_broken.py line 2" in message


def test_a_missing_name_lists_what_the_module_has(here):
    here("mine_named.py", COMPLETE)
    assert "mine_named has no 'Yours'; it has: Mine, factory, two" in refusal("mine_named:Yours")


def test_something_that_cannot_be_called_with_a_configuration_is_refused(here):
    here("mine_uncallable.py", COMPLETE)
    assert "is a int, not a class or function" in refusal("mine_uncallable:number")
    assert "'more'" in refusal("mine_uncallable:two")


@pytest.mark.parametrize("member", TASK_MEMBERS)
def test_each_missing_member_is_named(here, member):
    lines = [line for line in COMPLETE.splitlines() if f"def {member}" not in line and f"{member} =" not in line]
    here(f"mine_without_{member}.py", "\n".join(lines))
    assert f"has no {member!r}, which a task needs" in refusal(f"mine_without_{member}:Mine")


def test_a_member_that_is_no_method_is_named(here):
    here("mine_unmethodical.py", COMPLETE.replace("def loss(self, outputs, targets): ...", "loss = 3"))
    assert "'loss' is not a method" in refusal("mine_unmethodical:Mine")


def test_what_a_constructor_raises_is_the_users_own(here):
    here("mine_raising.py", COMPLETE.replace("self.config = config", "raise ZeroDivisionError"))
    with pytest.raises(ZeroDivisionError):
        load_task(configured("mine_raising:Mine"))


def test_options_for_a_built_in_task_are_refused():
    config = validate({"task": {"name": "cifar10", "options": {"depth": 3}}}, "the test")
    with pytest.raises(ConfigError, match=r"task.options is .*depth.* but the task 'cifar10' takes none"):
        load_task(config)


def test_the_table_of_members_is_the_protocol():
    public = {name for name, _ in inspect.getmembers(Task) if not name.startswith("_")}
    assert public == set(TASK_MEMBERS)
