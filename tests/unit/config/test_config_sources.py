"""Where values come from: file, then environment, then --set; and every mistake in them as one sentence."""

from __future__ import annotations

import json

import pytest
import yaml

from ddp_trainer.config import RunConfig, keys_said, load
from ddp_trainer.errors import ConfigError

MANY_DIGITS = "9" * 5_000


def deep(levels):
    return "[" * levels + "]" * levels


def written(tmp_path, document, name="run.json"):
    path = tmp_path / name
    path.write_text(json.dumps(document) if name.endswith(".json") else yaml.safe_dump(document), encoding="utf-8")
    return path


def test_environment_wins_over_the_file_and_set_wins_over_both(tmp_path):
    path = written(tmp_path, {"optim": {"lr": 0.1, "momentum": 0.1, "epochs": 1}})
    environment = {"DDP__OPTIM__LR": "0.2", "DDP__OPTIM__MOMENTUM": "0.2", "UNRELATED": "x"}
    optim = load(path, ["optim.lr=0.3"], environment).optim
    assert (optim.lr, optim.momentum, optim.epochs) == (0.3, 0.2, 1)


def test_the_last_of_two_settings_of_one_key_wins():
    assert load(None, ["optim.lr=0.3", "optim.lr=0.4"]).optim.lr == 0.4


@pytest.mark.parametrize("name", ["run.json", "run.yaml", "run.yml"])
def test_the_same_document_means_the_same_in_json_and_in_yaml(tmp_path, name):
    document = {
        "distributed": {"nodes": 2},
        "data": {"global_batch": 64, "flip": False},
        "checkpoint": {"every_seconds": None, "every_steps": 5},
    }
    assert load(written(tmp_path, document, name)) == RunConfig.model_validate(document)


def test_an_empty_yaml_file_means_all_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("# nothing yet\n", encoding="utf-8")
    assert load(path) == load(None) == RunConfig()


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8.0), ("1e-3", 0.001), ("1E-3", 0.001), (".5", 0.5), ("0.25", 0.25)],
)
def test_numbers_on_the_command_line_are_read_as_people_write_them(text, value):
    assert load(None, [f"optim.lr={text}"]).optim.lr == value


def test_booleans_null_and_text_are_told_apart():
    config = load(None, ["data.flip=false", "checkpoint.every_seconds=null", "checkpoint.every_steps=3", "data.source=/a/b=c"])
    assert config.data.flip is False
    assert config.checkpoint.every_seconds is None
    assert config.data.source == "/a/b=c"


def test_a_number_in_quotes_is_text():
    config = load(None, ['run.name="2024"', "data.source='7'", 'task.options.label="7"'])
    assert (config.run.name, config.data.source, config.task.options) == ("2024", "7", {"label": "7"})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("run.name", "2024"),
        ("run.name", "0123"),
        ("run.name", "1e3"),
        ("run.name", "true"),
        ("run.name", "12_3"),
        ("run.root", "/a dir/#1: x"),
        ("data.source", "[a]"),
        ("data.source", "{a: b}"),
        ("data.source", "*"),
        ("slurm.time", "12:30:00"),
        ("slurm.time", "90"),
        ("slurm.time", "1-00:00:00"),
        ("slurm.partition", "123"),
        ("slurm.gres", "gpu:4"),
        ("precision.compile", "on"),
        ("precision.compile", "off"),
    ],
)
def test_where_text_is_wanted_it_is_taken_as_it_stands(key, text):
    section, _, name = key.partition(".")
    assert getattr(getattr(load(None, [f"{key}={text}"]), section), name) == text
    assert load(None, (), {f"DDP__{section}__{name}".upper(): text}) == load(None, [f"{key}={text}"])


@pytest.mark.parametrize("empty", ["null", "~", ""])
def test_null_empties_what_may_be_empty(empty):
    assert load(None, ["slurm.partition=a", f"slurm.partition={empty}"]).slurm.partition is None


YAML_OF_PEOPLE = """
run: {name: 2024, root: 0777}
precision: {compile: off, dtype: fp32}
slurm:
  time: 12:30:00
  partition: 123
  gres: null
optim: {lr: 1e-3, epochs: .5, nesterov: true, ema_decay: ~}
data: {source: 2026-01-31, global_batch: 0x80, flip: False}
task: {name: my.module:Task, options: {at: 12:30, quoted: "010", octal: 010, yes: no, on: 1.50}}
"""


