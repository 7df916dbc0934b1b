"""`decide` takes whatever clusters say: it never raises, always gives a status that the API takes, and comes to rest."""

from dataclasses import replace

from facts_strategies import clocks, run_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from small_facts import NOW

from ddp_operator.api.trainingrun import LEDGER_ENTRIES, LedgerEntry, OpenIncident, TrainingRunStatus
from ddp_operator.api.words import Cause, Phase
from ddp_operator.decide.decide import decide
from ddp_operator.decide.decision import DeletePod
from ddp_operator.decide.wording import moment

words = st.one_of(
    st.builds(
        "{}/{}/{}{}".format,
        st.sampled_from(["u1", "u2", "x"]),
        st.integers(0, 3),
        st.integers(0, 10),
        st.sampled_from(["", "/lost", "/left", "/freed", "/done", "/?"]),
    ),
    st.sampled_from(["", "/", "a/b/c", "u1/0", "u1/٣/0", "a/b/c/d/e"]),
)


@st.composite
def remembering_facts(draw):
    """Facts with the memory that only `decide` itself writes, also where it does not fit."""
    facts = draw(run_facts())
    at = moment(draw(clocks))
    incident = OpenIncident(opened_at=at, last_loss_at=at, replicas=["worker-0"], gathered_at=draw(st.sampled_from([None, at])))
    memory = {
        "incarnations": draw(st.dictionaries(st.sampled_from(["master-0", "worker-0", "worker-1", "odd"]), words, max_size=4)),
        "incident": draw(st.sampled_from([None, incident])),
        "job_generation": draw(st.integers(0, 9)),
        "overdue": draw(st.sampled_from([None, Cause.DEADLINE_EXCEEDED])),
        "numbers_written_at": draw(st.sampled_from([None, at])),
    }
    if draw(st.booleans()):
        memory["ledger"] = [LedgerEntry(at=at, cause=Cause.CRASH)] * LEDGER_ENTRIES
    return replace(facts, status=facts.status.model_copy(update=memory))


@settings(max_examples=120)
@given(remembering_facts(), clocks)
def test_any_facts_give_a_status_that_the_api_takes(facts, now):
    decision = decide(facts, now)
    text = decision.status.model_dump_json(by_alias=True)
    assert TrainingRunStatus.model_validate_json(text) == decision.status
    assert len(decision.status.ledger) <= LEDGER_ENTRIES
    assert 1.0 <= decision.look_again_seconds <= 300.0
    assert decide(facts, now) == decision
    assert len({type(action) for action in decision.actions}) <= 1
    assert all(0 < len(event.message) <= 1024 for event in decision.events)


@settings(max_examples=120)
@given(remembering_facts(), clocks)
def test_the_same_facts_again_come_to_rest(facts, now):
    for _ in range(6):
        decision = decide(facts, now)
        if decision.status == facts.status:
            break
        facts = replace(facts, status=decision.status)
    assert decision.status == facts.status
    assert decision.events == ()
    assert decide(facts, now).actions == decision.actions


@settings(max_examples=40)
@given(remembering_facts(), clocks)
def test_nothing_is_concluded_before_the_pods_are_known_or_when_the_run_goes(facts, now):
    for blind in (replace(facts, pods_are_known=False), replace(facts, deleted_at=now - 1.0)):
        decision = decide(blind, now)
        assert (decision.status, decision.actions, decision.events) == (facts.status, (), ())


@settings(max_examples=60)
@given(remembering_facts(), clocks)
def test_a_job_that_is_being_deleted_is_not_written(facts, now):
    if facts.job is not None:
        facts = replace(facts, job=replace(facts.job, deleted_at=NOW))
        assert all(isinstance(action, DeletePod) for action in decide(facts, now).actions)


@settings(max_examples=40)
@given(remembering_facts(), clocks)
def test_without_a_job_there_are_no_actions_and_an_end_stays(facts, now):
    decision = decide(replace(facts, job=None), now)
    assert decision.actions == ()
    if facts.status.phase in {Phase.SUCCEEDED, Phase.FAILED} and facts.pods_are_known:
        assert decision.status.phase is facts.status.phase
