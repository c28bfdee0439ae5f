"""What other readers of metadata gave, judged."""

import numpy as np
import pytest

from tfcompress.tflite.metadata import Metadata, TensorMetadata
from tfcompress.tools import mediapipe, tflite_support

OURS = Metadata(
    "digits",
    "Reads digits",
    inputs=(TensorMetadata("image", "a scan", mean=(0.1,), std=(255.0,), maximum=(1.0,)),),
    outputs=(TensorMetadata("digit", labels=("zero", "one")),),
)


def shown():
    """The same, as tflite-support shows it: float32 printed in full."""
    normalization = {"mean": [0.10000000149011612], "std": [255.0]}
    entry = {
        "name": "image",
        "description": "a scan",
        "process_units": [{"options_type": "NormalizationOptions", "options": normalization}],
        "stats": {"max": [1.0]},
    }
    labels = {"name": "labels.txt", "type": "TENSOR_AXIS_LABELS"}
    graph = {
        "input_tensor_metadata": [entry],
        "output_tensor_metadata": [{"name": "digit", "associated_files": [labels]}],
    }
    return {"name": "digits", "description": "Reads digits", "subgraph_metadata": [graph]}


def judged(theirs, labels="zero\none\n"):
    return tflite_support.judge(OURS, theirs, {"labels.txt": labels})


def test_the_same_reading_passes():
    found = judged(shown())
    assert (found.status, found.figures) == ("passed", {"tensors": 2, "labels": 2})


def test_what_is_read_otherwise_is_named():
    theirs = shown()
    entry = theirs["subgraph_metadata"][0]["input_tensor_metadata"][0]
    theirs["description"] = "Writes digits"
    entry["process_units"][0]["options"]["std"] = [254.0]
    entry["stats"] = {}
    found = judged(theirs, "zero\ntwo\n")
    assert found.status == "failed"
    assert found.reason == (
        "it reads otherwise than tfcompress: description, std of 'image', maximum of 'image', "
        "labels of 'digit'"
    )


def test_a_missing_tensor_is_named():
    theirs = shown()
    theirs["subgraph_metadata"][0]["input_tensor_metadata"] = []
    assert "the number of inputs" in judged(theirs).reason


EXPECTED = np.array([[0.9, 0.1], [0.25, 0.75]])


def test_classifier_of_the_same_scores_and_labels():
    scores = EXPECTED + np.array([[0.01, -0.01], [0, 0]])
    found = mediapipe.judge(EXPECTED, scores, ("zero", "one"), {0: "zero", 1: "one"})
    assert (found.status, found.figures) == ("passed", {"max difference": 0.01, "labels": 2})


def test_classifier_without_labels_passes_with_a_remark():
    found = mediapipe.judge(EXPECTED, EXPECTED, (), {0: None, 1: None})
    assert (found.status, found.figures["labels"]) == ("passed", 0)
    assert "classes have no names" in found.reason


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        (EXPECTED, {0: "zero", 1: "two"}, "class 1 is 'two'; expected 'one'"),
        (EXPECTED, {}, "it gave no class"),
        (EXPECTED[::-1], {0: "zero"}, "scores differ from LiteRT's by 0.65; expected at most 0.05"),
        (EXPECTED * [[1, np.nan], [1, 1]], {0: "zero"}, "by 0.1; expected"),
        (EXPECTED, {7: "seven"}, "class 7 is 'seven'; expected ''"),
    ],
)
def test_classifier_of_other_scores_or_labels(scores, labels, reason):
    found = mediapipe.judge(EXPECTED, scores, ("zero", "one"), labels)
    assert found.status == "failed"
    assert reason in found.reason
