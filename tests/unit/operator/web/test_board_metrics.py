from itertools import pairwise

import pytest
from board_runs import NOW, at, cast, entry, full, progress, run
from facts_strategies import clocks, run_facts
from hypothesis import given, settings
from prometheus_client.parser import text_string_to_metric_families

from ddp_operator.web import metrics as board_metrics
from ddp_operator.web.metrics import IncidentCounts, Metrics, Numbers, as_ratio


def samples(runs, numbers=None, metrics=None, now=NOW):
    text = (metrics or Metrics()).text(runs, numbers or Numbers(), now).decode()
    return {(s.name, *sorted(s.labels.items())): s.value for family in text_string_to_metric_families(text) for s in family.samples}


def of(found, name, **labels):
    return found.get((name, *sorted(labels.items())))


def test_a_run_has_its_numbers():
    found = samples([full()])
    labels = {"namespace": "team-a", "run": "resnet"}
    assert of(found, "ddp_run_progress_ratio", **labels) == pytest.approx(6900 / 9000)
    assert of(found, "ddp_run_last_durable_step_timestamp_seconds", **labels) == NOW - 75
    assert of(found, "ddp_run_goodput_ratio", **labels) == 0.962
    assert of(found, "ddp_run_lost_steps_total", **labels) == 52
    assert of(found, "ddp_run_in_process_restarts_total", **labels) == 4
    assert {cause: of(found, "ddp_run_restarts_total", cause=cause, **labels) for cause in ("Hang", "OOMKilled", "Preempted")} == {
        "Hang": 1,
        "OOMKilled": 1,
        "Preempted": 1,
    }
    assert of(found, "ddp_claim_used_ratio", namespace="team-a", claim="resnet-checkpoints") == pytest.approx(0.45)


def test_how_full_a_shared_disk_is_has_nothing_to_do_with_the_claim():
    disk = {"name": "disk", "phase": "Bound", "capacity_bytes": 10 << 30, "used_bytes": 203 << 30, "used_percent": 41}
    ratio = {"name": "ddp_claim_used_ratio", "namespace": "team-a", "claim": "disk"}
    assert of(samples([run(claims=[disk | {"volume_bytes": 500 << 30}])]), **ratio) == pytest.approx(203 / 500)
    assert of(samples([run(claims=[disk])]), **ratio) == 0.41  # as an older operator wrote it


def test_every_phase_has_a_count_even_if_it_is_zero():
    found = samples([])
    assert of(found, "ddp_operator_runs", phase="Hung") == 0
    assert of(samples(cast()), "ddp_operator_runs", phase="Hung") == 1


def test_the_process_says_what_it_knows_of_itself():
    numbers = Numbers(
        is_leader=True, status_lag_seconds=1.5, status_pruned=2, api_requests={("get", "200"): 7}, watcher_silent_seconds={"pods": 3.0}
    )
    found = samples([], numbers)
    assert of(found, "ddp_operator_is_leader") == 1
    assert of(found, "ddp_operator_status_lag_seconds") == 1.5
    assert of(found, "ddp_operator_api_requests_total", verb="get", code="200") == 7
    assert of(found, "ddp_operator_watcher_silent_seconds", watcher="pods") == 3
    assert of(found, "ddp_operator_status_pruned_total") == 2
    assert of(found, "process_resident_memory_bytes") > 1e6


def test_what_is_not_known_has_no_series():
    found = samples([run()])
    assert not [key for key in found if key[0] in ("ddp_run_progress_ratio", "ddp_run_goodput_ratio", "ddp_run_last_durable_step")]


def test_a_claim_that_two_runs_share_has_one_series():
    claim = {"name": "shared", "phase": "Bound", "used_percent": 50}
    found = samples([run("a", claims=[claim]), run("b", claims=[claim])])
    assert of(found, "ddp_claim_used_ratio", namespace="team-a", claim="shared") == 0.5


def test_too_many_runs_are_counted_but_have_no_series_of_their_own(monkeypatch):
    monkeypatch.setattr(board_metrics, "RUNS_WITH_SERIES", 3)
    found = samples([run(f"r{number}", progress=progress(1)) for number in range(5)])
    assert of(found, "ddp_operator_runs", phase="Running") == 5
    assert of(found, "ddp_operator_runs_without_series") == 2
    assert len([key for key in found if key[0] == "ddp_run_progress_ratio"]) == 3


def test_counts_by_cause_never_go_down_while_the_ledger_forgets_its_oldest_entries():
    counts = IncidentCounts()
    ledger = [entry(10_000 - 10 * number, "OOMKilled" if number % 3 else "Evicted", 5) for number in range(60)]
    seen = [counts.of([run(ledger=ledger[max(0, newest - 32) : newest])], NOW)["team-a/resnet"] for newest in range(1, 61)]
    assert seen[-1] == {"Evicted": 20, "OOMKilled": 40}
    assert all(before[cause] <= after[cause] for before, after in pairwise(seen) for cause in after)


def test_an_incident_counts_when_its_cause_is_settled():
    counts = IncidentCounts()
    assert counts.of([run(ledger=[entry(10, "PeerLost")])], NOW)["team-a/resnet"] == {}
    assert counts.of([run(ledger=[entry(10, "OOMKilled", 5)])], NOW)["team-a/resnet"] == {"OOMKilled": 1}
    assert counts.of([run(ledger=[entry(500, "NodeLost")])], NOW)["team-a/resnet"]["NodeLost"] == 1


def test_a_run_that_was_made_anew_counts_from_its_own_ledger():
    counts = IncidentCounts()
    counts.of([run(ledger=[entry(900, "Crash", 1)])], NOW)
    counts.of([], NOW)
    assert counts.of([run(ledger=[entry(100, "Hang", 1)])], NOW)["team-a/resnet"] == {"Hang": 1}


@settings(max_examples=25)
@given(run_facts(), clocks)
def test_whatever_the_facts_say_prometheus_can_read_the_text(facts, now):
    found = samples([facts], now=now)
    assert sum(value for key, value in found.items() if key[0] == "ddp_operator_runs") == 1


@pytest.mark.parametrize(("text", "ratio"), [("0.97", 0.97), ("97%", 0.97), ("", None), ("nan", None), ("7", None), ("x" * 60, None)])
def test_ratios_are_read_from_texts(text, ratio):
    assert as_ratio(text) == ratio


def test_an_entry_without_a_zone_is_read_as_utc():
    naive = at(500).replace(tzinfo=None)
    assert IncidentCounts().of([run(ledger=[{"at": naive, "cause": "Crash"}, entry(400, "Hang")])], NOW)["team-a/resnet"].total() == 2
