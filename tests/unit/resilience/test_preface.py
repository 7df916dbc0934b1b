"""Before node 0 has an agent, its document says what is done and moves with each sign of life, and nothing of it is written."""

from __future__ import annotations

import pytest

from ddp_trainer.resilience.chronicle import Chronicle
from ddp_trainer.resilience.preface import Preface
from ddp_trainer.telemetry.document import Progress, parse
from ddp_trainer.telemetry.node import PROGRESS_FILE


@pytest.fixture
def begin(tmp_path):
    """A preface whose clock is `now[0]`, in a run directory where an earlier agent left the document of `run`, if any."""

    def make(now, run=None):
        if run:
            before = Progress(run=run, attempt=3, phase="training", step=40, updated_at=500.0, world_size=2)
            (tmp_path / PROGRESS_FILE).write_bytes(before.to_bytes())
        return Preface(tmp_path, Chronicle("run", 0, 2, None).ledger(), lambda: now[0])

    return make


@pytest.mark.parametrize("before", [None, "run"])
def test_the_document_moves_with_each_sign_of_life_and_only_then(begin, before):
    now = [1000.0]
    preface = begin(now, before)
    assert parse(preface.document()).updated_at == 1000.0
    now[0] = 1001.0
    assert parse(preface.document()).updated_at == 1000.0
    preface.gets_on()
    assert parse(preface.document()).updated_at == 1001.0


def test_the_document_says_what_is_done(begin):
    preface = begin([1000.0])
    preface.say("fetching the checkpoint of step 7 from its second home")
    said = parse(preface.document())
    assert (said.run, said.phase, said.note) == ("run", "starting", "fetching the checkpoint of step 7 from its second home")


@pytest.mark.parametrize(("run", "step"), [("run", 40), ("another", 0)])
def test_what_an_earlier_agent_of_the_run_knew_stands_in_it_and_its_file_is_left_as_it_is(begin, tmp_path, run, step):
    preface = begin([1000.0], run)
    left = (tmp_path / PROGRESS_FILE).read_bytes()
    preface.say("fetching")
    assert parse(preface.document()).step == step
    assert (tmp_path / PROGRESS_FILE).read_bytes() == left
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_FILE]
