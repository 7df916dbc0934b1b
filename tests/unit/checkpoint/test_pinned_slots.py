"""Registering a slot's memory with the GPU's driver: asked for once where the state is on a GPU, and never in the way. No GPU needed."""

from __future__ import annotations

import logging

import pytest
import torch

from ddp_trainer.checkpoint.pinning import pin

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def driver(monkeypatch):
    """What the driver is asked, and what it answers."""
    asked = {"answers": 0, "calls": []}

    class Runtime:
        def cudaHostRegister(self, address, size, flags):  # noqa: N802  # the driver's name
            assert address % 8 == 0
            asked["calls"].append((size, flags))
            if isinstance(asked["answers"], Exception):
                raise asked["answers"]
            return asked["answers"]

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    return asked


def test_memory_for_a_gpus_state_is_registered_as_a_whole(driver):
    assert pin(memoryview(bytearray(4096)), GPU)
    assert driver["calls"] == [(4096, 0)]


def test_memory_for_a_cpus_state_is_left_alone(driver):
    assert not pin(memoryview(bytearray(4096)), CPU)
    assert driver["calls"] == []


@pytest.mark.parametrize("answer", [2, RuntimeError("no driver\nwith a stack"), AttributeError("an older torch")])
def test_a_refusal_is_said_in_a_sentence_and_ends_nothing(driver, caplog, monkeypatch, answer):
    driver["answers"] = answer
    cleared = []
    monkeypatch.setattr(torch, "zeros", lambda *_, **where: cleared.append(where["device"]))
    with caplog.at_level(logging.WARNING):
        assert not pin(memoryview(bytearray(4096)), GPU)
    assert "copied through ordinary memory" in caplog.text
    assert "with a stack" not in caplog.text
    assert cleared == [GPU], "else the next kernel would be blamed for it"
