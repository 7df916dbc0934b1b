"""Which node this process is: read from what Kubernetes, Slurm or a person put into the environment.

The injected RANK and WORLD_SIZE are never trusted: they count pods, not processes. The number of nodes is taken from the environment (it
is what really was started) and the number of ranks on each from the configuration; where the environment states that too, it must agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ddp_trainer.config import RunConfig
from ddp_trainer.errors import ConfigError
from ddp_trainer.resilience.entrypoint import Node

DEFAULT_PORT = 29400
"""torchrun's default rendezvous port, where nothing else is said."""
LAST_PORT = 65535


def identify(config: RunConfig, environment: Mapping[str, str]) -> tuple[RunConfig, Node]:
    """This node's place, and the configuration with the node count that the environment states.

    Raises:
        ConfigError: several nodes configured and nothing says which this is, or numbers that do not fit.
    """
    index = _first(environment, "PET_NODE_RANK", "NODE_RANK", "SLURM_NODEID")
    count = _first(environment, "PET_NNODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    nodes = config.distributed.nodes
    if count:
        stated = _number(count[1].rpartition(":")[2], count[0])
        if stated != nodes:
            config = config.with_values({"distributed.nodes": stated})
            nodes = stated
    _check_ranks(config, environment)
    if nodes == 1 and index is None:
        return config, Node(0, 1, "127.0.0.1", _port(environment), config.distributed.procs_per_node)
    if index is None:
        raise ConfigError(
            f"distributed.nodes is {nodes} but nothing says which of them this is; start all on this machine with "
            f"`ddp local --workers {nodes}`, or set PET_NODE_RANK, MASTER_ADDR and MASTER_PORT"
        )
    node = _number(index[1], index[0])
    if not 0 <= node < nodes:
        raise ConfigError(f"{index[0]} is {node} but there are {nodes} nodes, numbered from 0; correct it or distributed.nodes")
    host = environment.get("MASTER_ADDR") or _first_of_slurm(environment.get("SLURM_JOB_NODELIST", ""))
    if node == 0:
        host = host or "127.0.0.1"
    if not host:
        raise ConfigError("MASTER_ADDR is not set, so this node cannot find node 0; set it to node 0's host name")
    return config, Node(node, nodes, host, _port(environment), config.distributed.procs_per_node)


def _check_ranks(config: RunConfig, environment: Mapping[str, str]) -> None:
    """`auto`, `cpu` and `gpu` are torchrun's words for "find out", and state nothing."""
    stated, ranks = environment.get("PET_NPROC_PER_NODE", ""), config.distributed.procs_per_node
    if stated.isdecimal() and int(stated) != ranks:
        raise ConfigError(
            f"PET_NPROC_PER_NODE (the job's nprocPerNode) is {stated} but distributed.procs_per_node is {ranks}; make them equal"
        )


def _first(environment: Mapping[str, str], *names: str) -> tuple[str, str] | None:
    return next(((name, environment[name]) for name in names if environment.get(name)), None)


def _number(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}, not a number; correct it in the environment") from None


def _port(environment: Mapping[str, str]) -> int:
    port = _number(environment.get("MASTER_PORT") or str(DEFAULT_PORT), "MASTER_PORT")
    if not 0 < port <= LAST_PORT:
        raise ConfigError(f"MASTER_PORT is {port}, which is no TCP port (1 to {LAST_PORT}); correct it in the environment")
    return port


def _first_of_slurm(nodelist: str) -> str:
    """`gpu[03-06],x1` -> `gpu03`: the first host of Slurm's compressed list."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodelist)
    return (match[1] + (match[2] or "")) if match else ""
