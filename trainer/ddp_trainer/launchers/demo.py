"""`ddp demo`: `ddp local` with a fault in the middle, for people who want to see it before they believe it.

Trains the demo configuration, kills one worker at half time as a lost machine would, lets the run recover, and ends with the accuracy,
the report and what to try next.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ddp_trainer.config import RunConfig
from ddp_trainer.cores import cores
from ddp_trainer.launchers.local import Local, count_gpus
from ddp_trainer.launchers.view import View

KILL_AT = 0.5
"""Part of the run after which a worker is killed."""
GPU_EPOCHS = 30
"""A GPU does an epoch of the sample in about a second, so more of them fit into a demonstration."""


def run_demo(config: RunConfig, environment: Mapping[str, str], echo: object = print) -> int:
    """Run it; returns the exit code of the run."""
    say = echo if callable(echo) else print
    config, why = _fitted(config)
    say(why)
    victim = config.distributed.nodes - 1
    killed = False

    def kill_once(local: Local) -> None:
        nonlocal killed
        progress = local.view.progress
        if killed or progress is None or progress.phase != "training" or progress.step < KILL_AT * progress.total_steps:
            return
        killed = True
        local.view.say(f"now killing worker {victim} (SIGKILL), as a lost machine would end it", "bad")
        local.kill_agent(victim)

    code = Local(config, environment, View(), on_look=kill_once if victim else (lambda _: None)).run()
    if code == 0:
        from ddp_trainer.report.page import write_report  # plotting is not needed before

        say(_epilogue(config, write_report(config.run_dir)))
    return code


def _fitted(config: RunConfig) -> tuple[RunConfig, str]:
    """The demo's length for this machine, and the sentence that says so."""
    workers, gpus = config.distributed.nodes, count_gpus()
    what = f"{workers} workers train {config.model.name} on CIFAR-10 ({config.data.source})"
    if gpus >= workers:
        return config.with_values({"optim.epochs": GPU_EPOCHS}), f"{what}, one of {gpus} GPUs each, {GPU_EPOCHS} epochs"
    n = cores()
    each = f"{n // workers} threads" if n >= 2 * workers else "one thread"
    return config, f"{what}, {config.optim.epochs:g} epochs on {n} CPU cores, {each} each: about 3 minutes on 2 cores, less on more"


def _epilogue(config: RunConfig, page: Path) -> str:
    run_dir = config.run_dir
    lines = (
        "",
        f"report:   {page}",
        "next:     ddp local --config configs/demo.json --workers 2 --set optim.epochs=2 --run-dir runs/mine",
        f"          tensorboard --logdir {run_dir / 'tensorboard'}",
        "          make demo DATA=full        all 60,000 images, downloaded",
        "          docs/your-own-model.md     train your own model",
    )
    return "\n".join(lines)
