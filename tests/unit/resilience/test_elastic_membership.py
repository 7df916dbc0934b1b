"""A run that may go on without some nodes: who the members of a generation are, and what becomes of those who come late."""

from __future__ import annotations

from threading import Event

import pytest
from test_generation_barrier import PATIENCE_SECONDS, Gang, await_superseded
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from ddp_trainer.errors import PeerLostError
from ddp_trainer.resilience import rendezvous
from ddp_trainer.resilience.fault import Fault

SOON_SECONDS = 0.2
NEVER_SECONDS = 1e6
"""A wait of days: what forms all the same has not waited."""


@pytest.fixture
def gang():
    made = []

    def make(nodes, min_nodes, rejoin_wait_seconds=PATIENCE_SECONDS * 10, **options):
        made.append(Gang(nodes, min_nodes=min_nodes, rejoin_wait_seconds=rejoin_wait_seconds, **options))
        return made[-1]

    yield make
    for one in made:
        one.pool.shutdown()


def places(futures):
    """(rank, world size) that each was told."""
    return [(info.rank, info.world_size) for info in (future.result(PATIENCE_SECONDS) for future in futures)]


def outside(gang, *nodes):
    """Their meeting, begun; returns when each stands outside and has looked once."""
    return gang.wait_until_waiting(*nodes)


def without(gang, *lost):
    """All meet but these."""
    present = [node for node in range(gang.nodes) if node not in lost]
    return present, places(gang.start(*present))


def wait_from_now_on(gang, rejoin_wait_seconds):
    """Another bound than that by which the gang came to be without some."""
    gang.barriers[0]._membership._rejoin_wait_seconds = rejoin_wait_seconds


def node_0_still_waits(gang, meeting):
    """It looks once more, from the beginning, and nobody goes on."""
    for _ in range(2):  # the look that is under way may have begun before
        looked = Event()
        gang.barriers[0].while_waiting = looked.set
        assert looked.wait(PATIENCE_SECONDS)
    return not any(future.done() for future in meeting)


# --- who the members are -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_when_all_come_nobody_waits_for_the_bound(gang, nodes):
    them = gang(nodes, min_nodes=1)  # a bound of minutes
    assert places(them.start()) == [(node, nodes) for node in range(nodes)]
    assert all(barrier.members == list(range(nodes)) for barrier in them.barriers)


@pytest.mark.parametrize(("nodes", "lost", "least"), [(2, [1], 1), (4, [2], 3), (4, [1, 2], 2), (8, [1, 2, 3, 4, 5, 6, 7], 1)])
def test_after_the_bound_those_who_are_there_go_on_with_ranks_without_gaps(gang, nodes, lost, least):
    them = gang(nodes, least, SOON_SECONDS)
    present, told = without(them, *lost)
    assert told == [(place, len(present)) for place in range(len(present))]
    assert all(them.barriers[node].members == present for node in present)


def test_fewer_than_the_fewest_do_not_go_on(gang):
    class EnoughError(Exception):
        pass

    def look():
        if other.generation == 0:
            claimed.set()
        if enough.is_set():
            raise EnoughError

    them, claimed, enough = gang(4, 3, rejoin_wait_seconds=0.01), Event(), Event()
    other = them.barriers[1]
    other.while_waiting = look
    (waiting,) = them.start(1)
    assert claimed.wait(PATIENCE_SECONDS)
    with pytest.raises(PeerLostError, match=r"^nodes 2, 3 did not come to generation 0"):
        them.barriers[0].next_rendezvous(bound_seconds=1.0)
    enough.set()
    with pytest.raises(EnoughError):
        waiting.result(PATIENCE_SECONDS)


def test_the_fewest_go_on_as_soon_as_they_are_there_once_the_bound_has_passed(gang):
    them = gang(4, 3, rejoin_wait_seconds=0.01)
    early = them.wait_until_waiting(0, 3)
    assert not any(future.done() for future in early)
    assert places([*early, *them.start(1)]) == [(0, 3), (2, 3), (1, 3)]


def test_nobody_goes_on_without_node_0(gang):
    them = gang(3, 1, rejoin_wait_seconds=0.01, timeout_seconds=1.0)
    for future in them.start(1, 2):
        with pytest.raises(PeerLostError, match=r"^node 0 did not come to generation 0"):
            future.result(PATIENCE_SECONDS)


def test_without_a_fewest_all_are_waited_for_however_long(gang):
    them = gang(3, None, rejoin_wait_seconds=0.01, timeout_seconds=1.0)
    for future in them.start(0, 1):
        with pytest.raises(PeerLostError, match=r"^node 2 did not come"):
            future.result(PATIENCE_SECONDS)


def test_finishing_needs_the_members_only(gang):
    them = gang(3, 1, SOON_SECONDS)
    without(them, 1)
    them.barriers[0].post_finished()
    assert not them.barriers[2].all_finished()
    them.barriers[2].post_finished()
    assert them.barriers[0].all_finished()


