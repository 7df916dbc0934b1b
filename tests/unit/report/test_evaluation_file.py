import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from ddp_trainer.errors import DataError
from ddp_trainer.telemetry.evaluation import telling_samples, write_evaluation

TARGETS = np.array([0, 0, 0, 1, 1, 2, 2])
PREDICTIONS = np.array([0, 1, 2, 1, 1, 0, 2])
CONFIDENCES = np.array([0.9, 0.4, 0.8, 0.7, 0.95, 0.6, 0.5])
FACTS = {"step": 7, "classes": ["cat", "dog", "frog"], "targets": TARGETS, "predictions": PREDICTIONS, "confidences": CONFIDENCES}


def colored(index):
    return np.full((4, 5, 3), 30 * index, dtype=np.uint8)


def written(run_dir, **changes):
    write_evaluation(run_dir, **{**FACTS, "picture": colored, **changes})
    return json.loads((run_dir / "evaluation.json").read_text())


def test_confusion_has_the_truth_in_rows(tmp_path):
    document = written(tmp_path)
    assert document["confusion"] == [[1, 1, 1], [0, 2, 0], [1, 0, 1]]
    assert (document["step"], document["classes"]) == (7, ["cat", "dog", "frog"])


def test_samples_alternate_sure_mistakes_and_sure_hits_over_the_classes():
    assert list(telling_samples(TARGETS, PREDICTIONS, CONFIDENCES)) == [2, 0, 5, 4, 1, 6, 3]


def test_pictures_keep_their_size_and_every_pixel(tmp_path):
    for sample in written(tmp_path)["samples"]:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sample["png"]))))
        assert (pixels == colored(sample["index"])).all()


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_gray_pictures_are_fine(tmp_path, shape):
    document = written(tmp_path, picture=lambda index: np.full(shape, index, dtype=np.uint8))
    assert Image.open(io.BytesIO(base64.b64decode(document["samples"][0]["png"]))).mode == "L"


def test_samples_without_a_picture_are_passed_over_and_the_number_is_bounded(tmp_path):
    document = written(tmp_path, picture=lambda index: None if index == 2 else colored(index), samples=3)
    assert [sample["index"] for sample in document["samples"]] == [0, 5, 4]


def test_empty_test_set_is_written_as_such(tmp_path):
    none = np.array([], dtype=np.int64)
    document = written(tmp_path, targets=none, predictions=none, confidences=none.astype(float))
    assert document["samples"] == []
    assert document["confusion"] == [[0] * 3] * 3


def test_confidence_that_is_no_number_becomes_zero(tmp_path):
    assert {s["confidence"] for s in written(tmp_path, confidences=np.full(7, np.nan))["samples"]} == {0.0}


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\[N\] each"):
        written(tmp_path, confidences=CONFIDENCES[:3])
    with pytest.raises(ValueError, match=r"targets holds class numbers 1\.\.3, but there are 3"):
        written(tmp_path, targets=TARGETS + 1)
    assert list(tmp_path.iterdir()) == []


def test_second_evaluation_replaces_the_first_and_leaves_no_draft(tmp_path):
    written(tmp_path)
    assert written(tmp_path, step=8)["step"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


def test_directory_that_is_gone_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*gone/evaluation\.json: No such file"):
        written(tmp_path / "gone")
