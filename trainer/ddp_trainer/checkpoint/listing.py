"""How a list of checkpoints is shown: a table for people, plain columns for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from ddp_trainer.checkpoint.inventory import COLUMNS, Entry


def show(found: Sequence[Entry]) -> None:
    """Print them to standard output, as suits whoever reads it."""
    now = time.time()
    if sys.stdout.isatty():
        _table(found, now)
    else:
        sys.stdout.writelines(f"{line}\n" for line in plain(found, now))


def plain(found: Sequence[Entry], now: float) -> list[str]:
    """Aligned columns with a heading, one checkpoint a line; only the last column has spaces in it."""
    rows = [COLUMNS, *(entry.plain(now) for entry in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)]
    return ["  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def _table(found: Sequence[Entry], now: float) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    shown = Table("step", "age", "size", "metrics", "verified")
    for entry in found:
        manifest = entry.manifest
        verdict = Text(entry.verdict(), {True: "green", False: "red", None: ""}[entry.is_verified])  # no markup: a reason may have brackets
        if manifest is None:
            shown.add_row(str(entry.step), "-", "-", "-", verdict)
        else:
            metrics = "  ".join(f"{name} {value:.4g}" for name, value in manifest.metrics.items()) or "-"
            age = str(timedelta(seconds=round(max(0.0, now - manifest.saved_at))))
            shown.add_row(str(entry.step), age, decimal(manifest.total_bytes), metrics, verdict)
    Console().print(shown)