def test_yaml_files_are_read_by_the_rules_of_yaml_1_2(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(YAML_OF_PEOPLE, encoding="utf-8")
    config = load(path)
    assert (config.run.name, config.run.root, config.data.source) == ("2024", "0777", "2026-01-31")
    assert (config.precision.compile, config.data.flip, config.optim.nesterov) == ("off", False, True)
    assert (config.slurm.time, config.slurm.partition, config.slurm.gres) == ("12:30:00", "123", None)
    assert (config.optim.lr, config.optim.epochs, config.optim.ema_decay, config.data.global_batch) == (0.001, 0.5, None, 128)
    assert config.task.options == {"at": "12:30", "quoted": "010", "octal": 10, "yes": "no", "on": 1.5}


def test_yaml_that_refers_to_itself_is_refused_and_not_followed_for_ever(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("run: &a {name: x, root: *a}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.root"):
        load(path)


@pytest.mark.parametrize("text", ["[unclosed", "!!int x", '{"a": 1, "a": 2}', "{a: 1, a: 2}", "9" * 5_000, "[" * 2_000, "caf\udce9"])
def test_text_that_nobody_can_read_is_taken_as_it_stands(text):
    assert load(None, [f"data.source={text}"]).data.source == text


def test_the_options_of_a_users_task_are_free():
    config = load(None, ["task.name=my.module:Task", "task.options.depth=3"])
    assert config.task.options == {"depth": 3}


# --- a key and those that repeat it ---------------------------------------------------------------------------------------------------

PRESET = {
    "distributed": {"nodes": 4, "procs_per_node": 2, "world_size": 8, "max_nodes": 4},
    "slurm": {"nodes": 4, "ntasks_per_node": 2},
}


def test_a_later_source_that_changes_the_nodes_drops_what_only_repeated_them(tmp_path):
    path = written(tmp_path, PRESET)
    for config in (load(path, ["distributed.nodes=2"]), load(path, (), {"DDP__DISTRIBUTED__NODES": "2"})):
        assert (config.world_size, config.distributed.world_size, config.slurm.nodes, config.slurm.ntasks_per_node) == (4, None, None, 2)
        assert config.distributed.max_nodes is None
    config = load(path, ["distributed.procs_per_node=1"])
    assert (config.world_size, config.slurm.nodes, config.slurm.ntasks_per_node) == (4, 4, None)


def test_the_fewest_nodes_repeat_nothing_so_they_stay_and_must_agree(tmp_path):
    path = written(tmp_path, {"distributed": {"nodes": 4, "min_nodes": 3}})
    assert load(path, ["distributed.nodes=8"]).distributed.min_nodes == 3
    with pytest.raises(ConfigError, match=r"min_nodes is 3 but there are only 2 nodes"):
        load(path, ["distributed.nodes=2"])


def test_a_world_size_at_the_top_is_dropped_as_well(tmp_path):
    assert load(written(tmp_path, {"world_size": 1}), ["distributed.nodes=2"]).world_size == 2


def test_a_configuration_changed_in_the_program_is_a_later_source(tmp_path):
    assert load(written(tmp_path, PRESET)).with_values({"distributed.nodes": 2}).world_size == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["distributed.nodes=2", "world_size=8"], "world_size is 8 but nodes x procs_per_node = 2 x 2 = 4"),
        (["distributed.nodes=2", "distributed.world_size=8"], "world_size is 8 but nodes x procs_per_node = 2 x 2 = 4"),
        (["distributed.nodes=2", "slurm.nodes=4"], r"slurm\.nodes is 4 but the distributed section says 2"),
        (['distributed={"nodes": 2, "world_size": 8}'], "world_size is 8 but nodes x procs_per_node = 2 x 1 = 2"),
        (["world_size=16"], "world_size is 16 .* distributed.world_size is 8"),
    ],
)
def test_what_one_source_says_must_agree_with_itself(tmp_path, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load(written(tmp_path, PRESET), settings)


# --- mistakes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["optim.lrr=0.1"], ["'optim.lrr'", "lr", "momentum", "weight_decay"]),
        (["optimizer.lr=0.1"], ["'optimizer'", "optim", "data", "slurm"]),
    ],
)
def test_an_unknown_key_is_refused_and_the_known_ones_are_named(settings, words):
    with pytest.raises(ConfigError, match="unknown key") as error:
        load(None, settings)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optim.lr=fast", ["optim.lr", "number", "'fast'"]),
        ("distributed.nodes=0", ["distributed.nodes", "1", "(got 0)"]),
        ("distributed.nodes=2.5", ["distributed.nodes", "integer"]),
        ("checkpoint.keep=1", ["checkpoint.keep", "2"]),
        ("distributed.backend=mpi", ["distributed.backend", "'nccl'", "'gloo'", "'mpi'"]),
        ("run.name=Not A Name", ["run.name", "Not A Name"]),
        ("run.name=../up", ["run.name"]),
        ("telemetry.port=70000", ["telemetry.port", "65535"]),
        ("optim.epochs=.inf", ["optim.epochs", "finite"]),
        ("distributed.peer_timeout_seconds=.inf", ["distributed.peer_timeout_seconds", "finite"]),
        ("optim.lr=NaN", ["optim.lr", "finite"]),
        ("optim=3", ["optim"]),
        ("optim.lr=!!int x", ["optim.lr", "'!!int x'"]),
        ("optim.lr=!!timestamp x", ["optim.lr", "'!!timestamp x'"]),
        (f"optim.lr={MANY_DIGITS}", ["optim.lr", "'9999", "...9999"]),
        (f"data.global_batch=0x{MANY_DIGITS}", ["data.global_batch", "'0x99"]),
        (f"optim.lr={deep(900)}", ["optim.lr", "[[[["]),
        (f"optim.lr={deep(100_000)}", ["optim.lr", "'[[[["]),
        (f"task.options.x={deep(100)}", ["task.options", "more than 100"]),
        ('task.options.x="\\ud800"', ["task.options", "surrogates not allowed"]),
        ('run.root="a\\u0000b"', ["run.root", r"'\x00'", "leave it out"]),
        ('run.root="a\\ud800b"', ["run.root", r"'\ud800'", "leave it out"]),
        ('optim={"lr": 1, "lr": 2}', ["--set optim:", "'lr' is given twice"]),
        ("optim={lr: 1, lr: 2}", ["--set optim:", "'lr' is given twice"]),
    ],
)
def test_a_wrong_value_is_reported_with_its_key_the_reason_and_what_was_given(setting, words):
    with pytest.raises(ConfigError) as error:
        load(None, [setting])
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600  # a sentence, whatever was given


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path):
    path = written(tmp_path, {"optim": {"lr": -1, "nope": 1}, "data": {"global_batch": "many"}})
    with pytest.raises(ConfigError) as error:
        load(path)
    assert all(word in str(error.value) for word in (str(path), "optim.lr", "'optim.nope'", "data.global_batch"))


