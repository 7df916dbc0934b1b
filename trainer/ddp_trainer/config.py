"""RunConfig: the one schema that every launcher, the chart and the report read.

Values come from a file (JSON or YAML), then the environment (`DDP__OPTIM__LR=0.1`), then `--set optim.lr=0.1`; later wins. Unknown
keys are refused, and a wrong value is reported with its key, the reason and the fix before any socket or GPU is touched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddp_trainer.errors import ConfigError
from ddp_trainer.values import below, read_value, read_yaml

ENV_PREFIX = "DDP__"
"""`DDP__A__B=c` in the environment means `a.b=c`: the one way a pod's env may change a run."""

CROSS_CHECKS = {
    "distributed.nodes": ("world_size", "distributed.world_size", "distributed.max_nodes", "slurm.nodes"),
    "distributed.procs_per_node": ("world_size", "distributed.world_size", "slurm.ntasks_per_node"),
}
"""Keys that only repeat another: they hold within their own source, and a later source that changes the key on the left drops them."""

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Frozen, closed, and its field docstrings are the documentation that `ddp config schema` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class RunSection(Section):
    """Which run this is, and where its directory lies."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?$")] = "run"
    """The run's name: a folder below `root`, and on Kubernetes the release's name. Letters, digits, '_', '-' and '.'."""
    root: str = "runs"
    """Where run directories live; on a cluster the checkpoint volume's mount point."""
    seed: NonNegative = 0
    """The sample order, augmentation and initial weights are functions of this number."""
    resume: Literal["auto", "never", "force"] = "auto"
    """auto: go on from the newest verified checkpoint; never: refuse a directory that has one; force: go on though identity keys differ."""


class DistributedSection(Section):
    """How many processes there are and how they find each other."""

    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """auto: nccl where the rank's device is a GPU, else gloo."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one for every local rank, else the CPU."""
    nodes: Positive = 1
    """Machines, pods or local agents. Each runs one agent."""
    procs_per_node: Positive = 1
    """Ranks under each agent; with GPUs, one GPU each."""
    min_nodes: Positive | None = None
    """Elastic: go on with as few nodes as this when others are lost; None: always wait for all."""
    max_nodes: Positive | None = None
    """Elastic upper bound; must equal `nodes` where given: a run never has more than it was started with."""
    rejoin_wait_seconds: Seconds = 30.0
    """Elastic: how long a lost node is waited for before the others go on without it; it is let in again when it comes."""
    world_size: Positive | None = None
    """Optional cross-check: must equal nodes x procs_per_node."""
    peer_timeout_seconds: Seconds = 300.0
    """How long an agent waits for nodes that are not there (yet, or any more) before it leaves with 162."""
    collective_timeout_seconds: Seconds = 120.0
    """Bound of one collective; a peer's death is noticed by the agents long before."""

    @model_validator(mode="after")
    def _world_size_agrees(self) -> Self:
        product = self.nodes * self.procs_per_node
        if self.world_size is not None and self.world_size != product:
            raise ValueError(
                f"world_size is {self.world_size} but nodes x procs_per_node = {self.nodes} x {self.procs_per_node} = {product}; "
                f"set nodes and procs_per_node to match, or leave world_size out"
            )
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes is {self.min_nodes} but there are only {self.nodes} nodes; lower min_nodes, or raise nodes")
        is_elastic = self.min_nodes is not None and self.min_nodes < self.nodes
        if is_elastic and self.rejoin_wait_seconds >= self.peer_timeout_seconds:
            raise ValueError(
                f"rejoin_wait_seconds is {self.rejoin_wait_seconds:g} but everybody leaves after peer_timeout_seconds "
                f"{self.peer_timeout_seconds:g}, so the run could never go on without a lost node; make rejoin_wait_seconds the shorter one"
            )
        if self.max_nodes is not None and self.max_nodes != self.nodes:
            raise ValueError(
                f"max_nodes is {self.max_nodes} but nodes is {self.nodes}: nodes is how many there are when none is lost; "
                f"leave max_nodes out (the next start may have another number of nodes, and goes on from the last checkpoint)"
            )
        return self