# --- who is waited for after a fault --------------------------------------------------------------------------------------------------


def test_a_node_that_is_gone_is_waited_for_once_and_not_at_each_later_fault(gang):
    them = gang(4, 2, SOON_SECONDS)
    present, _ = without(them, 1)
    wait_from_now_on(them, NEVER_SECONDS)
    for _ in range(3):
        them.barriers[present[-1]].ask_for_next()
        assert places(them.start(*present)) == [(0, 3), (1, 3), (2, 3)]
        assert all(them.barriers[node].members == present for node in present)


def test_right_after_its_loss_a_members_replacement_is_waited_for(gang):
    them = gang(4, 2, SOON_SECONDS)
    without(them, 1)
    wait_from_now_on(them, NEVER_SECONDS)
    them.barriers[0].ask_for_next()
    others = them.wait_until_waiting(0, 2)
    assert node_0_still_waits(them, others)
    them.barriers[3] = them.join(3)
    assert places([*others, *them.start(3)]) == [(0, 3), (1, 3), (2, 3)]
    assert them.barriers[0].take_replaced() == [3]


def test_a_replacement_has_said_whom_it_replaces_before_the_generation_is_complete(gang):
    them, claimed, say = gang(4, 2, SOON_SECONDS), Event(), Event()
    present, _ = without(them, 1)  # one more than the fewest
    wait_from_now_on(them, NEVER_SECONDS)
    them.barriers[0].ask_for_next()
    successor = them.barriers[2] = them.join(2)
    introduce = successor._membership.introduce

    def hesitate():
        claimed.set()
        assert say.wait(PATIENCE_SECONDS)
        return introduce()

    successor._membership.introduce = hesitate
    meeting = them.wait_until_waiting(0, 3) + them.start(2)
    assert claimed.wait(PATIENCE_SECONDS)
    assert node_0_still_waits(them, meeting)
    say.set()
    assert places(meeting) == [(0, 3), (2, 3), (1, 3)]
    assert them.barriers[0].members == present
    assert them.barriers[0].take_replaced() == [2]


def test_who_has_asked_to_be_let_in_is_waited_for_and_who_is_still_gone_is_not(gang):
    them, asked, come = gang(4, 2, SOON_SECONDS), Event(), Event()
    present, _ = without(them, 1, 3)
    wait_from_now_on(them, NEVER_SECONDS)

    def stand_still():
        asked.set()
        assert come.wait(PATIENCE_SECONDS)

    them.barriers[3].while_waiting = stand_still
    late = them.start(3)
    assert asked.wait(PATIENCE_SECONDS)
    them.barriers[0].ask_for_next()
    others = them.wait_until_waiting(*present)
    assert node_0_still_waits(them, others)
    come.set()
    assert places([*others, *late]) == [(0, 3), (1, 3), (2, 3)]
    assert them.barriers[0].members == [0, 2, 3]


def test_one_that_dies_while_it_asks_to_be_let_in_is_waited_for_once(gang):
    them = gang(3, 2, SOON_SECONDS)
    present, _ = without(them, 1)
    them.barriers[1]._connect(float("inf"))
    them.barriers[1]._membership.stand_outside(0)  # and never goes away, as one that is killed does not
    assert them.barriers[0].waiting() == 1
    wait_from_now_on(them, NEVER_SECONDS)
    them.barriers[0].ask_for_next()
    others = them.wait_until_waiting(*present)
    assert node_0_still_waits(them, others)
    wait_from_now_on(them, SOON_SECONDS)
    assert places(others) == [(0, 2), (1, 2)]
    assert them.barriers[0].waiting() == 0
    wait_from_now_on(them, NEVER_SECONDS)
    them.barriers[0].ask_for_next()
    assert places(them.start(*present)) == [(0, 2), (1, 2)]


def test_a_generation_that_a_fault_ended_while_it_formed_changes_nobody_who_is_waited_for(gang):
    them = gang(3, 2, SOON_SECONDS)
    present, _ = without(them, 1)
    wait_from_now_on(them, NEVER_SECONDS)
    for generation in (0, 1, 2):
        them.barriers[0]._ask_beyond(generation)
    assert places(them.start(*present)) == [(0, 2), (1, 2)]
    assert them.barriers[0].generation == 3


def test_before_the_first_generation_has_formed_all_are_waited_for(gang):
    them = gang(3, 2, NEVER_SECONDS)
    them.barriers[0]._ask_beyond(them.barriers[0]._newest())
    early = them.wait_until_waiting(0, 2)
    assert node_0_still_waits(them, early)
    assert places([*early, *them.start(1)]) == [(0, 3), (2, 3), (1, 3)]
    assert them.barriers[0].generation == 1


# --- who comes late ------------------------------------------------------------------------------------------------------------------


