"""Whatever is valid survives being written and read: to a file, to the command line, to the environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ddp_trainer.config import RunConfig, load

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
ratios = st.floats(0, 0.999, allow_subnormal=False)
amounts = st.floats(1e-300, 1e300, allow_subnormal=False)
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "run.name": st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,10}[a-z0-9])?", fullmatch=True),
        "run.root": words,
        "run.seed": st.integers(0, 2**63),
        "distributed.nodes": st.sampled_from([1, 2, 4, 8]),
        "distributed.backend": st.sampled_from(["auto", "nccl", "gloo"]),
        "distributed.peer_timeout_seconds": amounts,
        "task.options": st.dictionaries(words, st.none() | st.booleans() | st.integers(-9, 9) | words, max_size=3),
        "data.source": words,
        "data.global_batch": st.integers(1, 64).map(lambda n: n * 8),
        "data.flip": st.booleans(),
        "data.image_size": st.none() | st.integers(1, 512),
        "optim.lr": amounts,
        "optim.momentum": ratios.filter(bool),
        "optim.ema_decay": st.none() | ratios.filter(bool),
        "checkpoint.every_steps": st.none() | st.integers(1, 10**9),
        "telemetry.port": st.integers(0, 65535),
        "slurm.gres": st.none() | words,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("round-trip")


@given(overrides=OVERRIDES)
def test_a_resolved_configuration_reads_back_as_itself_from_json_and_yaml(folder: Path, overrides):
    config = RunConfig().with_values(overrides)
    document = config.model_dump(mode="json")
    (folder / "a.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "a.yaml").write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    assert load(folder / "a.json") == load(folder / "a.yaml") == config
    assert load(folder / "a.json").digest() == config.digest()


@given(overrides=OVERRIDES)
def test_any_value_written_as_json_means_the_same_on_the_command_line_and_in_the_environment(overrides):
    config = RunConfig().with_values(overrides)
    texts = {key: json.dumps(value) for key, value in overrides.items()}
    assert load(None, [f"{key}={text}" for key, text in texts.items()]) == config
    assert load(None, (), {f"DDP__{key.upper().replace('.', '__')}": text for key, text in texts.items()}) == config
