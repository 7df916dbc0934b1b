"""A start that is refused ends on the nodes that have come with the same words, whether or not all have."""

from __future__ import annotations

import pytest
from test_generation_barrier import PATIENCE_SECONDS, Gang
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from ddp_trainer.config import RunConfig
from ddp_trainer.errors import DataError, PeerLostError
from ddp_trainer.resilience import preparation
from ddp_trainer.resilience.chronicle import Chronicle
from ddp_trainer.resilience.judge import ending_of
from ddp_trainer.resilience.preface import Preface
from ddp_trainer.resilience.rendezvous import SupersededError


def coming(barrier):
    """What an agent does until it is told: where all had met before node 0 said it, it asks what to start with, and meets again."""
    meet = barrier.next_rendezvous

    def meets():
        meet()
        with pytest.raises(SupersededError):
            barrier.shared("start")
        meet()

    return meets


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Node 0's refusal, of a run directory that is a file, where `present` of three nodes have come."""
    monkeypatch.setattr(preparation, "REFUSAL_SECONDS", 2.0)
    (tmp_path / "taken").write_text("")

    def refuse(*present):
        them = Gang(3)
        for node in present:
            monkeypatch.setattr(them.barriers[node], "next_rendezvous", coming(them.barriers[node]))
        waiting = them.wait_until_waiting(*present)
        config = RunConfig().with_values({"run.root": str(tmp_path / "taken"), "run.name": "run"})
        chronicle = Chronicle("run", 0, 3, None)
        preface = Preface(config.run_dir, chronicle.ledger())
        with pytest.raises(DataError) as refusal:
            preparation.prepare_or_refuse(config, chronicle, them.barriers[0], preface)
        return str(refusal.value), [future.exception(PATIENCE_SECONDS) for future in waiting]

    return refuse


@pytest.mark.parametrize("present", [(1,), (1, 2)])
def test_the_nodes_that_are_there_are_told_and_one_that_is_not_is_not_waited_for(refused, present):
    words, ends = refused(*present)
    assert all(isinstance(end, RendezvousClosedError) for end in ends)
    for end in ends:
        ending = ending_of(str(end))
        assert (ending.exit, ending.fault.message) == (DataError.exit, words)


def test_what_may_succeed_later_is_not_told(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "prepare", lambda *_: (_ for _ in ()).throw(PeerLostError("the second home does not answer")))
    them = Gang(2)
    chronicle = Chronicle("run", 0, 2, None)
    preface = Preface(tmp_path, chronicle.ledger())
    with pytest.raises(PeerLostError, match="second home"):
        preparation.prepare_or_refuse(RunConfig(), chronicle, them.barriers[0], preface)
    assert them.barriers[0].ending() is None
