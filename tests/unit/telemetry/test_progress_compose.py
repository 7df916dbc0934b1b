"""Composing the progress document: pure, from facts, ledger, readings and the document before."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.telemetry.document import MAX_BYTES, MAX_GPUS, MAX_RANKS, Rank, Restarts, Storage, parse
from ddp_trainer.telemetry.hardware import GpuReading, ProcessReading, Readings, StorageReading
from ddp_trainer.telemetry.progress import Ledger, compose

LEDGER = Ledger(run="demo", attempt=2, world_size=4, restarts={"crash": 1}, lost_steps=7, training_seconds=90, wall_seconds=100)
SAVED = {"step": 20, "saved_at": 990.0, "bytes": 188, "stall_seconds": 0.1, "persist_seconds": 0.4, "verified": True}


def fact(rank=0, **changes):
    base = {"rank": rank, "pid": 100 + rank, "phase": "training", "step": 30, "total_steps": 80, "epoch": 1.5, "epochs": 4.0}
    numbers = {"loss": 1.5, "accuracy": 0.4, "lr": 0.1, "samples_per_second": 75.0, "run_samples_per_second": 300.0, "eta_seconds": 50.0}
    return {**base, **numbers, "attempt": 2, "updated_at": 999.5, **changes}


def test_the_lowest_rank_speaks_for_the_run():
    progress = compose([fact(1, loss=9.0), fact(0)], LEDGER, None, 1000.0)
    assert (progress.phase, progress.step, progress.loss, progress.samples_per_second, progress.eta_seconds) == (
        "training",
        30,
        1.5,
        300,
        50,
    )
    assert [rank.rank for rank in progress.ranks] == [0, 1]
    assert progress.ranks[1] == Rank(rank=1, phase="training", step=30, samples_per_second=75.0, pid=101, updated_at=999.5)


def test_the_ledger_is_taken_over():
    progress = compose([], LEDGER, None, 1000.0)
    assert (progress.run, progress.attempt, progress.world_size, progress.lost_steps) == ("demo", 2, 4, 7)
    assert progress.restarts == Restarts(crash=1)
    assert progress.goodput_ratio == 0.9


def test_before_any_rank_spoke_the_run_is_starting():
    progress = compose([], LEDGER, None, 1000.0)
    assert (progress.phase, progress.step, progress.loss, progress.ranks) == ("starting", 0, None, [])


def test_between_two_attempts_the_run_is_starting_and_keeps_what_was_known():
    before = compose([fact()], replace(LEDGER, checkpoint=SAVED), None, 1000.0)
    assert before.checkpoint is not None
    ledger = Ledger(run="demo", attempt=3, world_size=4, note="waiting for node 2")
    between = compose([fact()], ledger, before, 1001.0)
    assert (between.phase, between.note, between.step, between.loss, between.ranks) == ("starting", "waiting for node 2", 30, 1.5, [])
    assert (between.samples_per_second, between.eta_seconds) == (None, None)
    assert between.checkpoint == before.checkpoint


def test_a_resumed_attempt_shows_its_own_lower_step():
    before = compose([fact(step=30)], LEDGER, None, 1000.0)
    after = compose([fact(step=21, loss=None)], LEDGER, before, 1001.0)
    assert (after.step, after.loss) == (21, 1.5)


def test_the_newest_checkpoint_wins_even_over_a_higher_step():
    before = compose([fact()], replace(LEDGER, checkpoint=SAVED), None, 1000.0)
    after = compose([fact()], replace(LEDGER, checkpoint={**SAVED, "step": 10, "saved_at": 1005.0}), before, 1006.0)
    assert after.checkpoint is not None
    assert after.checkpoint.step == 10
    assert compose([fact()], replace(LEDGER, checkpoint=SAVED), after, 1007.0).checkpoint == after.checkpoint


def test_ranks_do_not_say_what_is_durable():
    assert compose([fact(checkpoint=SAVED)], LEDGER, None, 1000.0).checkpoint is None


def test_the_agents_word_on_the_phase_goes_over_the_ranks():
    ledger = Ledger(run="demo", attempt=2, world_size=4, phase="failed", note="rank 2 crashed too often")
    progress = compose([fact(note="rank's own")], ledger, None, 1000.0)
    assert (progress.phase, progress.note) == ("failed", "rank 2 crashed too often")


def test_updated_at_stands_still_when_ranks_do_and_moves_when_the_run_changes():
    first = compose([fact()], LEDGER, None, 1000.0)
    hung = compose([fact()], LEDGER, first, 1060.0)
    assert hung.updated_at == 1000.0
    moved = compose([fact(updated_at=1061.0)], LEDGER, hung, 1061.2)
    assert moved.updated_at == 1061.0
    regrouped = compose([], Ledger(run="demo", attempt=3, world_size=4), moved, 1070.0)
    assert regrouped.updated_at == 1070.0


def test_a_beat_from_the_future_does_not_push_the_document_there():
    first = compose([fact()], LEDGER, None, 1000.0)
    assert compose([fact(updated_at=9e9)], LEDGER, first, 1001.0).updated_at == 1001.0


def test_readings_are_joined_by_pid_and_device():
    gpu = GpuReading(1, "abc", "NVIDIA H100", 0.5, 10, 20, 40.0)
    readings = Readings((gpu,), {100: ProcessReading(150.0, 2**30)}, StorageReading(100, 60))
    progress = compose([fact(0, gpu_uuid="abc"), fact(1)], LEDGER, None, 1000.0, readings)
    assert (progress.ranks[0].cpu_percent, progress.ranks[0].rss_bytes, progress.ranks[0].gpu) == (150.0, 2**30, 1)
    assert (progress.ranks[1].cpu_percent, progress.ranks[1].rss_bytes, progress.ranks[1].gpu) == (None, None, None)
    assert progress.storage == Storage(total_bytes=100, free_bytes=60)
    assert (progress.gpus[0].name, progress.gpus[0].utilization_ratio) == ("NVIDIA H100", 0.5)


def test_a_new_rank_that_does_not_know_yet_where_the_run_is_does_not_set_it_back():
    before = compose([fact(0)], LEDGER, None, 1000.0)
    starting = fact(0, attempt=3, phase="starting", step=0, total_steps=0, epoch=0.0, epochs=0.0, loss=None)
    now = compose([starting], replace(LEDGER, attempt=3), before, 1001.0)
    assert (now.phase, now.step, now.total_steps, now.epoch, now.epochs, now.loss) == (
        "starting",
        before.step,
        before.total_steps,
        before.epoch,
        before.epochs,
        before.loss,
    )
    assert before.step > 0


def test_the_fullest_node_still_fits_the_readers_cap():
    gpu = GpuReading(10**6, "u", "N" * 300, 0.123456789, 2**40, 2**40, 40.0)
    facts = [fact(rank, step=2**50, samples_per_second=123456.789012) for rank in range(MAX_RANKS + 5)]
    processes = {100 + rank: ProcessReading(123.456789, 2**45) for rank in range(MAX_RANKS)}
    progress = compose(facts, LEDGER, None, 1e9, Readings((gpu,) * (MAX_GPUS + 5), processes, None))
    assert (len(progress.ranks), len(progress.gpus)) == (MAX_RANKS, MAX_GPUS)
    assert len(progress.to_bytes()) <= MAX_BYTES
    assert parse(progress.to_bytes()) == progress


@pytest.mark.parametrize("value", [None, "1.5", float("nan"), float("inf"), -float("inf"), True, [1], {"a": 1}, 1e305])
def test_a_loss_that_is_no_usable_number_is_unknown(value):
    assert compose([fact(loss=value)], LEDGER, None, 1000.0).loss is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*fact(), "note", "note_done", "note_total", "test_accuracy", "gpu_uuid"])
SAVED_KEYS = st.dictionaries(st.sampled_from([*SAVED]), JSON)
ODD_FACT = st.builds(lambda odd: {**fact(), **odd}, st.dictionaries(KEYS, JSON, max_size=6))


@given(st.lists(ODD_FACT, max_size=3), st.none() | SAVED_KEYS, st.floats(0, 2e9))
def test_no_facts_however_odd_break_the_document(facts, saved, now):
    ledger = replace(LEDGER, checkpoint=saved)
    progress = compose(facts, ledger, None, now)
    assert parse(progress.to_bytes()) == progress
    assert parse(compose(facts, ledger, progress, now + 1).to_bytes()).attempt == 2
