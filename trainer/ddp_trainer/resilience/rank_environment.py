"""The environment that an agent gives to a rank: its own, and what torch, its compiler and its allocator are told by variables."""

from __future__ import annotations

from collections.abc import Mapping

from torch.distributed.elastic.agent.server.api import Worker, WorkerGroup

from ddp_trainer.config import RunConfig

_HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""torch asks the kernel for pages of 2 MiB under large tensors on the CPU: fewer page faults, and a few per cent of a step."""


def environment_of(worker: Worker, group: WorkerGroup, config: RunConfig, agents: Mapping[str, str]) -> dict[str, str]:
    """All variables of one rank; `agents` are those of its agent."""
    return _HUGE_PAGES | dict(agents) | _caches(config, agents) | _torch_names(worker, group)


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
