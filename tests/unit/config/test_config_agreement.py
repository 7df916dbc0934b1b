"""Values that must agree with each other, what identifies a run, and the presets that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddp_trainer.config import RunConfig, Section, differences, load, validate
from ddp_trainer.data.cache import default_cache_dir
from ddp_trainer.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
PRESETS = {"demo.json": 4, "cluster-16.json": 16, "smoke.json": 2}


@pytest.mark.parametrize("spelling", [["world_size=8"], ["distributed.world_size=8"], ["world_size=8", "distributed.world_size=8"]])
def test_a_world_size_that_is_nodes_times_processes_is_accepted_in_both_spellings(spelling):
    assert load(None, [*spelling, "distributed.nodes=4", "distributed.procs_per_node=2"]).world_size == 8


@pytest.mark.parametrize("spelling", ["world_size=16", "distributed.world_size=16"])
def test_another_world_size_is_refused_with_the_arithmetic(spelling):
    with pytest.raises(ConfigError, match=r"world_size is 16 but nodes x procs_per_node = 4 x 2 = 8; set nodes and procs_per_node"):
        load(None, [spelling, "distributed.nodes=4", "distributed.procs_per_node=2"])


def test_two_spellings_of_the_world_size_may_not_contradict_each_other():
    with pytest.raises(ConfigError, match=r"world_size is 16 .* distributed\.world_size is 8"):
        load(None, ["world_size=16", "distributed.world_size=8", "distributed.nodes=8"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["data.global_batch=10", "distributed.nodes=4"], r"global_batch 10 is not divisible by the 4 micro-batches .* such as 8"),
        (["data.global_batch=2", "distributed.nodes=4"], r"global_batch 2 is not divisible by the 4 micro-batches .* such as 4"),
        (["data.micro_batches=6", "data.global_batch=12", "distributed.nodes=4"], r"micro_batches 6 is not divisible by the world size 4"),
        (["slurm.nodes=2", "distributed.nodes=4"], r"slurm\.nodes is 2 but the distributed section says 4"),
        (["slurm.ntasks_per_node=4", "distributed.nodes=2"], r"slurm\.ntasks_per_node is 4 but the distributed section says 1"),
        (["checkpoint.every_seconds=null"], "nothing would be saved"),
        (["optim.momentum=0"], r"set optim\.nesterov=false"),
        (["distributed.nodes=2", "distributed.min_nodes=3"], r"min_nodes is 3 but there are only 2 nodes; lower min_nodes, or raise nodes"),
        (["distributed.nodes=4", "distributed.max_nodes=8"], r"max_nodes is 8 but nodes is 4: .*; leave max_nodes out"),
        (["distributed.nodes=4", "distributed.max_nodes=3"], r"max_nodes is 3 but nodes is 4: .*; leave max_nodes out"),
        (
            ["distributed.nodes=2", "distributed.min_nodes=1", "distributed.peer_timeout_seconds=20"],
            r"rejoin_wait_seconds is 30 but everybody leaves after peer_timeout_seconds 20, .*; make rejoin_wait_seconds the shorter one",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_the_fix(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load(None, settings)


@pytest.mark.parametrize("fewest", [1, 3, 4])
def test_a_run_may_go_on_with_fewer_nodes_but_never_has_more_than_all(fewest):
    settings = ["distributed.nodes=4", f"distributed.min_nodes={fewest}", "distributed.max_nodes=4"]
    assert load(None, settings).distributed.min_nodes == fewest


@pytest.mark.parametrize("elastic", [[], ["distributed.min_nodes=2"]])
def test_without_elasticity_the_wait_for_a_lost_node_is_free(elastic):
    load(None, ["distributed.nodes=2", "distributed.peer_timeout_seconds=5", *elastic])


def test_the_batch_that_is_suggested_is_accepted():
    with pytest.raises(ConfigError) as error:
        load(None, ["data.global_batch=1000", "distributed.nodes=48"])
    suggested = str(error.value).rsplit("such as ", 1)[1]
    assert load(None, [f"data.global_batch={suggested}", "distributed.nodes=48"]).data.global_batch == int(suggested)


def test_there_is_one_micro_batch_per_rank_unless_it_is_said():
    settings = ["distributed.nodes=2", "distributed.procs_per_node=2"]
    assert load(None, settings).micro_batches == 4
    assert load(None, [*settings, "data.micro_batches=8"]).micro_batches == 8


def test_a_changed_configuration_is_validated_again_and_leaves_the_first_alone():
    config = load(None, ["distributed.nodes=2", "optim.lr=0.3"])
    changed = config.with_values({"distributed.nodes": 4})
    assert (changed.distributed.nodes, changed.optim.lr, config.distributed.nodes) == (4, 0.3, 2)
    with pytest.raises(ConfigError, match="the changed configuration"):
        config.with_values({"distributed.nodes": 3})


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().optim.lr = 1.0


# --- identity ------------------------------------------------------------------------------------------------------------------------

FREE = {
    "run.name": "other",
    "run.root": "/elsewhere",
    "distributed.nodes": 4,
    "distributed.peer_timeout_seconds": 7.0,
    "telemetry.port": 0,
    "checkpoint.every_steps": 9,
    "checkpoint.keep": 7,
    "fault_tolerance.max_restarts": 99,
    "optim.epochs": 99.0,
    "optim.max_steps": 99,
    "data.source": "/another/copy",
    "data.cache_dir": "/another/cache",
    "data.eval_batch": 9,
    "precision.threads_per_rank": 1,
    "slurm.partition": "gpu",
}
BOUND = {
    "run.seed": 1,
    "task.name": "imagefolder",
    "task.options": {"depth": 1},
    "model.name": "resnet18",
    "model.stem": "cifar",
    "data.global_batch": 64,
    "data.micro_batches": 8,
    "data.flip": False,
    "data.crop_padding": 0,
    "optim.lr": 0.2,
    "optim.momentum": 0.8,
    "optim.weight_decay": 0.0,
    "optim.ema_decay": 0.9,
}
BASE = load(None, ["data.micro_batches=4"])


@pytest.mark.parametrize("key", FREE)
def test_a_checkpoint_is_continued_when_this_changes(key):
    changed = BASE.with_values({key: FREE[key]})
    assert changed != BASE
    assert changed.identity() == BASE.identity()
    assert changed.digest() == BASE.digest()


@pytest.mark.parametrize("key", BOUND)
def test_a_checkpoint_is_refused_when_this_changes_and_the_key_is_named(key):
    changed = BASE.with_values({key: BOUND[key]})
    assert changed.digest() != BASE.digest()
    (line,) = differences(changed.identity(), BASE.identity())
    assert line.startswith("seed: " if key == "run.seed" else key)
    assert line.endswith(f"-> {json.dumps(next(iter(BOUND[key].values())) if isinstance(BOUND[key], dict) else BOUND[key])}")


def test_the_number_of_ranks_may_change_whether_or_not_micro_batches_are_set():
    # where they are not, the run goes on with the number in its checkpoint, so the identity holds what was configured: nothing
    two, four = load(None, ["distributed.nodes=2"]), load(None, ["distributed.nodes=4"])
    assert differences(four.identity(), two.identity()) == []
    assert two.identity()["data"]["micro_batches"] is None
    said = [load(None, [f"distributed.nodes={n}", "data.micro_batches=4"]) for n in (2, 4)]
    assert said[0].identity() == said[1].identity()
    assert differences(said[0].identity(), two.identity()) == ["data.micro_batches: null -> 4"]


def test_differences_tell_old_and_new_of_every_leaf_in_order():
    mine, theirs = {"b": {"x": 1, "y": [1]}, "a": None, "only": 2}, {"b": {"x": 2, "y": [1]}, "a": 0}
    assert differences(mine, theirs) == ["a: 0 -> null", "b.x: 2 -> 1", "only: null -> 2"]
    assert differences(mine, mine) == []


def test_the_digest_is_the_same_in_every_process_and_version():
    # it stands in manifests: a change of the schema that changes this number makes every older checkpoint look foreign
    assert RunConfig().digest() == "7e1541dac1540087"


# --- folders -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "environment", "folder"),
    [
        (["precision.compile_cache_dir=/kernels", "data.cache_dir=/cache"], {"XDG_CACHE_HOME": "/xdg"}, "/kernels"),
        (["precision.compile_cache_dir=~/kernels"], {}, "/home/somebody/kernels"),
        (["data.cache_dir=/cache"], {"XDG_CACHE_HOME": "/xdg"}, "/cache/compile"),
        ([], {"XDG_CACHE_HOME": "/xdg"}, "/xdg/ddp-trainer/compile"),
        ([], {"XDG_CACHE_HOME": ""}, "/home/somebody/.cache/ddp-trainer/compile"),
        ([], {}, "/home/somebody/.cache/ddp-trainer/compile"),
    ],
)
def test_compiled_kernels_lie_where_it_is_said_or_next_to_the_decoded_images(monkeypatch, settings, environment, folder):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load(None, settings).compile_cache(environment) == Path(folder)


def test_compiled_kernels_and_decoded_images_share_one_root(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load(None).compile_cache({"XDG_CACHE_HOME": str(tmp_path)}).parent == default_cache_dir()


# --- presets and schema --------------------------------------------------------------------------------------------------------------


def test_every_preset_is_listed_here():
    assert {path.name for path in CONFIGS.glob("*.*")} == PRESETS.keys()


@pytest.mark.parametrize(("name", "world_size"), PRESETS.items())
def test_a_preset_loads_and_has_the_world_size_that_is_advertised(name, world_size):
    assert load(CONFIGS / name).world_size == world_size


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_cluster_preset_can_be_tried_on_fewer_nodes(workers):
    config = load(CONFIGS / "cluster-16.json", [f"distributed.nodes={workers}"])
    assert (config.world_size, config.slurm.nodes, config.slurm.ntasks_per_node) == (4 * workers, None, 4)


def test_the_cluster_preset_asks_for_four_gpus_on_each_of_four_nodes():
    config = load(CONFIGS / "cluster-16.json")
    assert (config.distributed.nodes, config.distributed.procs_per_node, config.distributed.backend) == (4, 4, "nccl")
    assert (config.slurm.nodes, config.slurm.ntasks_per_node, config.slurm.gres) == (4, 4, "gpu:4")


def sections() -> list[type[Section]]:
    return [RunConfig, *(field.annotation for field in RunConfig.model_fields.values())]


@pytest.mark.parametrize(("section", "name"), [(s, n) for s in sections()[1:] for n in s.model_fields])
def test_every_key_is_documented_in_the_schema(section, name):
    described = RunConfig.model_json_schema()["$defs"][section.__name__]["properties"][name].get("description", "")
    assert len(described.split()) >= 1
    assert described.rstrip().endswith(".")


@pytest.mark.parametrize("section", sections())
def test_every_section_says_what_it_is_and_refuses_what_it_does_not_know(section):
    assert section.__doc__
    assert section.model_json_schema()["additionalProperties"] is False


def test_validation_names_where_a_document_came_from():
    with pytest.raises(ConfigError, match=r"^the manifest: unknown key 'x'"):
        validate({"x": 1}, origin="the manifest")
