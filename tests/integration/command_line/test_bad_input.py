"""What a user can get wrong ends with its exit code and one sentence: what is wrong, where, what to do. Never a stack trace."""

import os
import shutil
import signal
import socket
import tarfile
from pathlib import Path

import pytest
from runs import REPOSITORY

SAMPLE = REPOSITORY / "trainer" / "ddp_trainer" / "data" / "cifar10-sample.tar.gz"

BAD_SETTINGS = {
    "unknown key": (["optim.lrr=1"], 2, ["unknown key 'optim.lrr'", "warmup_ratio"]),
    "wrong type": (["optim.lr=fast"], 2, ["optim.lr", "'fast'"]),
    "world size mismatch": (["world_size=3"], 2, ["world_size is 3", "2 x 1 = 2"]),
    "batch not divisible": (["data.global_batch=65"], 2, ["65 is not divisible by the 4", "use a multiple of 4"]),
    "not a setting": (["optim.lr"], 2, ["'optim.lr'", "key.path=value"]),
    "nccl without a GPU": (["distributed.backend=nccl"], 2, ["distributed.backend is nccl", "gloo"]),
    "GPUs that are not there": (["distributed.device=cuda", "distributed.procs_per_node=2"], 2, ["4 GPUs", "distributed.device=cpu"]),
    "unknown model": (["model.name=resnet7"], 2, ["'resnet7'", "resnet50"]),
    "task that does not import": (["task.name=no_such_module:Task"], 2, ["no_such_module"]),
    "task of an unknown name": (["task.name=cifar11"], 2, ["cifar11", "package.module:name"]),
    "missing data": (["data.source=/nowhere/at/all"], 3, ["/nowhere/at/all"]),
}


def assert_sentence(run, code, words):
    assert run.wait() == code, run.output
    last = run.output.strip().splitlines()[-1]
    for word in words:
        assert word in last, run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_setting_is_refused_with_a_sentence(ddp, smoke, name):
    settings, code, words = BAD_SETTINGS[name]
    if "GPU" in name and shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU, so asking for one is right")
    run = ddp(*smoke, *(part for setting in settings for part in ("--set", setting)))
    assert_sentence(run, code, words)


@pytest.fixture
def tree(tmp_path):
    """A small real image tree: two of the sample's images per class and split."""
    seen = {}
    with tarfile.open(SAMPLE) as tar:
        for member in tar:
            folder = Path(member.name).parent
            if member.isfile() and seen.setdefault(folder, 0) < 2:
                seen[folder] += 1
                tar.extract(member, tmp_path / "tree", filter="data")
    return tmp_path / "tree"


def test_a_truncated_image_is_named(ddp, smoke, tree):
    victim = next((tree / "train").glob("*/*.jpg"))
    victim.write_bytes(victim.read_bytes()[:200])
    assert_sentence(ddp(*smoke, "--set", f"data.source={tree}"), 3, [victim.name])


def test_an_empty_class_folder_is_named(ddp, smoke, tree):
    folder = next((tree / "train").iterdir())
    for image in folder.iterdir():
        image.unlink()
    assert_sentence(ddp(*smoke, "--set", f"data.source={tree}"), 3, [folder.name])


def test_a_truncated_tar_is_named(ddp, smoke, tmp_path):
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes(SAMPLE.read_bytes()[: SAMPLE.stat().st_size // 2])
    assert_sentence(ddp(*smoke, "--set", f"data.source={torn}"), 3, ["torn.tar.gz"])


def test_a_run_directory_that_cannot_be_written_is_refused(ddp, smoke, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert_sentence(ddp(*smoke, run_dir=tmp_path / "file" / "run"), 3, ["cannot be written", "--run-dir"])


def test_a_port_in_use_is_named(ddp, smoke):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert_sentence(ddp(*smoke, "--set", f"telemetry.port={port}"), 2, [f"port {port}", "telemetry.port"])


def test_a_run_directory_of_another_configuration_says_which_keys_differ(ddp, quick, tmp_path):
    home = tmp_path / "run"
    assert ddp(*quick, "--set", "optim.max_steps=2", run_dir=home).wait() == 0
    before = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file() and not path.name.endswith("lock")}
    other = ("--set", "optim.max_steps=3", "--set", "run.seed=7")
    refused = ddp(*quick, *other, run_dir=home)
    assert_sentence(refused, 3, ["seed: 0 -> 7", "run.resume=force"])
    assert [words["exit"] for words in refused.words_of_agents()] == [3, 3], "all nodes end with the same code"
    assert_sentence(ddp(*quick, "--set", "run.resume=never", run_dir=home), 3, ["run.resume is never"])
    assert {name: (home / name).read_bytes() for name in before} == before, "who is refused leaves everything as it was"
    assert {"config.json", "progress.json", "events.jsonl", "metrics.jsonl", "ledger.json"} <= before.keys()
    forced = ddp(*quick, *other, "--set", "run.resume=force", run_dir=home)
    assert forced.wait() == 0, forced.output
    assert forced.of_kind("resume")[-1]["step"] == 2


def test_two_runs_on_one_directory_are_refused(ddp, small, tmp_path):
    home = tmp_path / "run"
    first = ddp(*small, "--set", "optim.max_steps=16", "--set", "fault_tolerance.hang_floor_seconds=600", run_dir=home)
    first.trained_to(1)
    rank = first.pids("rank")[1]
    os.kill(rank, signal.SIGSTOP)  # on any machine the first run is still there when the second one starts
    assert_sentence(ddp(*small, run_dir=home), 3, [f"in use by another run (process {first.pid})", "--run-dir"])
    # the first one has not lost what it needs to recover: its agents' shared memory and names
    os.kill(rank, signal.SIGKILL)
    assert first.wait() == 0, first.output
    assert first.of_kind("restart")


def test_the_installed_command_starts_from_nothing(cold_ddp, tmp_path):
    good = cold_ddp("config", "check", REPOSITORY / "configs" / "cluster-16.json")
    assert good.returncode == 0
    assert "16 ranks" in good.stdout
    bad = cold_ddp("config", "check", tmp_path / "absent.json")
    assert bad.returncode == 2
    assert bad.stderr.startswith("ddp: cannot read the configuration")
    wrong = cold_ddp("lokal")
    assert wrong.returncode == 2
    assert "lokal" in wrong.stderr
