"""The last word on a run, for its report: how each class did, and a few test images with what the model took them for.

One file, `evaluation.json`, written once at the end by rank 0 and replaced atomically, so a reader sees all of it or none. The pictures
are PNGs at their own size (a report scales them). Nothing of this feeds back into training or into a checkpoint.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_trainer.errors import DataError

EVALUATION_FILE = "evaluation.json"
"""Its name in the run directory."""


def write_evaluation(
    run_dir: Path,
    *,
    step: int,
    classes: Sequence[str],
    targets: npt.NDArray[np.integer[Any]],
    predictions: npt.NDArray[np.integer[Any]],
    confidences: npt.NDArray[np.floating[Any]],
    picture: Callable[[int], npt.NDArray[np.uint8] | None],
    samples: int = 24,
) -> None:
    """Write the confusion matrix and up to `samples` telling test images to `run_dir/evaluation.json`.

    Args:
        run_dir: an existing run directory.
        step: the step whose parameters were evaluated.
        classes: class names; C of them.
        targets: integer [N], the true class of each test sample, 0 <= target < C.
        predictions: integer [N], the class the model chose.
        confidences: float [N], the probability the model gave to its choice.
        picture: sample index -> uint8 [H, W, 3] or [H, W], or None where a sample has no picture. Called at most once per sample.
        samples: upper bound of pictures.

    Raises:
        ValueError: the arrays do not fit each other or `classes`.
        DataError: the file cannot be written.
    """
    shapes = {array.shape for array in (targets, predictions, confidences)}
    if len(shapes) != 1 or targets.ndim != 1:
        raise ValueError(f"targets, predictions and confidences must be [N] each, got {sorted(shapes)}")
    count = len(classes)
    for name, array in (("targets", targets), ("predictions", predictions)):
        if array.size and not (array.min() >= 0 and array.max() < count):
            raise ValueError(f"{name} holds class numbers {array.min()}..{array.max()}, but there are {count} classes")
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (targets, predictions), 1)
    chosen: list[dict[str, Any]] = []
    for index in telling_samples(targets, predictions, confidences):
        if len(chosen) >= samples:
            break
        pixels = picture(index)
        if pixels is not None:
            facts = {"index": index, "target": int(targets[index]), "predicted": int(predictions[index])}
            confidence = round(float(np.nan_to_num(confidences[index])), 4)
            chosen.append({**facts, "confidence": confidence, "png": base64.b64encode(_png(pixels)).decode("ascii")})
    _replace(run_dir / EVALUATION_FILE, {"step": step, "classes": list(classes), "confusion": confusion.tolist(), "samples": chosen})


def telling_samples(
    targets: npt.NDArray[np.integer[Any]], predictions: npt.NDArray[np.integer[Any]], confidences: npt.NDArray[np.floating[Any]]
) -> Iterator[int]:
    """Sample indices, most telling first: confidently wrong and confidently right in turn, each going round the true classes.

    Every sample comes exactly once, so a reader may stop anywhere, and the order is a pure function of the arrays.
    """
    right = targets == predictions
    wrong_order = _round_robin(np.flatnonzero(~right), targets, confidences)
    right_order = _round_robin(np.flatnonzero(right), targets, confidences)
    for pair in zip_longest(wrong_order, right_order):
        yield from (index for index in pair if index is not None)


def _round_robin(
    indices: npt.NDArray[np.intp], targets: npt.NDArray[np.integer[Any]], confidences: npt.NDArray[np.floating[Any]]
) -> Iterator[int]:
    """One sample of each true class, the most confident first, then the next of each class, and so on."""
    by_confidence = indices[np.argsort(-np.nan_to_num(confidences[indices]), kind="stable")]
    columns = [by_confidence[targets[by_confidence] == label] for label in np.unique(targets[indices])]
    for row in zip_longest(*columns):
        yield from (int(index) for index in row if index is not None)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    gray = pixels.ndim == 3 and pixels.shape[-1] == 1  # noqa: PLR2004 - [H, W, 1], which pillow refuses
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if gray else pixels, dtype=np.uint8)).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _replace(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(document), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}; free space or fix the permissions of the run directory") from error
