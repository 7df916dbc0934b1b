"""`ddp demo`: `ddp local` with a fault in the middle, for people who want to see it before they believe it.

Trains the demo configuration in a run directory of its own, kills one worker at half time as a lost machine would, lets the run recover,
and ends with what was seen: accuracy, restarts, lost work, the report, and what to try next. How long it trains is chosen so that it
takes some minutes at most, whatever the data and the machine, unless the user said how long; it says what it chose and why.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import tarfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import count
from pathlib import Path

from ddp_trainer.config import RunConfig
from ddp_trainer.cores import cores
from ddp_trainer.data.damage import DAMAGE
from ddp_trainer.errors import DdpError
from ddp_trainer.launchers.guard import LOCK_FILE
from ddp_trainer.launchers.local import Local, visible_gpus
from ddp_trainer.launchers.view import View
from ddp_trainer.telemetry.events import EVENTS_FILE, read_events
from ddp_trainer.telemetry.readable import counted

KILL_AT = 0.5
"""Part of the run after which a worker is killed."""
SAMPLE_IMAGES = 5_000
CIFAR_IMAGES = 50_000
IMAGES_PER_CORE_SECOND = 45
"""Trained, by ResNet-50 with the 7x7 stem at 32 pixels and four ranks: 86 to 165 a second were seen on 2 cores."""
FIXED_SECONDS = 45.0
"""Imports, evaluations, the recovery and the report, on 2 cores."""
LONGEST_SECONDS = 420.0
"""Longer is no demonstration: epochs are left out until the estimate is below."""
GPU_EPOCHS, GPU_IMAGES = 30, 300_000
"""A GPU does an epoch of the sample in about a second, so more of them fit, up to so many images in all."""
LENGTH_KEYS = frozenset({"optim.epochs", "optim.max_steps"})
LARGEST_COUNTED_BYTES = 500_000_000
"""A tar beyond this is not counted: reading it once more would cost more than the answer is worth."""


@dataclass(frozen=True)
class Machine:
    """What there is to train on."""

    cores: int
    gpus: int


@dataclass(frozen=True)
class Typed:
    """How the user called this, for the commands to try next: `ddp` as it was typed, and the configuration file."""

    program: str
    config: Path | None

    def command(self, name: str, *words: str) -> str:
        """A command line of the same program with the same file."""
        file = ["--config", str(self.config)] if self.config else []
        return shlex.join([self.program, name, *file, *words])


def run_demo(
    config: RunConfig, said: Collection[str], environment: Mapping[str, str], typed: Typed, say: Callable[[str], object] = print
) -> int:
    """Run it; returns the exit code of the run.

    `said` are the keys that the user has set: how long to train is not chosen for those who did.
    """
    gpus = 0 if config.distributed.device == "cpu" else len(visible_gpus(environment))
    config, what = fitted(config, training_images(config.data.source), Machine(cores(), gpus), said)
    say(f"{what}; run directory {config.run_dir}")
    victim = config.distributed.nodes - 1
    killed_at: list[float] = []

    def kill_once(local: Local) -> None:
        progress = local.view.progress
        if killed_at or progress is None or progress.phase != "training" or progress.step < KILL_AT * progress.total_steps:
            return
        local.view.say(f"now killing worker {victim} (SIGKILL), as a lost machine would end it", "bad")
        killed_at.append(time.time())
        local.kill_agent(victim)

    code = Local(config, environment, View(), on_look=kill_once if victim else (lambda _: None)).run()
    if code == 0:
        say("\n".join(["", *epilogue(config, killed_at[0] if killed_at else None), "", *try_next(config, typed, said)]))
    return code


def fresh(config: RunConfig) -> RunConfig:
    """The configuration with a run directory that no run has used: `demo`, or else `demo-2`, `demo-3` and so on."""
    names = (f"{config.run.name}-{number}" if number > 1 else config.run.name for number in count(1))
    candidates = (config.with_values({"run.name": name}) for name in names)
    return next(candidate for candidate in candidates if _is_free(candidate.run_dir))


def _is_free(run_dir: Path) -> bool:
    """Not there, or left over from a start that was refused; or not to be looked at, of which the run will complain."""
    try:
        return not run_dir.exists() or (run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= {"logs", LOCK_FILE})
    except OSError:
        return True


def training_images(source: str) -> int | None:
    """How many images an epoch has, by names alone; None where that cannot be said (what is wrong, the run will say)."""
    known = {"sample": SAMPLE_IMAGES, "download": CIFAR_IMAGES}
    if source in known:
        return known[source]
    path = Path(source).expanduser()
    try:
        if any((folder / "batches.meta").exists() for folder in (path, path / "cifar-10-batches-py")):
            return CIFAR_IMAGES
        if path.is_dir():
            return sum(1 for _ in path.glob("train/*/[!.]*")) or None
        if path.stat().st_size > LARGEST_COUNTED_BYTES:
            return None
        with tarfile.open(path) as tar:
            return sum(member.isfile() and "train" in Path(member.name).parts[:-2] for member in tar) or None
    except DAMAGE:
        return None


def fitted(config: RunConfig, images: int | None, machine: Machine, said: Collection[str] = ()) -> tuple[RunConfig, str]:
    """The demo's length for this much data and this machine, and the sentence that says so. Pure."""
    has_gpus = machine.gpus >= config.world_size
    is_own = config.optim.max_steps is not None or not LENGTH_KEYS.isdisjoint(said)
    wanted = float(GPU_EPOCHS) if has_gpus and not is_own else config.optim.epochs
    epochs = wanted if is_own or not images else min(wanted, _most_epochs(images, machine, has_gpus=has_gpus))
    interval = config.telemetry.eval_every_epochs
    if "telemetry.eval_every_epochs" not in said:
        interval = min(interval, epochs / 2)  # at least two evaluations, so that the accuracy can be seen to rise
    config = config.with_values({"optim.epochs": epochs, "telemetry.eval_every_epochs": interval})
    sentence = f"{_who(config, images, machine, has_gpus=has_gpus)}: {_how_long(config, images, machine, has_gpus=has_gpus)}"
    if images and epochs < wanted:
        sentence += f" ({epochs:g} and not {wanted:g}, since there are {images / SAMPLE_IMAGES:.3g} times the sample's images)"
    return config, sentence


