"""Which node this is, by what Kubernetes, Slurm or a person put into the environment."""

from __future__ import annotations

import pytest

from ddp_trainer.config import load
from ddp_trainer.errors import ConfigError
from ddp_trainer.launchers.identity import DEFAULT_PORT, identify


def config(nodes=4, procs_per_node=1, **values):
    settings = [f"distributed.nodes={nodes}", f"distributed.procs_per_node={procs_per_node}", "data.micro_batches=16"]
    return load(None, [*settings, *(f"{key.replace('__', '.')}={value}" for key, value in values.items())])


def pytorchjob(node, nodes="4", **more):
    """What the training operator injects (v1.9): WORLD_SIZE and RANK count pods, and are wrong for processes."""
    injected = {
        "MASTER_ADDR": "job-master-0",
        "MASTER_PORT": "23456",
        "PET_NNODES": nodes,
        "PET_NODE_RANK": node,
        "WORLD_SIZE": "4",
        "RANK": node,
    }
    return injected | {"PET_NPROC_PER_NODE": "auto", "PYTHONUNBUFFERED": "1"} | more


SLURM = {"SLURM_NODEID": "2", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "gpu[03-06],x1", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("what", "environment", "expected"),
    [
        ("the master of a PyTorchJob", pytorchjob("0"), (0, 4, "job-master-0", 23456)),
        ("worker 2 of a PyTorchJob", pytorchjob("3"), (3, 4, "job-master-0", 23456)),
        ("an elastic PyTorchJob's bounds", pytorchjob("1", nodes="2:4"), (1, 4, "job-master-0", 23456)),
        ("a master whose address is this very pod", pytorchjob("0", MASTER_ADDR="localhost"), (0, 4, "localhost", 23456)),
        (
            "a topology without master, by the downward API",
            {"NODE_RANK": "1", "MASTER_ADDR": "job-worker-0"},
            (1, 4, "job-worker-0", DEFAULT_PORT),
        ),
        ("Slurm", SLURM, (2, 4, "gpu03", DEFAULT_PORT)),
        (
            "Slurm's older name",
            {"SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "a,b,c,d"},
            (0, 4, "a", DEFAULT_PORT),
        ),
        ("Slurm with an address of its own", SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "1234"}, (2, 4, "head", 1234)),
        ("by hand", {"NODE_RANK": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000"}, (3, 4, "10.0.0.1", 5000)),
        ("node 0 by hand", {"NODE_RANK": "0"}, (0, 4, "127.0.0.1", DEFAULT_PORT)),
        ("Kubernetes inside Slurm's environment", SLURM | pytorchjob("1"), (1, 4, "job-master-0", 23456)),
        ("empty variables, which say nothing", pytorchjob("1", MASTER_PORT="", SLURM_NODEID=""), (1, 4, "job-master-0", DEFAULT_PORT)),
    ],
)
def test_a_node_finds_its_place(what, environment, expected):
    made, node = identify(config(), environment)
    assert (node.node, node.nodes, node.host, node.port) == expected
    assert made == config()


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu[03-06],x1", "gpu03"),
        ("gpu[3,7-9]", "gpu3"),
        ("a", "a"),
        ("a,b", "a"),
        ("rack-1-node[001-128]", "rack-1-node001"),
        ("n1.example.org,n2", "n1.example.org"),
    ],
)
def test_node_0_of_slurm_is_the_first_host_of_its_list(nodelist, first):
    _, node = identify(config(), SLURM | {"SLURM_JOB_NODELIST": nodelist})
    assert node.host == first


def test_nothing_said_is_one_node_on_this_machine():
    _, node = identify(config(nodes=1, procs_per_node=2), {})
    assert (node.node, node.nodes, node.host, node.port, node.ranks_on_machine) == (0, 1, "127.0.0.1", DEFAULT_PORT, 2)


@pytest.mark.parametrize("environment", [pytorchjob("0", nodes="1"), {"PET_NNODES": "1", "PET_NODE_RANK": "0"}])
def test_a_job_of_one_pod_is_one_node(environment):
    made, node = identify(config(nodes=4), environment)
    assert (node.nodes, made.distributed.nodes) == (1, 1)


def test_the_environments_node_count_wins_over_the_files():
    made, node = identify(config(nodes=4), pytorchjob("1", nodes="8"))
    assert (made.distributed.nodes, node.nodes, made.world_size) == (8, 8, 8)


def test_injected_rank_and_world_size_are_never_taken_for_processes():
    made, node = identify(config(procs_per_node=4), pytorchjob("1", RANK="3", WORLD_SIZE="99", LOCAL_RANK="7"))
    assert (node.node, made.world_size, node.ranks_on_machine) == (1, 16, 4)


@pytest.mark.parametrize(
    ("what", "environment", "sentence"),
    [
        (
            "nothing says which",
            {},
            r"nodes is 4 but nothing says which of them this is; start all on this machine with `ddp local --workers 4`",
        ),
        ("only a count", {"PET_NNODES": "4"}, "nothing says which of them"),
        ("an index beyond the count", pytorchjob("4"), r"PET_NODE_RANK is 4 but there are 4 nodes, numbered from 0"),
        ("a negative index", pytorchjob("-1"), r"PET_NODE_RANK is -1 but there are 4 nodes"),
        ("an index in words", pytorchjob("first"), r"PET_NODE_RANK is 'first', not a number; correct it"),
        ("a count in words", pytorchjob("0", nodes="many"), r"PET_NNODES is 'many', not a number"),
        ("no nodes at all", pytorchjob("0", nodes="0"), r"distributed\.nodes"),
        ("a count that the batch cannot be dealt to", pytorchjob("0", nodes="3"), r"micro_batches 16 is not divisible by the world size 3"),
        ("no address for a worker", {"PET_NODE_RANK": "1"}, r"MASTER_ADDR is not set, so this node cannot find node 0"),
        ("a port in words", pytorchjob("1", MASTER_PORT="http"), r"MASTER_PORT is 'http', not a number"),
        ("a port that is none", pytorchjob("1", MASTER_PORT="70000"), r"MASTER_PORT is 70000, which is no TCP port \(1 to 65535\)"),
        (
            "ranks per node that differ from the job's",
            pytorchjob("1", PET_NPROC_PER_NODE="8"),
            r"^PET_NPROC_PER_NODE \(the job's nprocPerNode\) is 8 but distributed\.procs_per_node is 1; make them equal$",
        ),
        ("port 0", pytorchjob("1", MASTER_PORT="0"), r"MASTER_PORT is 0, which is no TCP port"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(what, environment, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        identify(config(), environment)
    assert "\n" not in str(error.value)


def test_what_the_file_says_of_its_own_number_of_nodes_ends_with_that_number():
    made, _ = identify(config(nodes=4, distributed__world_size=4, slurm__nodes=4), pytorchjob("0", nodes="8"))
    assert (made.world_size, made.distributed.world_size, made.slurm.nodes) == (8, None, None)
    same, _ = identify(config(nodes=4, distributed__world_size=4, slurm__nodes=4), pytorchjob("0", nodes="4"))
    assert (same.distributed.world_size, same.slurm.nodes) == (4, 4)


@pytest.mark.parametrize("stated", ["4", "04", "auto", "cpu", "gpu", ""])
def test_ranks_per_node_that_agree_or_state_nothing_are_accepted(stated):
    _, node = identify(config(procs_per_node=4), pytorchjob("1", PET_NPROC_PER_NODE=stated))
    assert node.ranks_on_machine == 4
