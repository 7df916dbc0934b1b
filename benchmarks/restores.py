"""What reading a checkpoint back takes, and what becomes of one flipped byte: ours, and the peers' files, one after the other.

Each reader puts the state of its newest checkpoint into a live network with its optimizer. The flip is the top exponent bit of one
weight, found by its neighbours' bytes, so that every format is hit at the same element, inside its data.
"""

from __future__ import annotations

import mmap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.checkpoint.store import CheckpointStore

PATTERN_BYTES = 64
VICTIM = "layer4.0.downsample.0.weight"
"""A 1 x 1 convolution, whose elements have the same order in every layout; ResNets of all sizes have it."""
VICTIM_ELEMENT = 1000
TOP_EXPONENT_BIT = 0x40
"""In the last byte of a little-endian float32: the value grows or shrinks by 2**128."""


@dataclass(frozen=True)
class Live:
    """A network and its optimizer, freshly built, with the optimizer's tensors in place."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Reader:
    """One way to read a checkpoint back. `read` fills a `Live` from `place` and says what it had to do."""

    name: str
    place: Path
    """The folder or file."""
    read: Callable[[Path, Live], str]


@dataclass(frozen=True)
class Verdict:
    """What became of a flipped byte."""

    said: str
    wrong_elements: int | None
    """Of the model that training would go on with; None: it got none."""
    example: str = ""


def readers(ours: Path, saves: dict[str, Path]) -> list[Reader]:
    """Ours and those peers that have written something."""
    found = [Reader("ours", ours, _read_ours)]
    found += [Reader(f"{name}", place, _PEERS[name]) for name, place in saves.items() if name in _PEERS]
    return found


def live(model_name: str) -> Live:
    """The network in channels_last with SGD, as everybody trains it here."""
    from torchvision import models

    torch.manual_seed(1)  # other values than those in the files
    model = models.get_model(model_name, weights=None, num_classes=10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return Live(model, optimizer)


def state_bytes(target: Live) -> int:
    """Of model and optimizer: what every saver writes, but for names and headers."""
    slots = (slot for state in target.optimizer.state.values() for slot in state.values())
    return sum(tensor.nbytes for tensor in (*target.model.state_dict().values(), *slots))


def timed(reader: Reader, model_name: str) -> float:
    """Seconds until the newest checkpoint, in the page cache already, is in the model."""
    target = live(model_name)
    started = time.perf_counter()
    reader.read(reader.place, target)
    return time.perf_counter() - started


def flip(reader: Reader, model_name: str) -> Verdict:
    """Flip one bit of the newest checkpoint and read it: what the reader says, and what the model then holds."""
    good, bad = live(model_name), live(model_name)
    reader.read(reader.place, good)
    expected = _state(good)
    _flip_in(_newest_files(reader), expected[VICTIM])
    try:
        said = reader.read(reader.place, bad)
    except Exception as error:  # whatever a peer's reader raises is what its user sees
        return Verdict(f"{type(error).__name__}: {str(error).splitlines()[0][:90]}", None)
    if said:  # it went on from another checkpoint, which has other values everywhere
        return Verdict(said, 0)
    found = _state(bad)
    wrong = sum(int((found[name] != tensor).sum()) for name, tensor in expected.items())
    before, after = (state[VICTIM].flatten()[VICTIM_ELEMENT].item() for state in (expected, found))
    return Verdict("loads without a word", wrong, f"{before:.4g} is {after:.4g}" if wrong else "")


def _newest_files(reader: Reader) -> list[Path]:
    if reader.name == "ours":
        store = CheckpointStore(reader.place)
        return [store.folder(store.steps()[-1]) / "model.safetensors"]
    return [file for file in reader.place.rglob("*") if file.is_file()] if reader.place.is_dir() else [reader.place]


def _flip_in(files: list[Path], weight: Tensor) -> None:
    values = weight.flatten()[VICTIM_ELEMENT : VICTIM_ELEMENT + PATTERN_BYTES // 4]
    pattern = values.contiguous().numpy().tobytes()
    for file in files:
        if file.stat().st_size < len(pattern):
            continue
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as content:
            place = content.find(pattern)
            if place >= 0:
                content[place + 3] ^= TOP_EXPONENT_BIT
                return
    raise LookupError(f"no file of {files} holds {VICTIM} as it was loaded; the format is not what this benchmark thinks")


def _state(target: Live) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in target.model.state_dict().items()}


def _read_ours(place: Path, target: Live) -> str:
    loaded = CheckpointStore(place).load_newest()
    if loaded is None:
        raise LookupError(f"{place} holds no checkpoint")
    RunState(target.model, target.optimizer, {}).restore(loaded.tensors)
    if not loaded.quarantined:
        return ""
    step, reason = loaded.quarantined[0]
    return f"step {step} refused and set aside ({reason}); goes on from the one before, step {loaded.manifest.step}"


def _read_torch(place: Path, target: Live) -> str:
    state = torch.load(place, weights_only=True)
    target.model.load_state_dict(state["model"])
    target.optimizer.load_state_dict(state["optimizer"])
    return ""


def _read_dcp(place: Path, target: Live) -> str:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    weights, slots = get_state_dict(target.model, target.optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": slots}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is one process only, which is meant
        dcp.load(state, checkpoint_id=place, no_dist=True)
    set_state_dict(target.model, target.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return ""


def _read_fabric(place: Path, target: Live) -> str:
    from lightning.fabric import Fabric

    Fabric(accelerator="cpu", devices=1).load(place, {"model": target.model, "optimizer": target.optimizer})
    return ""


_PEERS: dict[str, Callable[[Path, Live], str]] = {
    "torch": _read_torch,
    "dcp-thread": _read_dcp,
    "dcp-process": _read_dcp,
    "fabric": _read_fabric,
}
