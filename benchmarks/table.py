"""What every benchmark prints: what machine this was, one table in Markdown, and numbers with their spread.

Statistics are kept to what n = 3 to 20 bears: medians, minimum and maximum, and ratios that are taken pair by pair before the median, so
that the machine's drift from minute to minute cancels out.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import psutil


def machine() -> str:
    """Processor, cores, memory, GPU, versions, date, and how busy it is already: the line above every table."""
    gpus = _gpus()
    parts = [
        f"{_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        gpus or "no GPU",
        *(f"{name} {_version(name)}" for name in ("torch", "torchvision", "lightning", "accelerate")),
        f"Python {platform.python_version()}",
        time.strftime("%Y-%m-%d"),
        f"load before the start {os.getloadavg()[0]:.1f}",
    ]
    return "; ".join(parts)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table with aligned columns; numbers (all columns but the first two kinds of text) are the caller's business."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    for row in (columns, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |", flush=True)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`minimum - maximum`."""
    return f"{min(values):.{digits}f} - {max(values):.{digits}f}" if values else "-"


def middle(values: Sequence[float], digits: int = 0) -> str:
    """The median."""
    return f"{median(values):.{digits}f}" if values else "-"


def paired_ratio(ours: Sequence[float], limit: Sequence[float]) -> float:
    """The median of the ratios of values measured in the same round."""
    return median(mine / theirs for mine, theirs in zip(ours, limit, strict=True))


def mebibytes(size_bytes: float) -> str:
    """A size for people."""
    return f"{size_bytes / 2**20:.0f} MiB"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine()
    )


def _gpus() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return ", ".join(str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i))) for i in range(pynvml.nvmlDeviceGetCount()))
    except Exception:  # whatever the driver's library raises, there is no GPU to name
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"
