"""RunConfig: all sections together, what must agree between them, and what follows from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from ddp_trainer.config.learning import DataSection, ModelSection, OptimSection, PrecisionSection, TaskSection
from ddp_trainer.config.operation import (
    CheckpointSection,
    DistributedSection,
    FaultToleranceSection,
    RunSection,
    SlurmSection,
    TelemetrySection,
)
from ddp_trainer.config.section import Section
from ddp_trainer.config.sources import lay_over
from ddp_trainer.config.validation import validated


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
        lay_over(raw, [(key, value, key) for key, value in pairs.items()])
        return validated(RunConfig, raw, origin="the changed configuration")


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
