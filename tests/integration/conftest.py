"""Fixtures that start real `ddp` runs; see `runs`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import PATIENCE_SECONDS, REPOSITORY, RUNS, WARM, Run

from ddp_trainer.resilience.zygote import Zygote


def environment(more=None):
    """A run's: the test's own as it is now, where our code is, and what the test adds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)]), **(more or {})}


@pytest.fixture(scope="session")
def warm():
    zygote = Zygote.fork(WARM)
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
        pid = warm.spawn("runs:run_command", {"argv": arguments}, environment(env), log)
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
def ddp_apart(warm, tmp_path):
    """Run `ddp ...` to its end; its exit code, and what it wrote to stdout and to stderr."""

    def run(*argv):
        out, errors = (tmp_path / f"ddp-{len(RUNS)}.{stream}" for stream in ("out", "err"))
        pid = warm.spawn("runs:run_apart", {"argv": [str(item) for item in argv], "errors": str(errors)}, environment(), out)
        RUNS[pid] = Run(warm, pid, out, tmp_path)
        return RUNS[pid].wait(), out.read_text(), errors.read_text()

    return run


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
def quick(smoke):
    """The same with a small network, for runs that nobody disturbs."""
    return (*smoke, "--set", "task.name=small_network:QuickNetwork")


@pytest.fixture
def small(smoke):
    """A small network that takes its time, for runs that are disturbed in the middle; see `small_network`."""
    return (*smoke, "--set", "task.name=small_network:SmallNetwork")


@pytest.fixture
def cold_ddp():
    """The installed console script, started from nothing."""

    def start(*argv, **options):
        command = [str(Path(sys.executable).parent / "ddp"), *map(str, argv)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, **options)

    return start
