"""The Prometheus text, read with prometheus_client's own parser."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ddp_trainer.telemetry.metrics import METRICS, render
from ddp_trainer.telemetry.pace import BUCKETS_SECONDS, Pace
from ddp_trainer.telemetry.progress import Ledger, compose

LEDGER = Ledger(
    run="demo",
    attempt=1,
    world_size=2,
    restarts={"crash": 2, "hang": 1},
    lost_steps=9,
    training_seconds=9,
    wall_seconds=10,
    verify_failures=3,
    recovery_seconds={"form": 0.4, "load": 1.5},
    checkpoint={"step": 20, "saved_at": 990.0, "bytes": 188, "stall_seconds": 0.1, "persist_seconds": 0.4, "verified": True},
    checkpoint_totals={"count": 3.0, "stall_seconds": 0.6, "persist_seconds": 1.2},
)
SECTION_E = {
    "trainer_step_seconds",
    "trainer_samples_total",
    "trainer_data_wait_seconds_total",
    "trainer_checkpoint_stall_seconds",
    "trainer_checkpoint_persist_seconds",
    "trainer_checkpoint_last_durable_step",
    "trainer_checkpoint_last_durable_timestamp_seconds",
    "trainer_checkpoint_verify_failures_total",
    "trainer_restarts_total",
    "trainer_lost_steps_total",
    "trainer_recovery_seconds",
    "trainer_goodput_ratio",
}


def facts(rank):
    pace = Pace()
    for end in (0.0, 0.3, 0.6, 100.0):
        pace.stepped(end)
    sums = {"snapshot_step": 28, "snapshot_every_steps": 14, "snapshot_count_total": 14, "snapshot_stall_seconds_total": 0.7}
    base = {"rank": rank, "pid": 9, "phase": "training", "step": 30, "total_steps": 80, "epoch": 1.5, "loss": 1.25, "test_accuracy": 0.5}
    speed = {"samples_total": 640, "data_seconds_total": 2.5, "samples_per_second": 32.0, "step_histogram": pace.histogram()}
    return {**base, **speed, **(sums if rank == 0 else {}), "attempt": 1, "updated_at": 1000.0}


def scrape(ranks, ledger=LEDGER):
    text = render(ranks, ledger, compose(ranks, ledger, None, 1000.0))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families.values() for sample in family.samples
    }
    return families, samples


def test_the_table_holds_all_agreed_names_once():
    names = [metric.name for metric in METRICS]
    assert set(names) >= SECTION_E
    assert len(names) == len(set(names))


def test_names_follow_the_conventions():
    for metric in METRICS:
        assert re.fullmatch(r"trainer_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert set(metric.labels) <= {"rank", "run", "node", "cause", "phase"}


def test_node_0_exports_every_metric_of_the_table_under_its_type():
    families, _ = scrape([facts(0), facts(1)])
    found = {(f"{family.name}_total" if family.type == "counter" else family.name): family.type for family in families.values()}
    assert found == {metric.name: metric.type for metric in METRICS}


def test_the_numbers_are_those_of_the_facts():
    _, samples = scrape([facts(0), facts(1)])
    assert samples["trainer_samples_total", (("rank", "1"),)] == 640
    assert samples["trainer_restarts_total", (("cause", "crash"),)] == 2
    assert samples["trainer_restarts_total", (("cause", "preemption"),)] == 0
    assert samples["trainer_checkpoint_last_durable_step", ()] == 20
    assert samples["trainer_checkpoint_last_durable_timestamp_seconds", ()] == 990
    assert samples["trainer_checkpoint_stall_seconds_count", ()] == 3
    assert samples["trainer_checkpoint_stall_seconds_sum", ()] == 0.6
    assert samples["trainer_checkpoint_persist_seconds_sum", ()] == 1.2
    assert samples["trainer_snapshot_last_step", ()] == 28
    assert samples["trainer_snapshot_every_steps", ()] == 14
    assert samples["trainer_data_wait_seconds_total", (("rank", "1"),)] == 2.5
    assert samples["trainer_snapshot_stall_seconds_count", ()] == 14
    assert samples["trainer_snapshot_stall_seconds_sum", ()] == 0.7
    assert samples["trainer_lost_steps_total", ()] == 9
    assert samples["trainer_goodput_ratio", ()] == 0.9
    assert samples["trainer_recovery_seconds", (("phase", "form"),)] == 0.4
    assert samples["trainer_recovery_seconds", (("phase", "load"),)] == 1.5
    assert samples["trainer_checkpoint_verify_failures_total", ()] == 3
    assert samples["trainer_phase", (("phase", "training"),)] == 1
    assert samples["trainer_phase", (("phase", "saving"),)] == 0


def test_the_histogram_is_cumulative_and_counts_steps_above_all_bounds():
    _, samples = scrape([facts(0)])
    buckets = {dict(labels)["le"]: value for (name, labels), value in samples.items() if name == "trainer_step_seconds_bucket"}
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets["0.25"], buckets["0.5"], buckets[str(BUCKETS_SECONDS[-1])], buckets["+Inf"]) == (0, 2, 2, 3)
    assert samples["trainer_step_seconds_count", (("rank", "0"),)] == 3
    assert samples["trainer_step_seconds_sum", (("rank", "0"),)] == pytest.approx(100.0)


def test_other_nodes_export_their_ranks_only_so_that_sums_over_nodes_are_right():
    ledger = Ledger(run="demo", attempt=1, world_size=2, node=1, restarts={"crash": 2})
    families, samples = scrape([facts(1)], ledger)
    assert {metric.name.removesuffix("_total") for metric in METRICS if metric.scope != "run"} == set(families)
    assert samples["trainer_info", (("node", "1"), ("run", "demo"))] == 1


def test_a_node_without_facts_still_serves_valid_text():
    families, samples = scrape([])
    assert "trainer_step_seconds" not in families
    assert samples["trainer_step", ()] == 0


def test_a_rank_seen_in_two_slots_is_exported_once_with_its_newest_facts():
    old = {**facts(1), "samples_total": 1, "updated_at": 900.0}
    _, samples = scrape([facts(1), old])
    assert samples["trainer_samples_total", (("rank", "1"),)] == 640


def test_odd_facts_are_left_out_and_do_not_break_the_scrape():
    _, samples = scrape([{**facts(0), "samples_total": None, "step_histogram": {"counts": [1]}, "updated_at": "now"}])
    assert ("trainer_samples_total", (("rank", "0"),)) not in samples
    assert samples["trainer_samples_per_second", (("rank", "0"),)] == 32
