"""In which number format a model computes, and whether it is compiled: what was asked for, as far as the machine has it."""

from __future__ import annotations

import logging
import shutil

import torch

from ddp_trainer.config import RunConfig
from ddp_trainer.distributed import choose_backend, choose_device
from ddp_trainer.errors import ConfigError

_log = logging.getLogger(__name__)


def assert_machine(config: RunConfig, local_rank: int) -> None:
    """Look for everything that is asked of this rank's machine.

    Raises:
        ConfigError: it is not there.
    """
    device = choose_device(config, local_rank)
    choose_backend(config, device)
    if config.precision.dtype == "bf16":  # else nothing can be missing, and a GPU that is asked cannot be forked any more
        choose_dtype(config, device)
    if config.precision.compile == "on":
        compiles(config, device)


def choose_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """bf16 where asked for, or where `auto` finds it in the hardware.

    Raises:
        ConfigError: bf16 asked for, and torch cannot do it on this device.
    """
    if config.precision.dtype == "fp32":
        return torch.float32
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  # the only way to ask
    if config.precision.dtype == "bf16" and not has:
        raise ConfigError(f"precision.dtype is bf16 but this {device.type} has no bf16 arithmetic; use precision.dtype=auto or fp32")
    return torch.bfloat16 if has else torch.float32


def compiles(config: RunConfig, device: torch.device) -> bool:
    """Whether the model is compiled; `auto` declines with a sentence where there is no compiler.

    Raises:
        ConfigError: `on`, and there is none.
    """
    if config.precision.compile == "off":
        return False
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if device.type == "cuda":
        found = "triton" if torch.utils._triton.has_triton() else None  # noqa: SLF001  # inductor's own test
    if found:
        return True
    sentence = f"torch.compile needs {'triton' if device.type == 'cuda' else 'a C++ compiler (g++ or clang++)'} and none is installed"
    if config.precision.compile == "on":
        raise ConfigError(f"{sentence}; install one, or use precision.compile=off")
    _log.warning("precision.compile=auto: %s, so the model runs eagerly", sentence)
    return False
