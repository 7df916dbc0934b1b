import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points

import pytest

import ddp_trainer.cli
from ddp_trainer.cli import BROUGHT


def brought(*entries):
    def found(*, group, name=None):
        assert group == BROUGHT
        return [EntryPoint(*entry, group) for entry in entries if name in (None, entry[0])]

    return found


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ddp", *arguments])
    with pytest.raises(SystemExit) as ended:
        ddp_trainer.cli.main()
    return ended.value.code


def test_the_operator_brings_runs_and_explain():
    assert {entry.name for entry in entry_points(group=BROUGHT)} >= {"runs", "explain"}


@pytest.mark.parametrize("name", ["runs", "explain"])
def test_a_brought_command_is_listed_and_has_its_own_help(monkeypatch, capsys, name):
    assert call(monkeypatch, "--help") == 0
    assert name in capsys.readouterr().out
    assert call(monkeypatch, name, "--help") == 0
    assert "--namespace" in capsys.readouterr().out


def test_a_command_that_does_not_load_is_left_out_and_calling_it_says_why(monkeypatch, capsys):
    monkeypatch.setattr(ddp_trainer.cli, "entry_points", brought(("broken", "no_such_module:command"), ("odd", "json:no_such_name")))
    assert call(monkeypatch, "--help") == 0
    listed = capsys.readouterr().out
    assert "broken" not in listed
    assert "report" in listed
    assert call(monkeypatch, "broken") == 2
    said = capsys.readouterr().err
    assert said.startswith("ddp: the command broken comes from no_such_module:command, which does not load here (No module named")
    assert said.count("\n") == 1


def test_a_brought_command_cannot_take_the_place_of_our_own(monkeypatch, capsys):
    monkeypatch.setattr(ddp_trainer.cli, "entry_points", brought(("config", "no_such_module:command")))
    assert call(monkeypatch, "config", "show") == 0
    assert '"seed"' in capsys.readouterr().out


def test_an_unknown_command_is_still_one_sentence(monkeypatch, capsys):
    assert call(monkeypatch, "trian") == 2
    assert "trian" in capsys.readouterr().err


def test_our_own_commands_load_nothing_of_the_operator():
    program = (
        "import sys, contextlib; sys.argv = ['ddp', 'config', 'show']\n"
        "with contextlib.suppress(SystemExit):\n    import ddp_trainer.cli; ddp_trainer.cli.main()\n"
        "print([name for name in sys.modules if name.startswith(('ddp_operator', 'kubernetes', 'aiohttp'))], file=sys.stderr)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True).stderr
    assert said.strip() == "[]"