def _who(config: RunConfig, images: int | None, machine: Machine, *, has_gpus: bool) -> str:
    workers, threads = config.distributed.nodes, machine.cores // config.world_size
    where = f"on {config.world_size} of {machine.gpus} GPUs" if has_gpus else f"on {counted(machine.cores, 'CPU core')}"
    each = "" if has_gpus else f", {counted(max(1, threads), 'thread')} each"
    much = f"{images:,} images" if images else "images"
    return f"{counted(workers, 'worker')} train {config.model.name} on {much} ({config.data.source}) {where}{each}"


def _how_long(config: RunConfig, images: int | None, machine: Machine, *, has_gpus: bool) -> str:
    steps, epochs = config.optim.max_steps, config.optim.epochs
    length = f"{steps} steps" if steps else counted(epochs, "epoch")
    if not images or has_gpus or (config.model.name, config.model.stem) != ("resnet50", "imagenet"):
        return length
    trained = steps * config.data.global_batch if steps else epochs * images
    minutes = max(1, round((FIXED_SECONDS + trained / (IMAGES_PER_CORE_SECOND * machine.cores)) / 60))
    return f"{length}, about {counted(minutes, 'minute')}" + (" once they are downloaded" if config.data.source == "download" else "")


def _most_epochs(images: int, machine: Machine, *, has_gpus: bool) -> float:
    """Whole epochs, or a part of one where there are very many images."""
    budget = GPU_IMAGES if has_gpus else (LONGEST_SECONDS - FIXED_SECONDS) * IMAGES_PER_CORE_SECOND * machine.cores
    most = budget / images
    tenths = 10 ** math.ceil(-math.log10(most)) if most < 1 else 1
    return math.floor(most * tenths) / tenths


def epilogue(config: RunConfig, killed_at: float | None) -> list[str]:
    """What was seen, line by line; reads the run directory and writes the report."""
    from ddp_trainer.report.inputs import read_inputs  # what the report needs is not needed before
    from ddp_trainer.report.page import write_report
    from ddp_trainer.report.story import tell

    run = tell(read_inputs(config.run_dir))
    lines: list[str] = []
    seen = [point.accuracy for point in run.evals if point.accuracy is not None]
    if seen:
        chance = f" (chance is {1 / len(run.evaluation.classes):.0%})" if run.evaluation else ""
        course = f"{'rose' if seen[-1] > seen[0] else 'went'} from {seen[0]:.1%} to {seen[-1]:.1%}" if len(seen) > 1 else f"{seen[-1]:.1%}"
        lines.append(f"test accuracy  {course}{chance}")
    restarts = sum(run.restarts.values())
    if restarts:
        again = next((e["time"] for e in read_events(config.run_dir / EVENTS_FILE) if _is_new_step(e, killed_at)), None)
        took = f"; {again - killed_at:.1f} s from the kill to the first new step" if again and killed_at else ""
        lines.append(f"restarts       {restarts}, {counted(run.lost_steps or 0, 'step')} done again{took}")
    try:
        lines.append(f"report         {write_report(config.run_dir)}")
    except DdpError as error:
        lines.append(f"report         not written: {error}")
    return lines


def _is_new_step(event: Mapping[str, object], killed_at: float | None) -> bool:
    moment = event.get("time")
    return killed_at is not None and event.get("kind") == "first_step" and isinstance(moment, float) and moment > killed_at


def try_next(config: RunConfig, typed: Typed, said: Collection[str] = ()) -> list[str]:
    """Commands that work as they stand, on the same data and task: what the user has `said` may have been said for this call only."""
    lines = [typed.command("local", "--workers", "2", *_as_said(config, said), "--set", "optim.epochs=2", "--run-dir", "runs/two-workers")]
    tensorboard = str(Path(typed.program).with_name("tensorboard"))
    if config.telemetry.tensorboard and shutil.which(tensorboard):
        lines.append(shlex.join([tensorboard, "--logdir", str(config.run_dir / "tensorboard")]))
    if config.data.source == "sample":
        lines.append(typed.command("demo", "--data", "full") + "        # all 60,000 images, downloaded")
    lines.append("docs/your-own-model.md says how to train your own model")
    return [f"{'try next' if i == 0 else '':15}{line}" for i, line in enumerate(lines)]


def _as_said(config: RunConfig, said: Collection[str]) -> list[str]:
    """The data and whatever else was chosen, but how long to train and where."""
    keys = {*said, "data.source"} if config.data.source != "sample" else {*said}
    words = []
    for key in sorted(keys - LENGTH_KEYS):
        section, *names = key.split(".")
        if section not in {"run", "distributed"}:
            value = reduce(lambda part, name: part[name], names, getattr(config, section).model_dump(mode="json"))
            words += ["--set", f"{key}={json.dumps(value)}"]
    return words
