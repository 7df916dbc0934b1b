"""The environment that an agent gives to a rank: its own, torch's names for where the rank stands, and where compiled kernels are kept."""

from __future__ import annotations

from collections.abc import Mapping

from torch.distributed.elastic.agent.server.api import Worker, WorkerGroup

from ddp_trainer.config import RunConfig


def environment_of(worker: Worker, group: WorkerGroup, config: RunConfig, agents: Mapping[str, str]) -> dict[str, str]:
    """All variables of one rank; `agents` are those of its agent."""
    return dict(agents) | _caches(config, agents) | _torch_names(worker, group)


def _caches(config: RunConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """Where compiled kernels are kept, so that only the first start of a run compiles."""
    if config.precision.compile == "off":
        return {}
    folder = config.compile_cache(environment)
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


def _torch_names(worker: Worker, group: WorkerGroup) -> dict[str, str]:
    """The variables by which user code and libraries know torch's ranks."""
    return {
        "RANK": str(worker.global_rank),
        "LOCAL_RANK": str(worker.local_rank),
        "WORLD_SIZE": str(worker.world_size),
        "LOCAL_WORLD_SIZE": str(group.spec.local_world_size),
        "GROUP_RANK": str(group.group_rank),
        "MASTER_ADDR": str(group.master_addr),
        "MASTER_PORT": str(group.master_port),
    }
