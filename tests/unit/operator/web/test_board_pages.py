import pytest
from board_runs import HOSTILE, NOW, cast, condition, entry, full, hostile, overview_of, pod, progress, remembered, run
from facts_strategies import clocks, run_facts
from hypothesis import given, settings
from page_checks import Page

from ddp_operator.api.words import Phase
from ddp_operator.decide.facts import ClaimFacts
from ddp_operator.web.board import ROWS, TONES, Filter
from ddp_operator.web.history import History
from ddp_operator.web.pages import Pages
from ddp_operator.web.run_board import run_page

PAGES = Pages()


def overview(runs, wanted=None, now=NOW, history=None):
    return PAGES.overview(overview_of(runs, history or History(), wanted or Filter(), now), "n0nce")


def one(facts, now=NOW, history=None):
    return PAGES.run(run_page(facts, history or History(), now), "n0nce")


@pytest.mark.parametrize(
    "text",
    [
        overview(cast(), history=remembered(cast())),
        one(full(), history=remembered([full()])),
        one(hostile()),
        overview(cast(), Filter(namespace=HOSTILE, phase=HOSTILE)),
        PAGES.error(404, HOSTILE, "n0nce"),
    ],
    ids=["all runs", "a full run", "a hostile run", "a hostile filter", "an error"],
)
def test_hostile_texts_are_shown_as_texts_and_nothing_comes_from_elsewhere(text):
    assert Page(text).complaints == []


def test_a_hostile_message_is_shown_whole_and_no_template_in_it_is_carried_out():
    said = Page(one(hostile())).said
    assert HOSTILE in said
    assert "{{7*7}}" in said


@settings(max_examples=25)
@given(run_facts(), clocks)
def test_whatever_the_facts_say_both_pages_are_made_and_sound(facts, now):
    history = History()
    history.note([(facts.namespace, facts.name, facts.progress.document)])
    assert Page(overview([facts], now=now, history=history)).complaints == []
    assert Page(one(facts, now=now, history=history)).complaints == []


def test_every_phase_has_a_colour():
    assert set(TONES) == set(Phase)


def test_runs_that_need_somebody_stand_above_those_that_do_not():
    page = overview_of(list(reversed(cast())), History(), Filter(), NOW)
    assert [row.phase for row in page.rows][:3] == ["Hung", "Failed", "Restarting"]
    assert page.rows[-1].phase == "Succeeded"


def test_the_row_shows_progress_checkpoint_and_budget():
    row = overview_of([full()], remembered([full()]), Filter(), NOW).rows[0]
    assert (row.percent, row.steps, row.loss, row.rate, row.eta) == (76, "6,900 / 9,000", "0.8412", "5,214", "31m12s")
    assert (row.checkpoint, row.checkpoint_age, row.is_verified, row.restarts, row.age) == ("6,600", "1m15s", True, "2/20", "1h6m")
    assert row.spark.count(",") > 50


def test_a_stale_checkpoint_is_marked():
    rows = {row.name: row for row in overview_of(cast(), History(), Filter(), NOW).rows}
    assert rows["sweep-lr-03"].is_stale
    assert not rows["mnist"].is_stale


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (Filter(phase="Saving"), ["gpt2-small"]),
        (Filter(namespace="team-b"), ["evil", "unet", "gpt2-small", "paused"]),
        (Filter(namespace="team-a", phase="Saving"), []),
        (Filter(phase="Nonsense"), []),
    ],
)
def test_filters_choose_by_namespace_and_phase(wanted, names):
    assert [row.name for row in overview_of(cast(), History(), wanted, NOW).rows] == names


def test_counts_by_phase_ignore_the_chosen_phase_but_not_the_namespace():
    page = overview_of(cast(), History(), Filter(namespace="team-b", phase="Saving"), NOW)
    assert next((c.text, c.count, c.is_chosen) for c in page.phases) == ("All", 4, False)
    assert {c.text: c.count for c in page.phases}["Suspended"] == 1


@pytest.mark.parametrize(("text", "page"), [("2", 2), ("-1", 1), ("1e9", 1), ("٣", 1), ("99999999999999999999", 1), ("", 1)])
def test_odd_page_numbers_are_the_first_page(text, page):
    assert Filter.of({"page": text}).page == page


def test_a_thousand_runs_are_paged_and_every_run_is_on_one_page():
    many = [run(f"run-{number:04}", namespace=f"team-{number % 7}", progress=progress(number)) for number in range(1000)]
    seen = [row.name for page in range(1, 11) for row in overview_of(many, History(), Filter(page=page), NOW).rows]
    assert len(seen) == len(set(seen)) == 1000
    last = overview_of(many, History(), Filter(page=99), NOW)
    assert (last.page, last.pages, len(last.rows)) == (10, 10, ROWS)
    text = overview(many, Filter(page=2, phase="Running"))
    assert text.count("<tr>") == ROWS + 1
    assert {"/?phase=Running&page=3", "/?phase=Running&page=1"} <= set(Page(text).links)


