"""Whatever stands in an object: facts of the promised types and sizes, or None, and never an exception."""

import copy
import json
from contextlib import suppress
from dataclasses import fields, is_dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from object_bodies import claim_body, job_body, pod_body, run_body

from ddp_operator.observe import slim
from ddp_operator.observe.world import World

STATUS = {
    "phase": "Running",
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-02T03:04:05Z",
            "reason": "A",
            "message": "m",
        }
    ],
    "ledger": [{"at": "2026-01-02T03:04:05Z", "cause": "Crash", "exitCode": 1}],
    "incarnations": {"master-0": "abc/0"},
    "restarts": {"total": 2},
}
BODIES = [
    pod_body(),
    job_body(labels={"ddp-operator.io/track": "true"}),
    claim_body(),
    run_body(status=STATUS, spec={"policy": {"hungAfter": "5m"}}),
]
READERS = [slim.pod, slim.job, slim.claim, slim.run]
KINDS = ["pod", "job", "claim", "run"]

odd_texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["\ud800", "\x1b[2J", "\u202e", "x" * 5000, "1e999999999", "9" * 40, "2026-13-45T99:99:99Z", "-1", "NaN", "10Gi", "true"]
    ),
)
odd_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from([2**63, -1, 10**400, 1e308, 0]), st.floats(), odd_texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(odd_texts, inner, max_size=3)),
    max_leaves=6,
)


def places(value, path=()):
    """The path of every value in a JSON body."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


PLACES = [list(places(body)) for body in BODIES]


def spoiled(body, path, value):
    """The body with another value at `path`, if there still is such a place."""
    if not path:
        return value
    body = copy.deepcopy(body)
    spot = body
    with suppress(KeyError, IndexError, TypeError):
        for key in path[:-1]:
            spot = spot[key]
        spot[path[-1]] = value
    return body


@st.composite
def spoiled_bodies(draw):
    kind = draw(st.sampled_from(range(len(BODIES))))
    body = BODIES[kind]
    for _ in range(draw(st.integers(1, 3))):
        body = spoiled(body, draw(st.sampled_from(PLACES[kind])), draw(odd_values))
    return kind, body


def texts_of(value):
    if isinstance(value, str):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from texts_of(getattr(value, field.name))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_of(key)
            yield from texts_of(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from texts_of(inner)
    elif hasattr(value, "model_dump"):
        yield from texts_of(value.model_dump())


@given(spoiled_bodies())
@settings(max_examples=200)
def test_spoiled_bodies_give_clean_facts_or_none(case):
    kind, body = case
    seen = READERS[kind](body)
    for found in texts_of(seen):
        assert len(found) <= 4096
        found.encode()
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u202e" for c in found)


@given(st.sampled_from(range(4)), odd_values)
def test_any_json_is_read_or_none(kind, value):
    READERS[kind](value)
    READERS[kind]({"metadata": value, "spec": value, "status": value})


@given(st.lists(spoiled_bodies(), max_size=8))
@settings(max_examples=50)
def test_world_takes_any_order_of_spoiled_objects(cases):
    world = World()
    for kind, body in [*enumerate(BODIES), *cases]:
        world.put(KINDS[kind], body)
        world.replace(KINDS[kind], (), [body])
    for namespace, name in world.names():
        assert world.facts_of(namespace, name) is not None
        world.node_zero(namespace, name)
    world.unadopted()


def test_deep_nesting_is_read():
    deep = json.loads("[" * 900 + "]" * 900)
    for kind, body in enumerate(BODIES):
        for path in PLACES[kind]:
            READERS[kind](spoiled(body, path, deep))
