"""A run as the trainer writes it: the real writers, a made-up clock and loss, real test images. One worker is killed at about half."""

import io
import json
import math
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

import ddp_trainer
from ddp_trainer.config import validate
from ddp_trainer.telemetry.evaluation import write_evaluation
from ddp_trainer.telemetry.events import EventLog
from ddp_trainer.telemetry.jsonl import JsonLines

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECALL = (0.52, 0.58, 0.29, 0.24, 0.33, 0.38, 0.55, 0.47, 0.61, 0.49)
NEIGHBOURS = {0: 8, 1: 9, 2: 4, 3: 5, 4: 7, 5: 3, 6: 2, 7: 4, 8: 0, 9: 1}
STARTED = 1_760_000_000.0
STEPS, STEPS_PER_EPOCH, STEP_SECONDS, BATCH = 312, 39, 0.52, 128
FAULT_STEP, RESUMED_STEP = 163, 151


class Clock:
    def __init__(self):
        self.now = STARTED

    def __call__(self):
        return self.now


def write_run(run_dir: Path, *, message: str = "rank 2 was killed by SIGKILL", finish: bool = True) -> Path:  # noqa: PLR0915 - one run, told in order
    """Four workers, eight epochs; at step 163 rank 2 is killed and training goes on from step 151, ten seconds' work lost."""
    run_dir.mkdir(parents=True)
    clock, chance = Clock(), random.Random(7)
    events, metrics = EventLog(run_dir / "events.jsonl", clock), JsonLines(run_dir / "metrics.jsonl")
    raw = {
        "run": {"name": "demo"},
        "distributed": {"nodes": 4},
        "optim": {"lr": 0.05, "epochs": 8},
        "checkpoint": {"every_seconds": 20},
    }
    config = validate(raw, "test")
    (run_dir / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    (run_dir / "config_hash").write_text(config.digest() + "\n", encoding="utf-8")

    def train(first: int, last: int, attempt: int) -> None:
        saved_at = clock.now
        for step in range(first + 1, last + 1):
            clock.now += STEP_SECONDS * (1 + 0.06 * chance.random())
            if step == first + 1:
                events.append("first_step", step=step, attempt=attempt)
            if step % 5 == 0:
                done = step / STEPS
                line = {"kind": "train", "step": step, "epoch": step / STEPS_PER_EPOCH, "time": clock.now, "attempt": attempt}
                numbers = {"loss": 2.35 - 0.75 * math.sqrt(done) + 0.09 * chance.gauss(0, 1), "accuracy": 0.1 + 0.33 * done**0.7}
                numbers["accuracy"] += 0.03 * chance.gauss(0, 1)
                rate = BATCH / STEP_SECONDS * (0.93 + 0.06 * chance.random())
                lr = 0.05 * (done / 0.15 if done < 0.15 else (1 + math.cos(math.pi * (done - 0.15) / 0.85)) / 2)
                metrics.append(line | numbers | {"lr": lr, "samples_per_second": rate})
            if step % STEPS_PER_EPOCH == 0:
                seconds = 1.9 + 0.3 * chance.random()
                clock.now += seconds
                found = {"loss": 2.3 - 0.62 * (step / STEPS) ** 0.5, "accuracy": 0.1 + 0.346 * (step / STEPS) ** 0.62}
                head = {"kind": "eval", "step": step, "epoch": step / STEPS_PER_EPOCH, "time": clock.now, "attempt": attempt}
                metrics.append(head | {"seconds": seconds} | found)
                events.append("evaluate", step=step, metrics=found, seconds=seconds, attempt=attempt)
            if clock.now - saved_at > 20 or step in {RESUMED_STEP, STEPS}:
                saved_at = clock.now
                pauses = {"stall_seconds": 0.012 + 0.01 * chance.random(), "persist_seconds": 0.31 + 0.1 * chance.random()}
                events.append("checkpoint", step=step, bytes=188_500_000, **pauses, verified=True, attempt=attempt)

    events.append("start", attempt=0, nodes=4, procs_per_node=1)
    clock.now += 6.4
    events.append("form", attempt=0, generation=0, world_size=4)
    clock.now += 1.1
    train(0, FAULT_STEP, attempt=0)
    clock.now += 0.2
    events.append("stacks", stacks={"2": f"running (state R)\n  autograd/graph.py:1113 _engine_run_backward\n  {message}"})
    events.append("fault", cause="crash", rank=2, node=2, exit=-9, step=FAULT_STEP, message=message)
    events.append("restart", cause="crash", node=2, attempt=1)
    clock.now += 0.9
    events.append("form", attempt=1, generation=1, world_size=4)
    clock.now += 1.3
    events.append("resume", step=RESUMED_STEP, source="step-000000151", lost_steps=FAULT_STEP - RESUMED_STEP, attempt=1)
    metrics.append({"kind": "resume", "step": RESUMED_STEP, "time": clock.now, "attempt": 1})
    if not finish:
        return run_dir
    train(RESUMED_STEP, STEPS, attempt=1)
    clock.now += 0.4
    events.append("finish", step=STEPS, metrics={"loss": 1.68, "accuracy": 0.446}, seconds=clock.now - STARTED, attempt=1)
    write_last_words(run_dir)
    write_real_evaluation(run_dir, chance)
    return run_dir


def write_last_words(run_dir: Path) -> None:
    progress = {"schema_version": 1, "run": "demo", "attempt": 1, "phase": "finished", "step": STEPS, "total_steps": STEPS, "world_size": 4}
    progress |= {"restarts": {"crash": 1, "hang": 0, "preemption": 0, "peer_loss": 0}, "lost_steps": 12, "goodput_ratio": 0.912, "gpus": []}
    (run_dir / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    folder = run_dir / "checkpoints" / "step-000000312"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        json.dumps({"step": STEPS, "libraries": {"torch": "2.15.0", "python": "3.11.2"}}), encoding="utf-8"
    )


def write_real_evaluation(run_dir: Path, chance: random.Random) -> None:
    targets = np.repeat(np.arange(10), 100)
    draws = [
        (t, 0.45 + 0.5 * chance.random())
        if chance.random() < RECALL[t]
        else (NEIGHBOURS[t] if chance.random() < 0.4 else chance.randrange(10), 0.25 + 0.55 * chance.random())
        for t in targets.tolist()
    ]
    predictions, confidences = np.array([p for p, _ in draws]), np.array([c for _, c in draws])
    images = test_images()
    write_evaluation(
        run_dir,
        step=STEPS,
        classes=CLASSES,
        targets=targets,
        predictions=predictions,
        confidences=confidences,
        picture=lambda i: images[i],
        samples=24,
    )


def test_images() -> list[np.ndarray]:
    """The 1,000 test images that ship with the trainer, by class, then number."""
    archive = Path(ddp_trainer.__file__).parent / "data" / "cifar10-sample.tar.gz"
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith("test/"):
                found[member.name] = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB"))
    return [found[name] for name in sorted(found)]
