"""Whatever is given to `ddp`, and wherever its output goes: an exit code and one sentence. In this process: nothing here starts a run."""

import io
import json
import os
import sys

import pytest

from ddp_trainer import cli

TOO_LONG = "x" * 300


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """Call `ddp ...` in an empty folder: its exit code, and what it wrote to stdout and to stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ddp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    "command",
    [
        ("report", TOO_LONG),
        ("top", "--once", TOO_LONG),
        ("checkpoints", "list", TOO_LONG),
        ("checkpoints", "verify", TOO_LONG),
        ("checkpoints", "prune", "--keep", "2", TOO_LONG),
        ("checkpoints", "export", TOO_LONG, "out"),
        ("config", "schema", TOO_LONG),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_name_that_is_too_long_is_named(said, command):
    code, out, errors = said(*command)
    assert (code, out, errors.count("\n")) == (3, "", 1)
    assert TOO_LONG in errors
    assert "File name too long" in errors


@pytest.mark.parametrize("is_buffered", [True, False])
@pytest.mark.parametrize("command", [("config", "show"), ("config", "schema"), ("checkpoints", "list", "run"), ("--help",)], ids=" ".join)
def test_output_to_a_full_disk_is_a_sentence(said, monkeypatch, tmp_path, command, is_buffered):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with io.TextIOWrapper(open("/dev/full", "wb", -1 if is_buffered else 0), write_through=not is_buffered) as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        code, _, errors = said(*command)
        assert full.closed  # else the interpreter would fail at its end, and leave with 120
    assert (code, errors) == (3, "ddp: standard output: No space left on device; mend that, or give another path\n")


def test_whoever_reads_the_output_may_leave_early(said, monkeypatch, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert said("checkpoints", "list", "run") == (1, "", "")
        assert pipe.closed


def test_without_any_output_a_command_still_works(said, monkeypatch, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of >&-
    assert said("checkpoints", "list", "run") == (0, "", "")
    sys.stdout.close()


def test_a_path_that_is_no_text_can_be_printed(said, tmp_path):
    file = tmp_path / "caf\udce9.json"
    file.write_text("{}")
    code, out, errors = said("config", "check", file)
    assert (code, errors) == (0, "")
    assert r"caf\udce9.json: good" in out


@pytest.mark.parametrize("name", ["sp ace", "..", "-dash", "a" * 129])
def test_a_run_directory_whose_name_no_run_can_have_names_the_option(said, name):
    code, _, errors = said("local", "--run-dir", f"runs/{name}")
    assert code == 2
    assert errors.startswith(f"ddp: --run-dir runs/{name}: ")
    assert "letters, digits" in errors


def test_the_schema_is_written_to_a_file_and_never_over_one(said, tmp_path):
    file = tmp_path / "schema.json"
    assert said("config", "schema", file) == (0, f"{file}\n", "")
    assert json.loads(file.read_text()) == json.loads(said("config", "schema")[1])
    file.write_text("a configuration")
    code, _, errors = said("config", "schema", file)
    assert (code, file.read_text()) == (2, "a configuration")
    assert f"{file} exists" in errors