@pytest.mark.parametrize("setting", ["optim.lr", "=0.1", " =0.1"])
def test_a_setting_without_key_or_value_shows_the_right_form(setting):
    with pytest.raises(ConfigError, match=r"key\.path=value"):
        load(None, [setting])


def test_nothing_can_be_set_below_a_value():
    with pytest.raises(ConfigError, match=r"--set optim\.lr\.peak: 'lr' is a value, not a section"):
        load(None, ["optim.lr=0.1", "optim.lr.peak=0.2"])


def test_what_the_user_gave_a_value_for_is_known_by_key():
    assert keys_said(["optim.lr=0.1"], {"DDP__RUN__NAME": "mine", "HOME": "/home/me"}) == {"optim.lr", "run.name"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.json", b"{", "is not valid JSON"),
        ("run.yaml", b"a: [", "is not valid YAML"),
        ("run.json", b"[1, 2]", "holds a list, not a mapping"),
        ("run.yaml", b"just words", "holds a str, not a mapping"),
        ("run.json", b"\xff\xfe{\x00}", "is not text in UTF-8"),
        ("run.yaml", b"\xff\xfe\xff", "is not text in UTF-8"),
        ("run.json", b'{"optim": {"lr": 1, "lr": 2}}', "the key 'lr' is given twice"),
        ("run.yaml", b"optim: {lr: 1, momentum: 0, lr: 2}", "the key 'lr' is given twice"),
        ("run.yaml", b"data: {}\noptim: {}\ndata: {}", "the key 'data' is given twice"),
        ("run.json", f'{{"optim": {{"lr": {MANY_DIGITS}}}}}'.encode(), "a whole number of 5,000 digits is too long"),
        ("run.yaml", f"optim: {{lr: {MANY_DIGITS}}}".encode(), "cannot be read as int .*line 1, column 13"),
        ("run.yaml", f"optim: {{lr: 0x{MANY_DIGITS}}}".encode(), "cannot be read as int"),
        ("run.json", f'{{"optim": {{"lr": {deep(100_000)}}}}}'.encode(), "is nested too deeply"),
        ("run.yaml", f"optim: {{lr: {deep(2_000)}}}".encode(), "is nested too deeply"),
        ("run.json", f'{{"task": {{"options": {{"x": {deep(300)}}}}}}}'.encode(), "task.options: more than 100"),
        ("run.yaml", b"task: {options: &a {x: *a}}", "task.options: more than 100 .* or one within itself"),
        ("run.yaml", b"optim:\n  lr: !!int abc", "'abc' cannot be read as int in .*line 2, column 7"),
        ("run.yaml", b"optim: {lr: !!int [1]}", "expected a scalar node"),
        ("run.yaml", b"optim: {lr: !!float abc}", "'abc' cannot be read as float"),
        ("run.yaml", b"optim: {lr: !!float ''}", "'' cannot be read as float"),
        ("run.yaml", b"data: {flip: !!bool abc}", "'abc' cannot be read as bool"),
        ("run.yaml", b"optim: {lr: !!timestamp abc}", "the tag '.*timestamp'"),
        ("run.yaml", b"task: {options: {x: !!binary gIGC}}", "the tag '.*binary'"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent\.json: No such file"):
        load(tmp_path / "absent.json")


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
