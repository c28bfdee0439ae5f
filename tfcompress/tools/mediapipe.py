"""MediaPipe's image classifier, which takes normalization and labels from the metadata."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.metadata import Metadata, TensorMetadata, read_metadata
from tfcompress.tools.driving import Figure, Library, NotApplicable, Outcome, Tool
from tfcompress.tools.subject import Subject, grid_of, outputs_of

_MEDIAPIPE = Library("mediapipe", "MediaPipe", ("mediapipe==1.2.2",))

# Of scores from 0 to 1: MediaPipe runs its own copy of LiteRT, on XNNPACK.
TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class _Task:
    """Pictures, what the file makes of them, and the labels it declares."""

    pictures: list[np.ndarray]
    scores: np.ndarray
    labels: tuple[str, ...]


def run(file: Subject) -> Outcome:
    """Passed if it gives the file's own labels and the scores that LiteRT gives.

    MediaPipe itself says what it misses, such as the normalization of a float32 input.
    """
    task = _task(file)
    inputs = [{"picture": picture} for picture in task.pictures]
    settings = {"classes": task.scores.shape[1]}
    answer = _MEDIAPIPE.drive("run_mediapipe", file.data, inputs, settings=settings)
    scores = np.array([sample[0] for sample in answer.outputs])
    labels = {int(k): v for k, v in json.loads(str(answer.figures["labels"])).items()}
    return judge(task.scores, scores, task.labels, labels)


TOOL = Tool("MediaPipe 1.2.2, ImageClassifier", run)


def judge(
    expected: np.ndarray, scores: np.ndarray, wanted: tuple[str, ...], labels: dict[int, str | None]
) -> Outcome:
    """Compare scores and labels.

    Args:
        expected: scores of LiteRT, (samples, classes).
    """
    gap = float(np.max(np.abs(expected - np.nan_to_num(scores))))
    named = sum(bool(label) for label in labels.values())
    figures: dict[str, Figure] = {"max difference": float(f"{gap:.2g}"), "labels": named}
    for index, label in sorted(labels.items()):
        known = wanted[index] if index < len(wanted) else ""
        if (label or "") != known:
            return Outcome("failed", f"class {index} is {label!r}; expected {known!r}", figures)
    if not labels:
        return Outcome("failed", "it gave no class", figures)
    if gap > TOLERANCE:
        reason = f"scores differ from LiteRT's by {gap:.2g}; expected at most {TOLERANCE}"
        return Outcome("failed", reason, figures)
    remark = "" if wanted else "classes have no names, as the file's metadata hold no labels"
    return Outcome("passed", remark, figures)


def _task(file: Subject) -> _Task:
    if len(file.inputs[0]) != 1 or len(file.expected[0]) != 1:
        raise NotApplicable("MediaPipe's classifier takes models of one input and one output")
    (value,), (output,) = file.inputs[0].values(), file.expected[0].values()
    if value.ndim != 4 or value.shape[0] != 1 or value.shape[3] != 3:
        raise NotApplicable(f"MediaPipe takes one RGB picture; the input's shape is {value.shape}")
    for what, array in (("input", value), ("output", output)):
        if array.dtype.name not in ("uint8", "float32"):
            raise NotApplicable(f"MediaPipe takes uint8 or float32; the {what} is {array.dtype}")
    metadata = read_metadata(file.data) or Metadata()
    entry = metadata.inputs[0] if metadata.inputs else TensorMetadata()
    if not entry.mean:  # MediaPipe refuses such a float32 input, and takes uint8 as it is.
        entry = dataclasses.replace(entry, mean=(0.0,), std=(1.0,))
    labels = metadata.outputs[0].labels if metadata.outputs else ()
    pictures = [_picture(next(iter(sample.values())), entry) for sample in file.inputs]
    return _Task(pictures, _scores(file, value.dtype, pictures, entry), labels)


def _picture(value: np.ndarray, entry: TensorMetadata) -> np.ndarray:
    """The picture that comes nearest to a sample, once it is normalized."""
    if value.dtype == np.uint8:
        return value
    real = value * np.asarray(entry.std, np.float32) + np.asarray(entry.mean, np.float32)
    return np.clip(np.rint(real), 0, 255).astype(np.uint8)


def _scores(
    file: Subject, dtype: np.dtype, pictures: list[np.ndarray], entry: TensorMetadata
) -> np.ndarray:
    mean, std = np.asarray(entry.mean, np.float32), np.asarray(entry.std, np.float32)
    values = pictures if dtype == np.uint8 else [(picture - mean) / std for picture in pictures]
    tensors = [{"picture": value.astype(dtype)} for value in values]
    graph = flatbuffer.read(file.data).subgraphs[0]
    found = [output.ravel() for (output,) in outputs_of(file.data, tensors)]
    scores, grid = np.array(found, np.float64), grid_of(graph.tensors[graph.outputs[0]])
    return scores if grid is None else (scores - grid[1]) * grid[0]