class TaskSection(Section):
    """What is trained."""

    name: str = "cifar10"
    """A built-in task (cifar10, imagefolder) or your own as `package.module:name`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to your own task unchanged; the built-in tasks take none."""


class DataSection(Section):
    """Where samples come from and how a batch is made of them."""

    source: str = "sample"
    """sample (5,000 + 1,000 real CIFAR-10 images in the package), download (all of CIFAR-10 by torchvision), or a path.

    A path is torchvision's CIFAR-10 folder, an image tree (`train/<class>/*`, `test/<class>/*`), or a tar of one."""
    cache_dir: str | None = None
    """Where decoded arrays are kept; None means `$XDG_CACHE_HOME/ddp-trainer` (`~/.cache/ddp-trainer`)."""
    seed_cache_dir: str | None = None
    """A second such folder that is looked into first and never written, such as one baked into a container's image; None: there is none."""
    global_batch: Positive = 128
    """Samples per optimizer step over all ranks. Does not change when the world size does."""
    micro_batches: Positive | None = None
    """Into how many micro-batches the global batch is cut; None means one per rank of the configured world.

    Any world size that divides it does the same arithmetic."""
    eval_batch: Positive = 250
    """Samples per forward pass and rank in evaluation."""
    image_size: Positive | None = None
    """imagefolder: images are resized to this square; None means 32 for cifar10 and 64 for imagefolder."""
    flip: bool = True
    """Augmentation: mirror half of the training images."""
    crop_padding: NonNegative = 4
    """Augmentation: pad by this many pixels and crop back at a random offset; 0 switches it off."""
    cutout: NonNegative = 0
    """Augmentation: blank a random square of this side; 0 switches it off."""


class ModelSection(Section):
    """The built-in tasks' network."""

    name: str = "resnet50"
    """Any torchvision ResNet: resnet18, resnet34, resnet50, resnet101, resnet152, resnext..., wide_resnet..."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1, no pool (15.6 times the arithmetic at 32 pixels, and better accuracy)."""


class OptimSection(Section):
    """The optimizer, and its rate: linear warm-up and cosine decay; no weight decay on norms and biases."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum, for the best accuracy of long runs. adamw: learns more in the first few hundred steps, for twice the state."""

    epochs: Annotated[float, Field(gt=0)] = 8.0
    """Length of the run, and of the schedule, in passes over the training set."""
    max_steps: Positive | None = None
    """Ends the run (and the schedule) at this step instead, where given."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum; AdamW's first beta."""
    nesterov: bool = True
    """Nesterov momentum; sgd only."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's second beta; adamw only."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """On weights of two or more dimensions: an L2 penalty with sgd, decoupled with adamw (where 0.05 is usual)."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Part of the steps in which the learning rate climbs from zero to `lr`."""
    final_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The cosine ends at `lr` times this."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target spread over all classes."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the parameters and evaluate with it; None: off."""


class PrecisionSection(Section):
    """Number formats and compilation: speed, not meaning."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware has it."""
    channels_last: bool = True
    """Memory layout of images and convolution weights."""
    compile: Literal["off", "auto", "on"] = "off"
    """torch.compile; auto declines with a sentence where there is no compiler, on refuses."""
    compile_cache_dir: str | None = None
    """Kept across restarts, so that only the first start compiles; None means the folder `compile` below `data.cache_dir`."""
    threads_per_rank: Positive | None = None
    """CPU threads of a rank; None means cores / ranks on this machine."""