def test_without_runs_the_page_says_how_to_get_one():
    assert "helm install" in overview([])


def test_the_run_page_says_what_why_and_what_to_do_next():
    waiting = run("vit", Phase.PENDING, reason="Unschedulable", message="2 of 4 pods wait: 0/6 nodes have room")
    said = Page(one(waiting)).said
    assert "Pending Unschedulable for 10m 2 of 4 pods wait: 0/6 nodes have room" in said
    assert "kubectl -n team-a get pods -l training.kubeflow.org/job-name=vit-7f3a91" in said


def test_the_run_page_has_ledger_pods_claims_and_conditions():
    said = Page(one(full(), history=remembered([full()]))).said
    for words in (
        "Hang resnet-7f3a91-master-0 161 6,001 6,000 after 4m GangRestart 40 no step for 10m; ranks 2 and 3 stood in all_reduce",
        "worker-10 Unschedulable",
        "resnet-checkpoints Bound 9 GiB of 20 GiB used · used by resnet, resnet-eval",
        "CheckpointFresh True Fresh",
        "96.2 % 52 steps lost",
        "1m15s ago, 93 MiB, verified",
    ):
        assert words in said, words


def test_a_full_volume_is_no_reason_to_say_that_nothing_is_to_be_done():
    full_volume = run(conditions=[condition("StorageHealthy", "False", "VolumeFull")], claims=[{"name": "ck", "phase": "Bound"}])
    advice = run_page(full_volume, History(), NOW).advice
    assert advice.sentence.startswith("The volume has no room for the next checkpoint")
    assert advice.command == "kubectl -n team-a describe pvc ck"
    assert "budget" not in run_page(run(), History(), NOW).advice.sentence
    assert "used up, which is only reported" in run_page(run(overdue="RestartBudgetUsedUp"), History(), NOW).advice.sentence


def test_the_pod_that_waits_is_shown_and_not_one_that_came_back_weeks_ago():
    waits = pod("worker-2", phase="Pending", node="", unscheduled_reason="Unschedulable")
    old = entry(2_000_000, "NodeLost", 60, pod="resnet-7f3a91-master-0")
    waiting = run("resnet", Phase.PENDING, reason="Unschedulable", pods=[pod("master-0"), waits], ledger=[old])
    assert run_page(waiting, History(), NOW).advice.command == "kubectl -n team-a describe pod resnet-7f3a91-worker-2"


def test_how_full_a_volume_is_counts_on_the_volume_and_not_on_the_claim():
    claims = [
        {
            "name": "disk",
            "phase": "Bound",
            "capacity_bytes": 10 << 30,
            "used_bytes": 200 << 30,
            "used_percent": 40,
            "volume_bytes": 500 << 30,
        },
        {"name": "own", "phase": "Bound", "capacity_bytes": 10 << 30, "used_bytes": 5 << 30, "used_percent": 51, "volume_bytes": 9 << 30},
        {"name": "old", "phase": "Bound", "capacity_bytes": 10 << 30, "used_bytes": 5 << 30, "used_percent": 50},
        {"name": "data", "phase": "Bound", "capacity_bytes": 10 << 30},
    ]
    assert [claim.room for claim in run_page(run(claims=claims), History(), NOW).claims] == [
        "200 GiB of a 500 GiB volume used, claim 10 GiB",
        "5 GiB of 9 GiB used",
        "5 GiB of 10 GiB used",
        "10 GiB, use not known",
    ]


def test_pods_stand_in_the_order_of_their_indices():
    assert [pod.replica for pod in run_page(full(), History(), NOW).pods] == ["master-0", "worker-0", "worker-2", "worker-10"]


def test_a_nearly_full_claim_is_marked():
    assert [claim.tone for claim in run_page(full(), History(), NOW).claims] == ["good", "warn"]


def test_claims_that_no_run_uses_are_listed_with_the_way_to_be_rid_of_them():
    orphan = ClaimFacts(name="old-checkpoints", phase="Bound", capacity_bytes=10 << 30, run="old")
    html = PAGES.overview(overview_of([], History(), Filter(), NOW, [("team-a", orphan)]), "n0nce")
    assert "Claims that no run uses" in html
    assert "kubectl -n team-a delete pvc old-checkpoints" in html
    assert "10 GiB" in html
    assert "Claims that no run uses" not in PAGES.overview(
        overview_of([], History(), Filter(namespace="b"), NOW, [("team-a", orphan)]), "n"
    )
