"""`ddp checkpoints`: what each command prints, changes, refuses, and ends with."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import torch as saved_tensors
from safetensors.torch import load_file
from small_checkpoints import commit, edited, files_of, manifest_of, tensors_of

from ddp_trainer.checkpoint.lock import RunLock
from ddp_trainer.checkpoint.manifest import verify
from ddp_trainer.checkpoint.store import CheckpointStore

DDP = Path(sys.executable).with_name("ddp")
FILES_BYTES = sum(len(buffer) for buffers in files_of(10).values() for buffer in buffers)


@pytest.fixture
def run_dir(tmp_path):
    """A run with checkpoints of the steps 10, 20 and 30."""
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    for step in (10, 20, 30):
        commit(store, step, {"loss": 1 / step})
    return tmp_path / "run"


def store_of(run_dir):
    return CheckpointStore(run_dir / "checkpoints")


def spoil(run_dir, step):
    path = store_of(run_dir).folder(step) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture
def checkpoints(ddp_apart):
    """Run `ddp checkpoints ...`; gives what it printed, or its sentence where it printed nothing."""

    def run(*words, code=0):
        ended, printed, said = ddp_apart("checkpoints", *words)
        assert ended == code, printed + said
        assert "Traceback" not in said
        return printed if code in {0, 3} and printed else said

    return run


def rows(text):
    heading, *lines = text.splitlines()
    assert heading.split() == ["step", "age_seconds", "bytes", "verified"]
    return [line.split(maxsplit=3) for line in lines]


def everything_below(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_list_in_a_pipe_is_plain_columns_newest_first_and_reads_manifests_only(checkpoints, run_dir):
    spoil(run_dir, 20)
    (store_of(run_dir).folder(10) / "manifest.json").write_text("{")
    found = rows(checkpoints("list", run_dir))
    assert [(step, size, verdict) for step, _, size, verdict in found[:2]] == [
        ("30", str(FILES_BYTES), "not looked at"),
        ("20", str(FILES_BYTES), "not looked at"),
    ]
    assert int(found[0][1]) > 10**8, "saved one second after 1970"
    assert found[2][:3] == ["10", "-", "-"]
    assert found[2][3].startswith("no: manifest invalid")


def test_list_with_verify_hashes_and_moves_nothing(checkpoints, run_dir):
    spoil(run_dir, 20)
    before = everything_below(run_dir)
    assert [row[3] for row in rows(checkpoints("list", run_dir, "--verify"))] == [
        "yes",
        "no: model.safetensors: SHA-256 differs from the manifest's",
        "yes",
    ]
    assert everything_below(run_dir) == before


def test_list_on_a_terminal_is_a_table_with_units(run_dir):
    mine, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "140", "TERM": "xterm"}
    with subprocess.Popen([DDP, "checkpoints", "list", run_dir], stdout=theirs, env=environment) as listing:
        os.close(theirs)
        shown = b""
        while block := read_terminal(mine):
            shown += block
    text = shown.decode()
    assert listing.returncode == 0
    assert "┃" in text
    for word in ("step", "age", "size", "metrics", "verified", "bytes", "loss 0.1", "days", "not looked at"):
        assert word in text


def read_terminal(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how a terminal says that its other side is closed
        return b""


def test_verify_ends_with_3_if_one_is_bad_and_moves_nothing(checkpoints, run_dir):
    assert [row[3] for row in rows(checkpoints("verify", run_dir))] == ["yes"] * 3
    spoil(run_dir, 20)
    before = everything_below(run_dir)
    assert "20" in checkpoints("verify", run_dir, code=3)
    assert [row[0] for row in rows(checkpoints("verify", run_dir, "--step", 30))] == ["30"]
    assert len(rows(checkpoints("verify", run_dir, "--step", 20, code=3))) == 1
    assert everything_below(run_dir) == before


def test_verify_counts_another_version_as_not_verified(checkpoints, run_dir):
    path = store_of(run_dir).folder(20) / "manifest.json"
    path.write_bytes(edited(path.read_bytes(), format_version=9))
    assert "is of format version 9" in rows(checkpoints("verify", run_dir, code=3))[1][3]


def test_prune_keeps_the_newest_and_always_the_newest_that_verifies(checkpoints, run_dir):
    assert checkpoints("prune", run_dir, "--keep", 2) == "removed: 10\n"
    spoil(run_dir, 30)
    assert checkpoints("prune", run_dir, "--keep", 1) == "removed: none\n"
    assert store_of(run_dir).steps() == [20, 30]
    assert store_of(run_dir).load_newest().manifest.step == 20


def test_prune_is_refused_while_a_run_uses_the_directory(checkpoints, run_dir):
    lock = RunLock.acquire(run_dir, 0)
    assert "is in use by another run" in checkpoints("prune", run_dir, "--keep", 1, code=3)
    assert store_of(run_dir).steps() == [10, 20, 30]
    lock.release()
    assert checkpoints("prune", run_dir, "--keep", 1) == "removed: 10, 20\n"


def test_export_writes_the_newest_good_model_and_says_how_to_load_it(checkpoints, run_dir, tmp_path):
    spoil(run_dir, 30)
    text = checkpoints("export", run_dir, tmp_path / "out")
    model = load_file(tmp_path / "out" / "model.safetensors")
    assert {f"model.{name}": tensor.tolist() for name, tensor in model.items()} == {
        name: tensor.tolist() for name, tensor in tensors_of(20).items() if name.startswith("model.")
    }
    assert "after step 20" in text
    assert (tmp_path / "out" / "README.md").read_text().strip() == text.strip()
    code = text.partition("```python\n")[2].partition("```")[0]
    loaded = {}
    network = torch.nn.Module()
    network.register_buffer("weight", torch.zeros(3, 4))
    network.register_buffer("count", torch.tensor(0))
    exec(code, {"model": network}, loaded)  # what it says can be done as it is said
    assert network.count.item() == 20


def test_export_takes_a_step_and_averaged_parameters_with_the_models_own_buffers(checkpoints, run_dir, tmp_path):
    text = checkpoints("export", run_dir, tmp_path / "out", "--step", 10, "--ema")
    model = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(model["weight"], tensors_of(10)["ema.weight"])
    assert model["count"].item() == 10
    assert "averaged (EMA)" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["verify", "RUN", "--step", "15"], "has no checkpoint of step 15; it has: 10, 20, 30"),
        (["export", "RUN", "OUT", "--step", "15"], "has no checkpoint of step 15"),
        (["export", "RUN", "OUT", "--step", "20"], "does not verify: model.safetensors: SHA-256 differs"),
        (["export", "RUN", "RUN/lock"], "cannot be written: .*; give another folder"),
        (["list", "OUT"], "holds no checkpoints; give the directory of a run"),
        (["prune", "OUT", "--keep", "1"], "holds no checkpoints"),
        (["verify", "OUT"], "holds no checkpoints"),
        (["export", "OUT", "RUN/out"], "holds no checkpoints"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_3(checkpoints, run_dir, tmp_path, words, sentence):
    spoil(run_dir, 20)
    (run_dir / "lock").touch()
    said = checkpoints(*(word.replace("RUN", str(run_dir)).replace("OUT", str(tmp_path / "out")) for word in words), code=3)
    assert said.count("\n") == 1
    assert re.search(sentence, said), said
    assert not (tmp_path / "out").exists()


def test_export_overwrites_nothing_and_does_not_invent_averages(checkpoints, run_dir, tmp_path):
    out = tmp_path / "out"
    checkpoints("export", run_dir, out)
    before = everything_below(out)
    assert f"{out}/model.safetensors exists; remove it" in checkpoints("export", run_dir, out, code=3)
    assert everything_below(out) == before
    files = {name: content for name, content in files_of(40).items() if name != "ema.safetensors"}
    store_of(run_dir).commit(files, lambda entries: manifest_of(40, entries), 1)
    assert "has no averaged parameters" in checkpoints("export", run_dir, tmp_path / "other", "--ema", code=3)
    assert not (tmp_path / "other").exists()


def test_a_wrong_number_is_a_wrong_command_line(checkpoints, run_dir):
    assert "--keep" in checkpoints("prune", run_dir, "--keep", 0, code=2)
    assert store_of(run_dir).steps() == [10, 20, 30]


def test_exported_files_are_plain_safetensors(checkpoints, run_dir, tmp_path):
    checkpoints("export", run_dir, tmp_path / "out")
    assert saved_tensors.load((tmp_path / "out" / "model.safetensors").read_bytes()).keys() == {"weight", "count"}
    assert verify(store_of(run_dir).folder(30)).step == 30  # and the checkpoint is as it was


# --- what runs leave for them --------------------------------------------------------------------------------------------------------

FEW = ("--workers", 2, "--set", "optim.max_steps=4", "--set", "checkpoint.every_steps=2")


def forget_the_evaluation(folder):
    """Make it what a fault in the last evaluation leaves: the same tensors, written before the evaluation."""
    state, path = json.loads((folder / "state.json").read_text()), folder / "manifest.json"
    state["history"] = state["history"][:-1]
    content = json.dumps(state).encode()
    (folder / "state.json").write_bytes(content)
    files = json.loads(path.read_text())["files"] | {"state.json": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    path.write_bytes(edited(path.read_bytes(), files=files, metrics={}))


def test_a_fault_in_the_last_evaluation_costs_the_final_checkpoint_no_metrics(ddp, small, checkpoints, tmp_path):
    home = tmp_path / "run"
    folder = home / "checkpoints" / "step-000000004"
    run = ddp(*small, *FEW, run_dir=home)
    assert run.wait() == 0, run.output
    before = json.loads((folder / "manifest.json").read_text())
    forget_the_evaluation(folder)
    assert "not evaluated" in checkpoints("export", home, tmp_path / "first")
    for attempt in (2, 2):  # the third start has nothing left to do
        run = ddp(*small, *FEW, run_dir=home)
        assert run.wait() == 0, run.output
        assert [line["attempt"] for line in run.metrics if line["kind"] == "eval" and line["step"] == 4] == [attempt]
        assert verify(folder).metrics == before["metrics"]
    assert "not evaluated" not in checkpoints("export", home, tmp_path / "second")


def test_never_resuming_needs_a_second_home_of_its_own_and_bad_checkpoints_come_back_from_it(ddp, small, tmp_path):
    def start(run, home, *more):
        started = ddp(*small, *FEW, "--set", f"checkpoint.mirror_url=file://{tmp_path}/{home}", *more, run_dir=tmp_path / run)
        return started.wait(), started.output

    never = ("--set", "run.resume=never", "--set", "checkpoint.mirror_every=5")
    code, output = start("first", "home", *never)
    assert code == 0, output
    assert (tmp_path / "home" / "step-000000004" / "manifest.json").is_file(), "the last one is copied, whatever its number"
    code, output = start("second", "home", *never)
    assert code == 2, output
    assert "is killed" not in output, "the other agent waits for one that never was there, and leaves when it is told to"
    assert f"checkpoint.mirror_url file://{tmp_path}/home holds checkpoints (the newest: step 4) and run.resume is never" in output
    for model in (tmp_path / "first" / "checkpoints").glob("step-*/model.safetensors"):
        model.write_bytes(b"rubbish")
    code, output = start("first", "home")
    assert code == 0, output
    assert verify(tmp_path / "first" / "checkpoints" / "step-000000004")
