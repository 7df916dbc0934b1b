"""The room on a volume swings by a checkpoint with each save: what is told of it does not."""

import pytest
from small_facts import a_document, a_look, a_run
from test_claim_truth import health

GIB = 1 << 30
SIZE = 10 * GIB


def reasons(rooms_gib, before=None):
    told = []
    for room in rooms_gib:
        document = a_document(volume_total_bytes=1000 * GIB, volume_free_bytes=room * GIB, checkpoint_bytes=SIZE * 10)
        before = health(a_run(progress=a_look(document)), before).reason
        told.append(before)
    return told


@pytest.mark.parametrize(
    ("low", "high", "reason"), [(299, 399, "VolumeFilling"), (99, 199, "VolumeFull")], ids=["three checkpoints", "one checkpoint"]
)
def test_room_that_crosses_a_bound_with_each_checkpoint_is_told_once(low, high, reason):
    assert set(reasons([low, high] * 5)) == {reason}


def test_one_checkpoint_of_room_more_is_calm():
    assert reasons([299, 400]) == ["VolumeFilling", "EnoughRoom"]
    assert reasons([99, 200]) == ["VolumeFull", "VolumeFilling"]
    assert reasons([300, 399]) == ["EnoughRoom", "EnoughRoom"]
