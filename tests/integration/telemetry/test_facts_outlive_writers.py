"""The facts page between real processes, one of which is killed at random moments."""

import subprocess
import sys
from pathlib import Path

import pytest

from ddp_trainer.telemetry.facts import FactsPage

WRITER = """
import sys
from pathlib import Path
from ddp_trainer.telemetry.facts import FactsPage
page = FactsPage.open(Path(sys.argv[1]))
step = int(sys.argv[2])
while True:
    step += 1
    # the padding's length changes with each write, so that a mix of two writes cannot pass for one
    page.write(0, {"step": step, "twice": 2 * step, "padding": "p" * (step % 6000)})
    if step == int(sys.argv[2]) + 50:
        print("going", flush=True)
"""


@pytest.fixture
def page(tmp_path: Path):
    made = FactsPage.create(tmp_path / "facts", slots=1)
    yield made
    made.close()


def start_writer(page: FactsPage, first_step: int) -> subprocess.Popen[bytes]:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(page.path), str(first_step)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"going\n"
    return writer


def is_whole(facts: dict[str, object] | None) -> bool:
    return (
        facts is not None and facts["twice"] == 2 * int(str(facts["step"])) and facts["padding"] == "p" * (int(str(facts["step"])) % 6000)
    )


def test_reads_beside_a_running_writer_are_whole_and_never_go_back(page):
    writer = start_writer(page, 0)
    last, whole = 0, 0
    for _ in range(3000):
        facts = page.read(0)
        if facts is None:  # the writer lapped the reader on every try: allowed, but must be rare
            continue
        assert is_whole(facts)
        assert facts["step"] >= last
        last, whole = facts["step"], whole + 1
    writer.kill()
    writer.communicate()
    assert whole > 2700
    assert last > 50


def test_the_last_facts_survive_a_writer_killed_in_mid_write_and_its_successor_goes_on(page):
    reached = 0
    for _ in range(8):
        writer = start_writer(page, reached)
        for _ in range(200):
            page.read(0)
        writer.kill()
        writer.communicate()
        facts = page.read(0)
        assert is_whole(facts)
        assert facts is not None
        assert facts["step"] >= reached + 50
        reached = facts["step"]
