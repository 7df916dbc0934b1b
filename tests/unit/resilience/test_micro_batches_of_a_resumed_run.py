"""Into how many micro-batches a resumed run cuts its batch: as it began, where that can be."""

from __future__ import annotations

import logging

import pytest

from ddp_trainer.config import load
from ddp_trainer.resilience.rank import _micro_batches
from ddp_trainer.resilience.restore import Origin


def resumed(saved: int | None, workers: int, *settings: str) -> int:
    config = load(None, [f"distributed.nodes={workers}", "data.global_batch=96", *settings])
    meta = {"step": 3} if saved is None else {"step": 3, "micro_batches": saved}
    return _micro_batches(config, workers, Origin("disk", meta, {}, 0, is_sent=False))


def test_fewer_ranks_share_the_micro_batches_with_which_the_run_began(caplog):
    assert resumed(4, workers=2) == 4
    assert resumed(None, workers=2) == 2
    assert not caplog.records


@pytest.mark.parametrize(
    ("saved", "workers", "settings"),
    [(4, 2, ("data.global_batch=90",)), (2, 4, ())],
    ids=["another batch that does not divide so", "more ranks than micro-batches"],
)
def test_where_they_cannot_be_shared_no_sample_is_left_out_and_the_log_says_so(caplog, saved, workers, settings):
    with caplog.at_level(logging.WARNING):
        assert resumed(saved, workers, *settings) == workers
    assert f"the run began with {saved} micro-batches and goes on with {workers}" in caplog.text


def test_what_is_configured_counts():
    assert resumed(4, 2, "data.micro_batches=2") == 2
