"""What the command line does around its commands: signals before the imports, the platform, last words, its own name."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_trainer import cli
from ddp_trainer.errors import ConfigError
from ddp_trainer.resilience import entrypoint

AS_PID = """
import os, signal, sys
real = os.getpid()
os.getpid = lambda: {pid}
class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(real, signal.SIGTERM)
            sys.exit(7)
sys.meta_path.insert(0, Importing())
import ddp_trainer.cli
"""


@pytest.mark.parametrize(("pid", "code"), [("1", 143), ("2", -signal.SIGTERM)])
def test_pid_1_hears_a_sigterm_that_comes_while_it_is_still_importing(pid, code):
    # as PID 1 the kernel would drop the signal; any other process is ended by it anyway
    assert subprocess.run([sys.executable, "-c", AS_PID.format(pid=pid)], check=False).returncode == code


def test_another_system_than_linux_is_refused_with_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("ddp: the trainer needs Linux")


@pytest.mark.parametrize(
    ("configuration", "words"),
    [("absent.json", "cannot read the configuration"), ("good.json", "nothing says which of them this is")],
)
def test_a_container_whose_configuration_is_bad_says_so_in_its_last_words(tmp_path, monkeypatch, configuration, words):
    (tmp_path / "good.json").write_text('{"distributed": {"nodes": 4}}')
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(entrypoint, "TERMINATION_LOG", log)
    for name in ("PET_NODE_RANK", "NODE_RANK", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=words):
        cli.launch(config=tmp_path / configuration)
    said = json.loads(log.read_text())
    assert (said["cause"], said["exit"]) == ("config_error", 2)
    assert words in said["message"]


@pytest.mark.parametrize("typed", [".venv/bin/ddp", "/opt/other/bin/ddp"])
def test_the_programs_name_is_as_it_was_typed(monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", [typed, "demo"])
    assert cli._program() == typed


def test_the_programs_name_is_short_where_the_path_finds_it(monkeypatch, tmp_path):
    (tmp_path / "ddp").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "ddp"), "demo"])  # what the kernel makes of a command found on PATH
    assert shutil.which("ddp")
    assert cli._program() == "ddp"


def test_workers_win_over_a_preset_that_repeats_its_number_of_nodes():
    preset = Path(__file__).parents[3] / "configs" / "cluster-16.json"
    config = cli._load(preset, None, None, 2)
    assert (config.distributed.nodes, config.world_size) == (2, 8)
    with pytest.raises(ConfigError, match="world_size is 16 but nodes x procs_per_node = 2 x 4 = 8"):
        cli._load(preset, ["world_size=16"], None, 2)


def test_a_run_directory_may_have_a_name_of_digits(tmp_path):
    config = cli._load(None, None, tmp_path / "2024", None)
    assert (config.run.name, config.run_dir) == ("2024", tmp_path / "2024")
