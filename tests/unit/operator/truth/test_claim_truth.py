from dataclasses import replace

import pytest
from facts_strategies import run_facts
from hypothesis import given, settings
from small_facts import BORN, CLAIM, NOW, a_claim, a_document, a_job, a_look, a_run

from ddp_operator.api.trainingrun import CheckpointSpec, Condition
from ddp_operator.api.words import ConditionType
from ddp_operator.decide.claims import claim_statuses, is_shared, lost_claims, storage_health, volume_is_filling
from ddp_operator.decide.facts import ProgressLook
from ddp_operator.decide.quiet import is_renewal
from ddp_operator.decide.wording import moment

GIB = 1 << 30


def filled(percent, checkpoint_bytes=1, **changes):
    total = 1000 * GIB
    return a_run(
        progress=a_look(
            a_document(volume_total_bytes=total, volume_free_bytes=total * (100 - percent) // 100, checkpoint_bytes=checkpoint_bytes)
        ),
        **changes,
    )


def health(facts, before=None):
    was = before and Condition(
        type=ConditionType.STORAGE_HEALTHY,
        status="True",
        observed_generation=1,
        last_transition_time=moment(BORN),
        reason=before,
        message="",
    )
    return storage_health(facts, claim_statuses(facts), was)


def test_a_claim_as_it_is():
    (claim,) = claim_statuses(a_run())
    assert (claim.name, claim.phase, claim.requested_bytes, claim.capacity_bytes) == (CLAIM, "Bound", 10 * GIB, 10 * GIB)
    assert (claim.used_percent, claim.used_by) == (50, ["ddp-demo"])
    assert 5 * GIB <= claim.used_bytes <= 5 * GIB + 10 * GIB // 1000


def test_the_size_of_the_volume_is_told_and_outlives_node_0():
    look = a_look(a_document(volume_total_bytes=500 * GIB, volume_free_bytes=300 * GIB))
    (claim,) = told = claim_statuses(a_run(progress=look))
    assert (claim.capacity_bytes, claim.volume_bytes, claim.used_percent) == (10 * GIB, 500 * GIB, 40)
    status = a_run().status.model_copy(update={"claims": told})
    assert claim_statuses(a_run(progress=ProgressLook(), status=status)) == told


def test_a_disk_whose_size_moves_is_a_number_and_no_news():
    one, two = (
        a_run().status.model_copy(update={"claims": claim_statuses(a_run(progress=a_look(a_document(volume_total_bytes=total))))})
        for total in (500 * GIB, 501 * GIB)
    )
    assert one != two
    assert is_renewal(one, two)


def test_a_larger_claim_is_no_advice_where_the_volume_is_larger_than_the_claim():
    assert "others may fill it too" in health(filled(96)).message
    own = a_run(progress=a_look(a_document(volume_total_bytes=10 * GIB, volume_free_bytes=GIB // 4)))
    assert "enlarge the claim" in health(own).message
    assert [is_shared(volume, 10 * GIB) for volume in (None, 9 * GIB, 11 * GIB, 12 * GIB)] == [False, False, False, True]
    assert not is_shared(12 * GIB, 0)


def test_only_the_claim_of_the_checkpoints_has_used_bytes():
    facts = a_run(job=a_job(claims=(CLAIM, "data")), claims=(a_claim(name="data"), a_claim()))
    assert [(claim.name, claim.used_percent) for claim in claim_statuses(facts)] == [(CLAIM, 50), ("data", None)]


def test_without_a_word_in_the_spec_the_only_claim_is_that_of_the_checkpoints():
    spec = a_run().spec.model_copy(update={"checkpoint": CheckpointSpec()})
    assert claim_statuses(a_run(spec=spec))[0].used_percent == 50
    two = a_run(spec=spec, job=a_job(claims=(CLAIM, "data")), claims=(a_claim(name="data"), a_claim()))
    assert [claim.used_percent for claim in claim_statuses(two)] == [None, None]


def test_a_claim_that_nobody_has_made_is_missing_once_everything_was_listed():
    facts = a_run(claims=())
    (claim,) = claim_statuses(facts)
    assert (claim.phase, lost_claims([claim])) == ("Missing", [claim])
    assert claim_statuses(replace(facts, pods_are_known=False)) == []


def test_a_few_bytes_more_are_the_same():
    one, two = (a_run(progress=a_look(a_document(volume_free_bytes=5 * GIB - more))) for more in (1000, 2_000_000))
    assert claim_statuses(one) == claim_statuses(two)


def test_at_most_eight_claims_are_told_the_checkpoints_first():
    names = [f"c{i}" for i in range(20)]
    facts = a_run(job=a_job(claims=(*names, CLAIM)), claims=(*tuple(a_claim(name=name) for name in names), a_claim()))
    assert [claim.name for claim in claim_statuses(facts)][:2] == [CLAIM, "c0"]
    assert len(claim_statuses(facts)) == 8


@pytest.mark.parametrize(
    ("percent", "status", "reason"),
    [
        (10, "True", "EnoughRoom"),
        (84, "True", "EnoughRoom"),
        (85, "True", "VolumeFilling"),
        (94, "True", "VolumeFilling"),
        (95, "False", "VolumeFull"),
        (100, "False", "VolumeFull"),
    ],
)
def test_a_volume_warns_before_it_is_full(percent, status, reason):
    assert health(filled(percent))[:2] == (status, reason)
    assert bool(volume_is_filling(filled(percent))) == (percent >= 85)


def test_a_volume_calms_down_only_a_little_below_the_bound():
    assert health(filled(83), "VolumeFilling").reason == "VolumeFilling"
    assert health(filled(81), "VolumeFilling").reason == "EnoughRoom"
    assert health(filled(93), "VolumeFull").reason == "VolumeFull"
    assert health(filled(91), "VolumeFull").reason == "VolumeFilling"


@pytest.mark.parametrize(
    ("checkpoint_gib", "reason"),
    [(100, "EnoughRoom"), (166, "EnoughRoom"), (167, "VolumeFilling"), (500, "VolumeFilling"), (501, "VolumeFull")],
)
def test_room_is_measured_in_checkpoints_too(checkpoint_gib, reason):
    assert health(filled(50, checkpoint_gib * GIB)).reason == reason


@pytest.mark.parametrize(("phase", "reason"), [("Lost", "ClaimLost"), ("Bound", "EnoughRoom"), ("Pending", "EnoughRoom")])
def test_a_lost_claim_is_not_healthy(phase, reason):
    found = health(a_run(claims=(a_claim(phase=phase),)))
    assert found.reason == reason
    assert (found.status == "False") == (phase == "Lost")


def test_missing_and_dying_claims_are_not_healthy():
    assert health(a_run(claims=()))[:2] == ("False", "ClaimMissing")
    assert health(a_run(claims=(a_claim(deleted_at=NOW),)))[:2] == ("False", "ClaimTerminating")


def test_at_most_sixteen_users_are_told_by_name():
    (claim,) = claim_statuses(a_run(claims=(a_claim(used_by=tuple(f"r{i:02}" for i in range(20, 0, -1))),)))
    assert claim.used_by == [f"r{i:02}" for i in range(1, 17)]


def test_the_volume_is_named():
    assert f"volume {CLAIM} is 90 % full" in volume_is_filling(filled(90))
    assert f"volume {CLAIM} has no room" in health(filled(99)).message


def test_nobody_knows_how_full_a_foreign_volume_is():
    assert health(a_run(progress=ProgressLook()))[:2] == ("Unknown", "NotKnown")
    assert health(a_run(progress=a_look(a_document(volume_total_bytes=5, volume_free_bytes=9))))[0] == "Unknown"


@settings(max_examples=60)
@given(facts=run_facts())
def test_every_run_has_claims_that_the_api_takes(facts):
    claims = claim_statuses(facts)
    assert len({claim.name for claim in claims}) == len(claims) <= 8
    assert all(type(claim).model_validate_json(claim.model_dump_json(by_alias=True)) == claim for claim in claims)
    assert health(facts).status in {"True", "False", "Unknown"}
