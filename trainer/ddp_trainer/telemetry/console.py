"""The run on the terminal of whoever started it: a live bar and a few numbers, or plain lines in a pipe.

On a terminal, two to four lines stay at the bottom and events scroll above them. In a pipe or a log file there is one line per interval,
only when the run has moved, and no control codes. The console is fed; it fetches nothing and decides nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO

from ddp_trainer.telemetry import readable
from ddp_trainer.telemetry.document import Progress

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

Tone = Literal["plain", "good", "bad"]

LINE_SECONDS = 10.0
"""In a pipe: a three-minute run fills one screen, a day's run fits into a log."""
FRAMES_PER_SECOND = 4
"""On a terminal: ages and the pulse move smoothly enough, and a frame costs 2 ms."""
GAP = "   "

_TONES = {"plain": "", "good": "green", "bad": "bold yellow"}
_PHASE_STYLES = {"starting": "yellow", "evaluating": "cyan", "saving": "cyan", "finished": "bold green", "failed": "bold red"}


class RunConsole:
    """Use as a context manager, or call `close`: the terminal's cursor is hidden in between."""

    def __init__(
        self,
        run: str,
        workers: int,
        *,
        interactive: bool | None = None,
        stream: TextIO | None = None,
        line_seconds: float = LINE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`interactive` None: live where `stream` (by default standard output) is a terminal."""
        self._run = run
        self._workers = workers
        self._stream = stream if stream is not None else sys.stdout
        self._line_seconds = line_seconds
        self._clock = clock
        self._progress: Progress | None = None
        self._printed_at = float("-inf")
        self._printed: tuple[object, ...] = ()
        self._lock = threading.Lock()  # say() may come from another thread than update()
        self._live: Live | None = None
        if self._stream.isatty() if interactive is None else interactive:
            self._live = self._start_live()

    def update(self, progress: Progress) -> None:
        """Show this state from now on."""
        self._progress = progress
        if self._live is None:
            self._print_if_due(progress)

    def say(self, line: str, tone: Tone = "plain") -> None:
        """Something happened: one line that stays, with the time of day before it."""
        stamp = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        with self._lock:
            if self._live is None:
                self._write(f"{stamp}  {line}")
                return
            self._live.console.print(_stamped(stamp, line, _TONES[tone]))

    def finish(self, summary: str) -> None:
        """Leave the last state standing and print `summary` below it; nothing is shown after this."""
        self.close()
        self._write(summary)

    def close(self) -> None:
        """Give the terminal back; may be called twice."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def __enter__(self) -> Self:
        """The console itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give the terminal back, whatever happened."""
        self.close()

    def _start_live(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream, force_terminal=True, highlight=False)
        live = Live(console=console, get_renderable=self._frame, refresh_per_second=FRAMES_PER_SECOND)
        live.start()
        return live

    def _frame(self) -> RenderableType:
        return dashboard(self._run, self._workers, self._progress, self._clock())

    def _print_if_due(self, progress: Progress) -> None:
        now = self._clock()
        news = (progress.phase, progress.note, progress.attempt)
        moved = self._printed != (*news, progress.step, progress.note_done)
        due = now - self._printed_at >= self._line_seconds or self._printed[:3] != news
        if moved and due:
            self._printed, self._printed_at = (*news, progress.step, progress.note_done), now
            with self._lock:
                self._write(line(progress, now))

    def _write(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def line(progress: Progress, now: float) -> str:
    """One line for a log file."""
    head = progress.phase + (f" ({_note(progress)})" if progress.note else "")
    stamp = time.strftime("%H:%M:%S", time.localtime(now))
    cells = [f"{name} {value}" if name else value for name, value in _cells(progress, now)]
    if progress.restarts.total:
        cells.append(readable.counted(progress.restarts.total, "restart"))
    if progress.eta_seconds is not None:
        cells.append(f"ETA {readable.duration(progress.eta_seconds)}")
    return "  ".join([stamp, head, *cells])


def dashboard(run: str, workers: int, progress: Progress | None, now: float) -> RenderableType:
    """What stands at the bottom of a terminal: the run's bar, what it does before or between steps, and the numbers."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = Text.assemble((run, "bold"), (f"  {readable.counted(workers, 'worker')}", "dim"))
    if progress and progress.restarts.total:
        title.append(f"  {readable.counted(progress.restarts.total, 'restart')}", "yellow")
    phase = progress.phase if progress else "starting"
    rows = Table.grid(padding=(0, 1), expand=True)
    rows.add_column(no_wrap=True, min_width=len("evaluating"))
    rows.add_column(no_wrap=True, ratio=1)
    rows.add_column(no_wrap=True, justify="right", min_width=len("100%"))
    rows.add_column(no_wrap=True, justify="right", min_width=len("59:59 left"))
    word = Text(phase, style=_PHASE_STYLES.get(phase, "green"))
    head = _joined(title, Text(_note(progress) if progress else "starting the agents", style="yellow"))
    if progress is None or not progress.total_steps or progress.note_total:  # something else than steps is being counted
        done, total = (progress.note_done, progress.note_total) if progress else (0, 0)
        rows.add_row(word, _bar(done, total, phase), _share(done, total), "")
    else:
        left = "" if progress.eta_seconds is None else f"{readable.duration(progress.eta_seconds)} left"
        rows.add_row(word, _bar(progress.step, progress.total_steps, phase), _share(progress.step, progress.total_steps), left)
    cells = [_cell(name, value) for name, value in _cells(progress, now)] if progress else []
    return Group(head, rows, _Flow(cells))


def _cells(progress: Progress, now: float) -> Iterator[tuple[str, str]]:
    if progress.total_steps:
        yield "epoch", f"{progress.epoch:.2f}/{progress.epochs:.4g}"
        yield "step", f"{progress.step:>{len(str(progress.total_steps))}}/{progress.total_steps}"
    if progress.loss is not None:
        yield "loss", f"{progress.loss:.3f}"
    if progress.accuracy is not None:
        yield "train acc", readable.percent(progress.accuracy)
    if progress.test_accuracy is not None:
        yield "test acc", readable.percent(progress.test_accuracy)
    if progress.samples_per_second is not None:
        yield "", f"{readable.rate(progress.samples_per_second)} samples/s"
    if progress.checkpoint is not None:
        yield "checkpoint", f"{progress.checkpoint.step} ({readable.age(now - progress.checkpoint.saved_at)} ago)"


def _note(progress: Progress) -> str:
    count = f" {progress.note_done:,}/{progress.note_total:,}" if progress.note_total else ""
    return f"{progress.note}{count}" if progress.note else ""


def _share(done: int, total: int) -> str:
    return f"{100 * done // total}%" if total else ""


def _stamped(stamp: str, line: str, style: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2))  # a long line goes on below its own beginning
    row.add_column(no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(Text(stamp, "dim"), Text(line, style))
    return row


def _bar(done: int, total: int, phase: str) -> RenderableType:
    from rich.progress_bar import ProgressBar

    style = {"starting": "yellow", "failed": "red"}.get(phase, "green")
    return ProgressBar(
        total=total or None, completed=done, pulse=not total, complete_style=style, finished_style="bold green", pulse_style=style
    )


def _cell(name: str, value: str) -> Text:
    from rich.text import Text

    return Text.assemble((f"{name} ", "dim"), value) if name else Text(value)


def _joined(left: Text, right: Text) -> RenderableType:
    from rich.table import Table

    row = Table.grid(expand=True)
    row.add_column(no_wrap=True)
    row.add_column(justify="right", no_wrap=True, ratio=1)
    row.add_row(left, right)
    return row


class _Flow:
    """Cells side by side, as many as fit into a line; a cell is never broken."""

    def __init__(self, cells: list[Text]) -> None:
        self._cells = cells

    def __rich_console__(self, console: object, options: object) -> Iterator[Text]:
        from rich.text import Text

        width = getattr(options, "max_width", 80)
        current = Text(no_wrap=True, overflow="ellipsis")
        for cell in self._cells:
            if current.cell_len and current.cell_len + len(GAP) + cell.cell_len > width:
                yield current
                current = Text(no_wrap=True, overflow="ellipsis")
            current.append(GAP if current.cell_len else "").append_text(cell)
        if current.cell_len:
            yield current