class CheckpointSection(Section):
    """When state is kept in memory and made durable, and how much of it is kept."""

    every_steps: Positive | None = None
    """Save at multiples of this step; None: by time only."""
    every_seconds: Seconds | Literal["auto"] | None = 15.0
    """Save when this long has passed since the last one; None: by steps only. It bounds the work that the loss of all nodes can undo.

    auto: the best interval by Young and Daly for the measured stall and `mtbf_seconds`, at most `max_lost_seconds`."""
    mtbf_seconds: Seconds = 3600.0
    """auto: mean time between faults that take all nodes at once."""
    max_lost_seconds: Seconds = 15.0
    """auto: the interval is never longer than this."""
    memory_every_steps: NonNegative | Literal["auto"] = "auto"
    """Keep the state in every node's memory when so many steps have passed since it was kept last, for faults that leave a node; 0: off.

    auto: as often as costs less than a hundredth of the time."""
    keep: Annotated[int, Field(ge=2)] = 3
    """Newest checkpoints kept; at least 2, since the newest may be the one that does not verify."""
    keep_every: Positive | None = None
    """Checkpoints at multiples of this step are never removed."""
    keep_best: str | None = None
    """Keep also the checkpoint with the best value of this test metric, such as accuracy (higher is better) or loss (lower is better)."""
    write_megabytes_per_second: Annotated[float, Field(gt=0)] | None = None
    """Bound of the background writer's speed, for volumes that are shared; None: none."""
    mirror_url: str | None = None
    """A second home, any fsspec URL such as s3://bucket/run: checkpoints are copied there, and fetched where the volume has none."""
    mirror_every: Positive = 1
    """Copy every n-th checkpoint."""


