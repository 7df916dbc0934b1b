"""`ddp top`: all ranks of a run in one table, asked from the agents of its nodes.

A target is a run directory (its `endpoints.json`, written by the local launcher, says where the agents are) or an agent's address. A node
that does not answer is a row that says so. It only looks: nothing it does changes a run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from urllib.parse import urlsplit

from ddp_trainer.errors import DataError, DdpError
from ddp_trainer.telemetry import readable
from ddp_trainer.telemetry.document import Gpu, Progress, parse
from ddp_trainer.telemetry.fetch import ENDPOINTS_FILE, fetch

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

PROGRESS_FILE = "progress.json"
REFRESH_SECONDS = 1.0
"""Agents read hardware once a second."""
MAX_FETCHES = 32
"""Nodes asked at the same time."""
PIPE_COLUMNS = 120
"""Width of the table where there is no terminal to ask."""
STALE_SECONDS = 10.0
"""A beat older than this is shown in red: ranks speak five times a second while they step."""


@dataclass(frozen=True)
class Answer:
    """What one node said, or why it did not."""

    url: str
    progress: Progress | None = None
    problem: str = ""


def top(targets: list[str], once: bool, stream: TextIO | None = None) -> None:
    """Show the table until Ctrl-C, or one frame if `once` (or if the output is not a terminal).

    Raises:
        DataError: if a target is neither a run directory with an `endpoints.json` nor an address.
    """
    from rich.console import Console
    from rich.live import Live

    out = stream if stream is not None else sys.stdout
    is_terminal = out.isatty()
    console = (
        Console(file=out, highlight=False) if is_terminal else Console(file=out, width=PIPE_COLUMNS, no_color=True, force_terminal=False)
    )
    if once or not is_terminal:
        console.print(_look(targets))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(_look(targets), refresh=True)
                time.sleep(REFRESH_SECONDS)
        except KeyboardInterrupt:
            return


def _look(targets: Sequence[str]) -> RenderableType:
    return frame(ask(addresses(targets)), last_known(targets), time.time())


def addresses(targets: Sequence[str]) -> list[str]:
    """The agents' addresses behind run directories and URLs, in order, each once.

    Raises:
        DataError: naming the target that is neither.
    """
    found: list[str] = []
    for target in targets:
        found += _endpoints(Path(target)) if "://" not in target and Path(target).is_dir() else [_address(target)]
    return list(dict.fromkeys(found))


def ask(urls: Sequence[str]) -> list[Answer]:
    """Fetch from all at once; takes as long as the slowest, at most about two fetch timeouts for every `MAX_FETCHES` nodes."""
    with ThreadPoolExecutor(max_workers=max(1, min(MAX_FETCHES, len(urls)))) as pool:
        return list(pool.map(_ask_one, urls))


def last_known(targets: Sequence[str]) -> Progress | None:
    """What the first run directory among the targets last recorded: for a run whose agents are gone."""
    for target in targets:
        path = Path(target) / PROGRESS_FILE
        if "://" not in target and path.is_file():
            try:
                return parse(path.read_bytes())
            except (OSError, DdpError):
                continue
    return None


def frame(answers: Sequence[Answer], recorded: Progress | None, now: float) -> RenderableType:
    """One picture: the run's line, a row per rank, GPUs if there are any, and why nodes are silent."""
    from rich.console import Group
    from rich.text import Text

    heard = [answer.progress for answer in answers if answer.progress]
    head = min(heard, key=lambda progress: progress.node, default=None)
    parts: list[RenderableType] = []
    if head is not None:
        parts.append(Text(_summary(head, now) + "\n"))
    elif recorded is not None:
        parts.append(
            Text(
                f"{_summary(recorded, now)}\nno agent is running; this was recorded {readable.age(now - recorded.updated_at)} ago",
                style="yellow",
            )
        )
    if answers:
        parts.append(_table(answers, now))
    parts += [Text("\n" + answer.problem, style="red") for answer in answers if answer.problem]
    return Group(*parts)