def test_a_late_node_disturbs_nobody_is_counted_and_is_in_the_next_generation(gang):
    them = gang(4, 2, SOON_SECONDS)
    present, _ = without(them, 1, 3)
    assert them.barriers[0].waiting() == 0
    late = outside(them, 3)
    assert them.barriers[0].waiting() == 1
    late += outside(them, 1)
    assert them.barriers[0].waiting() == 2
    assert not any(them.barriers[node].is_superseded() for node in present)
    assert them.barriers[0].fault() is None
    them.barriers[0].ask_for_next()
    assert places([*them.start(*present), *late]) == [(0, 4), (2, 4), (3, 4), (1, 4)]
    assert {barrier.generation for barrier in them.barriers} == {1}
    assert them.barriers[0].waiting() == 0


def test_a_late_node_that_is_replaced_while_it_waits_is_let_in_too(gang):
    them = gang(3, 2, SOON_SECONDS)
    present, _ = without(them, 1)
    them.barriers[1].while_waiting = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        them.barriers[1].next_rendezvous()
    assert them.barriers[0].waiting() == 0  # whoever leaves in order is waited for by nobody
    them.barriers[1] = them.join(1)
    late = outside(them, 1)
    assert them.barriers[0].waiting() == 1
    them.barriers[0].ask_for_next()
    assert places([*them.start(*present), *late]) == [(0, 3), (2, 3), (1, 3)]


def test_a_late_node_waits_with_a_bound(gang):
    them = gang(2, 1, SOON_SECONDS)
    without(them, 1)
    them.timeout_seconds = 0.5
    late = them.join(1)
    with pytest.raises(PeerLostError, match=r"^generation 0 runs without node 1 and did not let it in within 0 s; see whether its steps"):
        late.next_rendezvous()
    assert them.barriers[0].waiting() == 0


def test_a_node_that_claims_its_place_while_the_membership_is_closed_stands_outside(gang):
    them = gang(3, 2, SOON_SECONDS)
    slow = them.barriers[1]
    closed = slow._membership.closed
    answers = iter([None])  # it asked before node 0 had closed, and claims after
    slow._membership.closed = lambda generation: next(answers) if generation == 0 and not entered.is_set() else closed(generation)
    entered, enter = Event(), slow._membership.enter

    def claim(generation, token):
        entered.set()
        return enter(generation, token)

    slow._membership.enter = claim
    present, _ = without(them, 1)
    late = outside(them, 1)
    assert them.barriers[0].waiting() == 1
    assert slow.generation == -1
    slow.post_fault("not of this generation")
    assert them.barriers[0].fault() is None
    assert not any(them.barriers[node].is_superseded() for node in present)
    them.barriers[0].ask_for_next()
    assert places([*them.start(*present), *late]) == [(0, 3), (2, 3), (1, 3)]


def test_all_who_come_at_the_last_moment_agree_on_the_members(gang):
    for _ in range(10):  # the bound passes while they claim their places
        them = gang(6, 1, rejoin_wait_seconds=0.02)
        futures = them.start()
        them.pool.submit(futures[0].result, PATIENCE_SECONDS).result(PATIENCE_SECONDS)
        members = them.barriers[0].members
        told = places([futures[node] for node in members])
        assert told == [(place, len(members)) for place in range(len(members))]
        assert all(them.barriers[node].members == members for node in members)
        them.barriers[0].close("over")
        for node in set(range(6)) - set(members):
            with pytest.raises(RendezvousClosedError):
                futures[node].result(PATIENCE_SECONDS)


def test_a_member_that_dies_and_returns_brings_all_into_a_new_generation(gang):
    them = gang(3, 2, SOON_SECONDS)
    present, _ = without(them, 1)
    them.barriers[2] = them.join(2)
    returning = them.start(2)
    assert await_superseded(them.barriers[0])
    assert Fault.from_json(them.barriers[0].fault()).cause == "peer_loss"
    assert places([*them.start(0), *returning]) == [(0, 2), (1, 2)]
    assert them.barriers[0].members == present


# --- the end -------------------------------------------------------------------------------------------------------------------------


def test_the_end_reaches_those_outside_too(gang):
    them = gang(3, 1, SOON_SECONDS)
    without(them, 1)
    (late,) = outside(them, 1)
    them.barriers[0].close("over")
    with pytest.raises(RendezvousClosedError, match=r"^over$"):
        late.result(PATIENCE_SECONDS)


def test_node_0_waits_until_members_and_those_outside_have_read_the_end_and_for_nobody_else(gang, monkeypatch):
    monkeypatch.setattr(rendezvous, "FAREWELL_SECONDS", PATIENCE_SECONDS * 10)
    them = gang(4, 2, SOON_SECONDS)
    without(them, 1, 2)  # node 2 never comes
    outside(them, 1)
    them.barriers[0].close("over")
    store, awaited = them.barriers[0]._store, []
    look = store.has
    monkeypatch.setattr(store, "has", lambda keys: awaited.append(keys) or look(keys))
    host = them.pool.submit(them.barriers[0].farewell)
    them.barriers[3].farewell()
    them.barriers[1].farewell()
    host.result(PATIENCE_SECONDS)
    assert sorted(awaited[-1]) == ["left/0", "left/1", "left/3"]