class FaultToleranceSection(Section):
    """What is restarted, how often, and how long anything may block."""

    max_restarts: NonNegative = 10
    """Restarts for crashed ranks, all nodes together, before the run gives up."""
    max_hangs: NonNegative = 3
    """Restarts for ranks that stood still, before the gang leaves with 161 for new containers."""
    no_progress_restarts: Positive = 3
    """Give up after this many restarts in a row without a newer durable step."""
    monitor_interval_seconds: Seconds = 0.1
    """How often an agent looks at its ranks and at the generation."""
    stop_grace_seconds: Seconds = 15.0
    """How long ranks may take to die of SIGKILL (0.1 s, or seconds on a busy machine) before one counts as stuck in the kernel."""
    preemption_grace_seconds: Seconds = 20.0
    """From SIGTERM or SIGUSR1: how long a node may take to reach the next step, and to make its state durable, before it leaves anyway."""
    on_preemption: Literal["reform", "leave"] = "reform"
    """What the other nodes do when one is preempted: wait for its replacement, or save and leave with 143 as well."""
    hang_floor_seconds: Seconds = 10.0
    """A rank that trains and has not finished a step for this long, and for `hang_factor` usual steps, hangs."""
    hang_factor: Annotated[float, Field(ge=2)] = 10.0
    """... in median step times: above the slow-down that a busy machine causes."""
    start_limit_seconds: Seconds = 900.0
    """A rank without a sign of life for this long before its first step (which compiles, where configured) hangs."""
    evaluate_limit_seconds: Seconds = 300.0
    """... while it evaluates, per batch."""
    save_limit_seconds: Seconds = 600.0
    """... while it waits for its last checkpoint to become durable."""
    on_divergence: Literal["stop", "skip"] = "stop"
    """A loss that is not finite. stop: leave with 4. skip: go back to the last good state and pass over the steps up to that point."""
    max_skips: NonNegative = 3
    """How often, before the run leaves with 4."""
    straggler_ratio: Annotated[float, Field(gt=1)] = 1.5
    """A rank whose own part of a step takes this many times the median of all ranks is named."""
    lock_wait_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long to wait for another run on this directory to end: 0 on a laptop (refused at once), minutes in a container."""


class TelemetrySection(Section):
    """What can be seen of a run, and how often."""

    port: Annotated[int, Field(ge=0, le=65535)] = 9400
    """HTTP port of every node's agent (`/healthz`, `/metrics`, `/progress`); `ddp local` gives agent i port + i; 0 picks free ports."""
    host: str = "127.0.0.1"
    """Address the HTTP server binds; 0.0.0.0 in a pod."""
    log_every_steps: Positive = 10
    """The loss is read from the device, and telemetry written, every this many steps."""
    eval_every_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Evaluate on the test set each time this many epochs have passed, and at the end."""
    tensorboard: bool = True
    """Write TensorBoard files below the run directory, where the package is installed."""


class SlurmSection(Section):
    """What `ddp slurm render` asks of the scheduler."""

    nodes: Positive | None = None
    """Must equal distributed.nodes where given."""
    ntasks_per_node: Positive | None = None
    """Ranks per node: must equal distributed.procs_per_node where given."""
    gres: str | None = None
    """Generic resources per node, such as gpu:4."""
    time: str = "01:00:00"
    """Wall-clock limit."""
    partition: str | None = None
    """Queue."""


class RunConfig(Section):
    """One run, completely."""

    run: RunSection = RunSection()
    distributed: DistributedSection = DistributedSection()
    task: TaskSection = TaskSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    optim: OptimSection = OptimSection()
    precision: PrecisionSection = PrecisionSection()
    checkpoint: CheckpointSection = CheckpointSection()
    fault_tolerance: FaultToleranceSection = FaultToleranceSection()
    telemetry: TelemetrySection = TelemetrySection()
    slurm: SlurmSection = SlurmSection()

    @model_validator(mode="before")
    @classmethod
    def _world_size_at_the_top(cls, raw: Any) -> Any:
        """`world_size` beside the sections is understood as `distributed.world_size`."""
        if isinstance(raw, dict) and "world_size" in raw:
            raw = dict(raw)
            size = raw.pop("world_size")
            distributed = raw.get("distributed") or {}
            if isinstance(distributed, dict):
                if distributed.get("world_size", size) != size:
                    raise ValueError(
                        f"world_size is {size} at the top but distributed.world_size is {distributed['world_size']}; leave one of them out"
                    )
                raw["distributed"] = {**distributed, "world_size": size}
        return raw

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        batch, parts, world = self.data.global_batch, self.micro_batches, self.world_size
        if batch % parts:
            raise ValueError(
                f"data.global_batch {batch} is not divisible by the {parts} micro-batches (data.micro_batches, by default one per rank); "
                f"use a multiple of {parts}, such as {max(1, batch // parts) * parts}"
            )
        if parts % world:
            raise ValueError(
                f"data.micro_batches {parts} is not divisible by the world size {world} (nodes x procs_per_node), so ranks would get "
                f"unequal work; use a multiple of {world}, or a world size that divides {parts}"
            )
        for key, mine, theirs in (
            ("slurm.nodes", self.slurm.nodes, self.distributed.nodes),
            ("slurm.ntasks_per_node", self.slurm.ntasks_per_node, self.distributed.procs_per_node),
        ):
            if mine is not None and mine != theirs:
                raise ValueError(f"{key} is {mine} but the distributed section says {theirs}; make them equal, or leave {key} out")
        if self.checkpoint.every_steps is None and self.checkpoint.every_seconds is None:
            raise ValueError("checkpoint.every_steps and checkpoint.every_seconds are both null, so nothing would be saved; set one")
        if self.optim.name == "sgd" and self.optim.nesterov and self.optim.momentum == 0:
            raise ValueError("optim.nesterov needs optim.momentum > 0; set optim.nesterov=false")
        return self

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.distributed.nodes * self.distributed.procs_per_node

    @property
    def micro_batches(self) -> int:
        """Micro-batches per global batch, with the default resolved."""
        return self.data.micro_batches or self.world_size

    @property
    def run_dir(self) -> Path:
        """`<root>/<run>`: contract 3.3."""
        return Path(self.run.root) / self.run.name

    def identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be continued; everything else may change between two starts of a run."""
        full = self.model_dump(mode="json")
        keep: dict[str, Any] = {"seed": full["run"]["seed"], "task": full["task"], "model": full["model"]}
        keep["data"] = {k: v for k, v in full["data"].items() if k not in {"source", "cache_dir", "seed_cache_dir", "eval_batch"}}
        keep["optim"] = {k: v for k, v in full["optim"].items() if k not in {"epochs", "max_steps"}}
        return keep

    def compile_cache(self, environment: Mapping[str, str]) -> Path:
        """Where compiled kernels are kept; `environment` is asked for `XDG_CACHE_HOME` where the configuration names no folder."""
        if self.precision.compile_cache_dir:
            return Path(self.precision.compile_cache_dir).expanduser()
        if self.data.cache_dir:
            return Path(self.data.cache_dir).expanduser() / "compile"
        base = environment.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "ddp-trainer" / "compile"

    def digest(self) -> str:
        """SHA-256 of the identity, in short: the config hash in every manifest."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def with_values(self, pairs: Mapping[str, Any]) -> RunConfig:
        """A copy with `{"a.b": value}` applied, as from a source of its own, and validated again."""
        raw = self.model_dump(mode="json", exclude_unset=True)
        _lay_over(raw, [(key, value, key) for key, value in pairs.items()])
        return validate(raw, origin="the changed configuration")


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: theirs -> mine` for every leaf that differs between two identities, sorted by key."""
    found: list[str] = []
    for key in sorted({*mine, *theirs}):
        a, b = mine.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {json.dumps(b)} -> {json.dumps(a)}")
    return found