def _summary(progress: Progress, now: float) -> str:
    parts = [
        progress.run,
        progress.phase + (f" ({progress.note})" if progress.note else ""),
        f"step {progress.step}/{progress.total_steps}",
    ]
    if progress.samples_per_second is not None:
        parts.append(f"{readable.rate(progress.samples_per_second)} samples/s")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.test_accuracy is not None:
        parts.append(f"test {readable.percent(progress.test_accuracy)}")
    if progress.checkpoint is not None:
        parts.append(f"checkpoint {progress.checkpoint.step} ({readable.age(now - progress.checkpoint.saved_at)} ago)")
    parts.append(f"restarts {progress.restarts.total}")
    if progress.eta_seconds is not None:
        parts.append(f"ETA {readable.duration(progress.eta_seconds)}")
    return "  ".join(parts)


def _table(answers: Sequence[Answer], now: float) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    one_host = len({urlsplit(answer.url).hostname for answer in answers}) == 1
    has_gpus = any(answer.progress and answer.progress.gpus for answer in answers)
    for name in ("NODE", "RANK", "PHASE", "STEP", "SAMPLES/S", "CPU", "MEMORY", *(("GPU", "GPU-MEM") if has_gpus else ()), "BEAT"):
        table.add_column(name, justify="left" if name in {"NODE", "PHASE"} else "right", no_wrap=True)
    empty = [""] * (3 + 2 * has_gpus)
    for answer in answers:
        progress = answer.progress
        if progress is None:
            address = urlsplit(answer.url)
            table.add_row(f":{address.port}" if one_host else address.netloc, "", Text("unreachable", style="red"), "", *empty, "")
            continue
        node = str(progress.node)
        for rank in progress.ranks:
            gpu = next((gpu for gpu in progress.gpus if gpu.index == rank.gpu), None)
            beat = now - rank.updated_at
            table.add_row(
                node,
                str(rank.rank),
                rank.phase,
                str(rank.step),
                readable.rate(rank.samples_per_second),
                "-" if rank.cpu_percent is None else f"{rank.cpu_percent:.0f}%",
                readable.size(rank.rss_bytes),
                *(_gpu_cells(gpu) if has_gpus else ()),
                Text(readable.age(beat), style="red" if beat > STALE_SECONDS else ""),
            )
            node = ""
        if not progress.ranks:
            table.add_row(node, "", progress.phase, "", *empty, "")
    return table


def _gpu_cells(gpu: Gpu | None) -> tuple[str, str]:
    if gpu is None:
        return "-", "-"
    use = "-" if gpu.utilization_ratio is None else f"{gpu.utilization_ratio * 100:.0f}%"
    return use, readable.size(gpu.memory_used_bytes)


def _ask_one(url: str) -> Answer:
    try:
        return Answer(url, fetch(url))
    except DdpError as error:
        return Answer(url, problem=str(error))


def _address(target: str) -> str:
    url = target if "://" in target else f"http://{target}"
    try:
        parts = urlsplit(url)
        is_address = parts.scheme == "http" and bool(parts.hostname) and (parts.port is not None or "://" in target)
    except ValueError:
        is_address = False
    if not is_address:
        raise DataError(
            f"{target} is neither a run directory nor an agent's address; give a folder, or a URL such as http://127.0.0.1:9400"
        )
    return url.removesuffix("/").removesuffix("/progress")


def _endpoints(run_dir: Path) -> list[str]:
    path = run_dir / ENDPOINTS_FILE
    try:
        nodes = [_address(node) for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]]
    except FileNotFoundError:
        if (run_dir / PROGRESS_FILE).is_file():  # an ended local run: there is nobody to ask, but a last word
            return []
        raise DataError(f"{run_dir} has no {ENDPOINTS_FILE} (only local runs write one); give the agents' addresses instead") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} does not say where the agents are; give their addresses instead, such as http://127.0.0.1:9400") from None
    return nodes
