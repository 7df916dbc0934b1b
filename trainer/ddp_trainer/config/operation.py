"""How a run is operated: where it runs, what is kept of it, what it survives and what is seen of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ddp_trainer.config.section import NonNegative, Positive, Seconds, Section

RUN_NAME = r"^[A-Za-z0-9_]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?$"
"""What a run may be called: a folder's name, and a part of names on a cluster."""


class RunSection(Section):
    """Which run this is, and where its directory lies."""

    name: Annotated[str, Field(pattern=RUN_NAME)] = "run"
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


class CheckpointSection(Section):
    """When state is kept in memory and made durable, and how much of it is kept."""

    every_steps: Positive | None = None
    """Save at multiples of this step; None: by time only."""
    every_seconds: Seconds | Literal["auto"] | None = 15.0
    """Save so often that the loss of all nodes undoes at most so much work, two steps and a write included; None: by steps only.

    auto: the best interval by Young and Daly for the measured stall and `mtbf_seconds`, with at most `max_lost_seconds` at risk."""
    mtbf_seconds: Seconds = 3600.0
    """auto: mean time between faults that take all nodes at once."""
    max_lost_seconds: Seconds = 15.0
    """auto: never more work than this is at risk."""
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
    """... while its last checkpoint becomes durable. A write of it that fails is tried again so long, then the run leaves with 3."""
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
    """What is to be asked of the Slurm scheduler. Nodes and tasks are checked against `distributed`; nothing else reads it yet."""

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