def load(path: str | Path | None, settings: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> RunConfig:
    """Read a configuration file and lay environment and `key.path=value` settings over it.

    Raises:
        ConfigError: with the file, the key, the reason and the fix.
    """
    raw: dict[str, Any] = {} if path is None else _read(Path(path))
    _lay_over(raw, [(key, _value(key, text), name) for key, text, name in _of_environment(environment or {})])
    _lay_over(raw, [(key, _value(key, text), f"--set {key}") for key, text in map(_split, settings)])
    return validate(raw, origin=str(path) if path else "the configuration")


def keys_said(settings: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> set[str]:
    """The keys for which the user gave a value besides the file's."""
    return {key for key, _ in map(_split, settings)} | {key for key, _, _ in _of_environment(environment or {})}


def validate(raw: Mapping[str, Any], origin: str) -> RunConfig:
    """Turn pydantic's findings into one sentence each.

    Raises:
        ConfigError: naming `origin`, each key and what is wrong with it.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(_sentence(item) for item in error.errors())
        raise ConfigError(f"{origin}: {problems}") from None


def _sentence(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys([str(part) for part in item["loc"][:-1]])
        return f"unknown key {key!r}; known here: {', '.join(known)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]} (got {item['input']!r})"


def _known_keys(path: list[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in path:
        annotation = section.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return sorted(section.model_fields)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}; give an existing file with --config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not text in UTF-8; save it as such, or give another file with --config") from None
    try:
        raw = json.loads(text) if path.suffix == ".json" else read_yaml(text, RunConfig)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {' '.join(str(error).split())}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, not a mapping of sections; see configs/demo.json")
    return raw


def _of_environment(environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """`(key, text, variable)` of each `DDP__A__B`."""
    names = sorted(name for name in environment if name.startswith(ENV_PREFIX))
    return [(name.removeprefix(ENV_PREFIX).lower().replace("__", "."), environment[name], name) for name in names]


def _split(setting: str) -> tuple[str, str]:
    key, separator, text = setting.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {setting!r} is not of the form key.path=value, such as --set optim.lr=0.1")
    return key.strip(), text


def _value(key: str, text: str) -> Any:
    kind: Any = RunConfig
    for part in key.split("."):
        kind = below(kind, part)
    return read_value(text, kind)


def _lay_over(raw: dict[str, Any], source: Iterable[tuple[str, Any, str]]) -> None:
    """Put one source's `(key, value, what an error calls it)` over those before it."""
    stated: set[str] = set()
    for key, value, origin in source:
        _put(raw, key.split("."), value, origin)
        stated |= {key, *(f"{key}.{name}" for name in (value if isinstance(value, dict) else ()))}
    for key, repeated in CROSS_CHECKS.items():
        if key in stated:
            for check in {*repeated} - stated:
                section, _, name = check.rpartition(".")
                holder = raw.get(section) if section else raw
                if isinstance(holder, dict):
                    holder.pop(name, None)


def _put(raw: dict[str, Any], path: list[str], value: Any, origin: str) -> None:
    for part in path[:-1]:
        section = raw.setdefault(part, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{origin}: {part!r} is a value, not a section, so nothing can be set below it")
        raw = section
    raw[path[-1]] = value
