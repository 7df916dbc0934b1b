"""Fixtures that start real `ddp` runs; see `runs`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import PATIENCE_SECONDS, REPOSITORY, RUNS, Run

from ddp_trainer.resilience.zygote import Zygote


@pytest.fixture(scope="session")
def warm():
    zygote = Zygote.fork(
        ("torch.distributed", "torch.nn.parallel", "torchvision.models", "ddp_trainer.resilience.agent", "ddp_trainer.cli")
    )
    zygote.wait_ready()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """Decoded images, shared by all runs of the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def ddp(warm, cache_dir, tmp_path):
    """Start `ddp ...` and give its `Run`; whatever is left at the end is stopped."""
    started = []

    def start(*argv, run_dir=None, env=None):
        home = run_dir or tmp_path / f"run-{len(started)}"
        log = tmp_path / f"ddp-{len(started)}.log"
        arguments = [str(item) for item in argv]
        if argv[0] in {"local", "launch", "demo"}:
            arguments += ["--run-dir", str(home), "--set", f"data.cache_dir={cache_dir}"]
        full = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)]), **(env or {})}
        pid = warm.spawn("runs:run_command", {"argv": arguments}, full, log)
        run = Run(warm, pid, log, home)
        RUNS[pid] = run
        started.append(run)
        return run

    yield start
    for run in started:
        if run.code is None:
            warm.kill(run.pid, signal.SIGKILL)
            run.wait()


@pytest.fixture
def smoke():
    """Arguments of a small, quick and exactly repeatable run: resnet18, real images, fp32."""
    return (
        "local",
        "--config",
        REPOSITORY / "configs" / "smoke.json",
        "--set",
        "precision.dtype=fp32",
        "--set",
        "optim.lr=0.02",
    )


@pytest.fixture
def cold_ddp():
    """The installed console script, started from nothing."""

    def start(*argv, **options):
        command = [str(Path(sys.executable).parent / "ddp"), *map(str, argv)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, **options)

    return start
