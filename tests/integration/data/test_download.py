"""`data.source=download`, whole runs against a local server: its progress is shown, its checksum is enforced, and what broke off in the
middle, at the server's end or at ours, is never taken for the data; the same command then works.
"""

import os
import signal
import threading
from pathlib import Path

import pytest
from mirror import Mirror
from runs import wait_until_gone

from ddp_trainer.data.cifar_pickles import ARCHIVE_BYTES

PARTIAL = "downloads/cifar-10-python.tar.gz"


@pytest.fixture
def cache_dir(tmp_path):
    """Nobody else's: what is downloaded and decoded lies there."""
    return tmp_path / "cache"


@pytest.fixture
def mirror():
    with Mirror() as mirror:
        thread = threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield mirror
        mirror.answers("whole")  # nobody is held any longer
        mirror.shutdown()
        thread.join()


@pytest.fixture
def train(ddp, smoke, mirror, tmp_path):
    """Start the run, or start it again."""

    def start(workers=2):
        settings = ("task.name=mirrored:Mirrored", "data.source=download", "optim.max_steps=1", "data.global_batch=16")
        env = {"PYTHONPATH": str(Path(__file__).parent), "MIRROR": mirror.directions(), "no_proxy": "127.0.0.1"}
        words = ("--workers", workers, *(part for setting in settings for part in ("--set", setting)))
        return ddp(*smoke, *words, run_dir=tmp_path / "run", env=env)

    return start


def noted(run):
    """What the run says that it is doing: the note, and how much of it is done."""
    try:
        progress = run.progress
    except FileNotFoundError:
        return None
    return progress["note"], progress["note_done"], progress["note_total"]


def downloaders(run, partial):
    return [pid for pid in run.pids("rank") if partial in open_files(pid)]


def open_files(pid):
    try:
        return [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # a rank that ends while it is looked at
        return []


def decoded(cache_dir):
    return list(cache_dir.glob("decoded/*/meta.json"))


def assert_trained(run):
    assert run.wait() == 0, run.output
    assert run.losses()
    assert "Traceback" not in run.output


def test_a_download_shows_its_bytes_while_it_lasts(train, mirror, cache_dir):
    mirror.answers("held")
    run = train(workers=1)
    run.until(lambda: noted(run) == ("downloading CIFAR-10 (bytes)", mirror.half_bytes, ARCHIVE_BYTES), "progress of the download")
    run.until(lambda: "starting (downloading CIFAR-10 (bytes) " in run.output, "line about the download")
    assert not decoded(cache_dir)
    mirror.answers("whole")
    assert_trained(run)
    assert decoded(cache_dir)


def test_an_archive_is_fetched_once_for_all_ranks_and_all_starts(train, mirror, cache_dir):
    assert_trained(train())
    mirror.answers("cut")
    assert_trained(train())
    assert mirror.downloads == 1


@pytest.mark.parametrize("fault", ["other", "cut"])
def test_what_does_not_match_the_checksum_ends_with_3_and_a_second_start_downloads_it_again(train, mirror, cache_dir, fault):
    mirror.answers(fault)
    run = train()
    assert run.wait() == 3, run.output
    last = run.output.strip().splitlines()[-1]
    assert f"downloading CIFAR-10 into {cache_dir / 'downloads'} failed: " in last
    assert "try again" in last
    assert "data.source=sample" in last
    assert "Traceback" not in run.output
    assert not decoded(cache_dir)
    mirror.answers("whole")
    assert_trained(train())


def test_a_rank_that_is_killed_while_it_downloads_is_replaced_and_the_download_begins_anew(train, mirror, cache_dir):
    mirror.answers("held")
    run = train()
    partial = cache_dir / PARTIAL
    run.until(lambda: partial.exists() and partial.stat().st_size == mirror.half_bytes, "half of the archive")
    (victim,) = downloaders(run, partial)
    os.kill(victim, signal.SIGKILL)
    run.until(lambda: run.of_kind("fault"), "fault")
    mirror.answers("whole")
    assert_trained(run)
    assert mirror.downloads > 1


def test_a_run_that_is_killed_while_it_downloads_can_be_started_again(train, mirror, cache_dir):
    mirror.answers("held")
    run = train()
    partial = cache_dir / PARTIAL
    run.until(lambda: partial.exists() and partial.stat().st_size == mirror.half_bytes, "half of the archive")
    tree = run.processes()
    os.kill(run.pid, signal.SIGKILL)
    wait_until_gone(tree)
    begun = mirror.downloads  # the other rank may have begun its own in the moment between the two deaths
    mirror.answers("whole")
    assert_trained(train())
    assert mirror.downloads == begun + 1
