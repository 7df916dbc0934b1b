"""Which device and backend a rank uses, and the sentence when that is impossible."""

from __future__ import annotations

import pytest
import torch
from small_training import config

from ddp_trainer.distributed import choose_backend, choose_device, is_echo, words_of_echo
from ddp_trainer.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("wanted", "present", "local_rank", "device"),
    [
        ("cpu", 8, 0, "cpu"),
        ("auto", 0, 3, "cpu"),
        ("auto", 4, 3, "cuda:3"),
        ("cuda", 4, 0, "cuda:0"),
    ],
)
def test_a_rank_gets_the_gpu_of_its_number_where_there_are_gpus(gpus, wanted, present, local_rank, device):
    gpus(present)
    assert choose_device(config(distributed__device=wanted, distributed__procs_per_node=4), local_rank) == torch.device(device)


def test_a_gpu_that_is_not_there_is_one_sentence(gpus):
    gpus(0)
    with pytest.raises(ConfigError, match=r"device is cuda but no GPU is visible here; use distributed\.device=cpu, or check .*nvidia-smi"):
        choose_device(config(distributed__device="cuda"), 0)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_more_ranks_than_gpus_is_one_sentence_with_both_numbers(gpus, wanted):
    gpus(2)
    settings = config(distributed__device=wanted, distributed__procs_per_node=4)
    assert choose_device(settings, 1) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"procs_per_node is 4 but only 2 GPU\(s\) are visible .*; use distributed\.procs_per_node=2"):
        choose_device(settings, 2)


@pytest.mark.parametrize(
    ("wanted", "device", "backend"),
    [("auto", "cpu", "gloo"), ("auto", "cuda", "nccl"), ("gloo", "cpu", "gloo"), ("gloo", "cuda", "gloo"), ("nccl", "cuda", "nccl")],
)
def test_the_backend_follows_the_device_unless_it_is_said(wanted, device, backend):
    assert choose_backend(config(distributed__backend=wanted), torch.device(device)) == backend


def test_nccl_without_a_gpu_is_one_sentence():
    with pytest.raises(ConfigError, match=r"backend is nccl but this rank has no GPU; use distributed\.backend=gloo"):
        choose_backend(config(distributed__backend="nccl"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242"), True),
        (RuntimeError("[..] Timed out waiting 120000ms for recv operation to complete"), True),
        (RuntimeError("Gloo connectFullMesh failed with ..."), True),
        (RuntimeError("NCCL operation timed out"), True),
        (RuntimeError("Got the following error when running the callback: RuntimeError: [..] Connection reset by peer"), True),
        (RuntimeError("Got the following error when running the callback: torch.distributed.DistStoreError: no key"), True),
        (RuntimeError("Got the following error when running the callback: DistBackendError: no key\n\nAt:\n ..."), True),
        (RuntimeError("Got the following error when running the callback: KeyError: 'label'"), False),
        (RuntimeError("Got the following error when running the callback: ReduceOp: of a name that is no error's"), False),
        (torch.distributed.DistNetworkError("The client socket has timed out"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), False),
        (ValueError("Connection closed by peer"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (KeyError("label"), False),
    ],
)
def test_a_failed_collective_is_told_from_a_users_error(error, answer):
    assert is_echo(error) is answer


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Got the following error when running the callback: RuntimeError: Connection closed by peer\n\nAt:\n  x",
            "Connection closed by peer",
        ),
        ("Connection closed by peer\nmore", "Connection closed by peer"),
        ("", "RuntimeError"),
    ],
)
def test_the_words_of_a_failed_collective_are_its_own(said, words):
    assert words_of_echo(RuntimeError(said)) == words
