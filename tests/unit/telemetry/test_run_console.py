"""What the supervisor's terminal shows, and what a pipe gets."""

import io

import pytest
from rich.console import Console

from ddp_trainer.telemetry.console import RunConsole, dashboard, line
from ddp_trainer.telemetry.document import Checkpoint, Progress, Restarts

SAVED = Checkpoint(step=240, saved_at=996.0, bytes=188_000_000, stall_seconds=0.4, persist_seconds=0.4, verified=True)
BASE = {"run": "demo", "attempt": 1, "updated_at": 1000.0, "world_size": 4}
NUMBERS = {"loss": 1.6321, "accuracy": 0.372, "test_accuracy": 0.351, "samples_per_second": 301.4, "eta_seconds": 102.0}
TRAINING = Progress(
    **BASE, phase="training", step=270, total_steps=625, epoch=3.456, epochs=8.0, **NUMBERS, checkpoint=SAVED, restarts=Restarts(crash=1)
)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def at(step, **changes):
    return TRAINING.model_copy(update={"step": step, **changes})


def piped(clock=None, line_seconds=10.0):
    out = io.StringIO()
    return RunConsole("demo", 4, stream=out, line_seconds=line_seconds, clock=clock or Clock()), out


def shown(progress, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(dashboard("demo", 4, progress, 1000.0))
    return capture.get()


def test_a_pipe_gets_plain_lines_without_control_codes():
    console, out = piped()
    with console:
        console.say("4 workers started", "good")
        console.update(TRAINING)
        console.finish("finished: test accuracy 41.2 %")
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.isascii()
    assert [row[10:] for row in text.splitlines()[:1]] == ["4 workers started"]
    assert text.splitlines()[-1] == "finished: test accuracy 41.2 %"


def test_a_line_says_where_the_run_is():
    assert line(TRAINING, 1000.0)[10:] == (
        "training  epoch 3.46/8  step 270/625  loss 1.632  train acc 37.2%  test acc 35.1%  "
        "301 samples/s  checkpoint 240 (4 s ago)  1 restart  ETA 1:42"
    )


def test_what_is_not_known_yet_is_not_shown():
    start = Progress(**BASE, phase="starting", note="decoding images", note_done=1500, note_total=6000)
    assert line(start, 1000.0)[10:] == "starting (decoding images 1,500/6,000)"


def test_a_pipe_gets_one_line_per_interval_and_none_while_nothing_moves():
    clock = Clock()
    console, out = piped(clock)
    for now, step in ((1000.0, 1), (1005.0, 2), (1010.0, 3), (1020.0, 3), (1030.0, 3), (1031.0, 4)):
        clock.now = now
        console.update(at(step))
    assert [row.split("step")[1].split("/")[0].strip() for row in out.getvalue().splitlines()] == ["1", "3", "4"]


def test_a_new_phase_or_attempt_is_told_at_once():
    console, out = piped()
    console.update(at(1))
    console.update(at(1, phase="starting", note="waiting for worker 2"))
    console.update(at(1, phase="starting", note="waiting for worker 2"))
    console.update(at(1, attempt=2))
    assert len(out.getvalue().splitlines()) == 3


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("phase", ["starting", "training", "evaluating", "saving", "finished", "failed"])
def test_the_dashboard_fits_every_width(width, phase):
    progress = at(270, phase=phase, note="a note that is longer than any terminal " * 6)
    rows = shown(progress, width).splitlines()
    assert all(len(row.rstrip()) <= width for row in rows)
    assert len(rows) <= 5


def test_the_dashboard_at_80_columns_says_everything():
    text = shown(TRAINING, 80)
    for part in ("demo", "4 workers", "1 restart", "training", "43%", "1:42 left", "epoch 3.46/8", "step 270/625", "loss 1.632"):
        assert part in text
    for part in ("train acc 37.2%", "test acc 35.1%", "301 samples/s", "checkpoint 240 (4 s ago)"):
        assert part in text


def test_before_training_the_bar_is_that_of_the_preparation():
    text = shown(Progress(**BASE, phase="starting", note="decoding images", note_done=1500, note_total=6000), 80)
    assert "decoding images 1,500/6,000" in text
    assert "25%" in text


def test_while_the_workers_meet_again_the_runs_own_bar_and_numbers_stay():
    text = shown(at(270, phase="starting", note="waiting for worker 2", eta_seconds=None), 80)
    assert "waiting for worker 2" in text
    assert "43%" in text
    assert "left" not in text
    assert "loss 1.632" in text


def test_markup_in_a_note_is_text():
    assert "[bold]not a style[/]" in shown(at(1, note="[bold]not a style[/]"), 120)


def test_a_terminal_is_given_back_even_when_the_run_fails():
    out = Terminal()

    def fail():
        with RunConsole("demo", 4, stream=out, clock=Clock()) as console:
            console.update(TRAINING)
            console.say("worker 2 was killed (SIGKILL); re-forming ...", "bad")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert out.getvalue().rindex(show) > out.getvalue().rindex(hide)
    assert "worker 2 was killed" in out.getvalue()


def test_interactive_can_be_refused_on_a_terminal():
    out = Terminal()
    with RunConsole("demo", 4, stream=out, interactive=False, clock=Clock()) as console:
        console.update(TRAINING)
    assert "\x1b" not in out.getvalue()
