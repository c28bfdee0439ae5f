"""tflite-support, TensorFlow's own reader of metadata, compared with ours."""

from __future__ import annotations

import json
from typing import Any

from tfcompress.tflite.metadata import Metadata, TensorMetadata, read_metadata, split_labels
from tfcompress.tools.driving import Library, NotApplicable, Outcome, Tool
from tfcompress.tools.subject import Subject

_LIBRARY = Library("tflite-support", "tflite-support", ("tflite-support==0.4.4",))
_TEXTS = ("name", "description", "version", "author", "license")


def run(file: Subject) -> Outcome:
    """Passed if it reads the same texts, normalization, ranges and labels as we do."""
    ours = read_metadata(file.data)
    if ours is None:
        raise NotApplicable("the file holds no metadata; write it with convert(metadata=...)")
    answer = _LIBRARY.drive("run_tflite_support", file.data)
    shown = json.loads(str(answer.figures["metadata"]))
    return judge(ours, shown, json.loads(str(answer.figures["files"])))


TOOL = Tool("tflite-support 0.4.4", run)


def judge(ours: Metadata, shown: dict[str, Any], files: dict[str, str]) -> Outcome:
    """Compare what was read."""
    (graph,) = shown.get("subgraph_metadata", [{}])
    wrong = [key for key in _TEXTS if shown.get(key, "") != getattr(ours, key)]
    tensors = {"inputs": ours.inputs, "outputs": ours.outputs}
    for side, entries in tensors.items():
        theirs = graph.get(f"{side[:-1]}_tensor_metadata", [])
        if len(theirs) != len(entries):
            wrong.append(f"the number of {side}")
            continue
        for mine, other in zip(entries, theirs, strict=True):
            wrong += [f"{key} of '{mine.name}'" for key in _wrong(mine, other, files)]
    labels = sum(len(entry.labels) for entries in tensors.values() for entry in entries)
    figures = {"tensors": len(ours.inputs) + len(ours.outputs), "labels": labels}
    if not wrong:
        return Outcome("passed", "", figures)
    return Outcome("failed", f"it reads otherwise than tfcompress: {', '.join(wrong)}", figures)


def _wrong(mine: TensorMetadata, other: dict[str, Any], files: dict[str, str]) -> list[str]:
    units = [unit.get("options", {}) for unit in other.get("process_units", [])]
    normalization: dict[str, Any] = next((unit for unit in units if "mean" in unit), {})
    stats = other.get("stats", {})
    found = {
        "name": other.get("name", ""),
        "description": other.get("description", ""),
        "mean": tuple(normalization.get("mean", ())),
        "std": tuple(normalization.get("std", ())),
        "minimum": tuple(stats.get("min", ())),
        "maximum": tuple(stats.get("max", ())),
        "labels": _labels(other, files),
    }
    return [key for key, value in found.items() if not _same(getattr(mine, key), value)]


def _labels(other: dict[str, Any], files: dict[str, str]) -> tuple[str, ...]:
    kinds = ("TENSOR_AXIS_LABELS", "TENSOR_VALUE_LABELS")
    for entry in other.get("associated_files", []):
        if entry.get("type") in kinds:
            return split_labels(files.get(entry["name"], ""))
    return ()


def _same(mine: Any, other: Any) -> bool:
    if isinstance(mine, tuple) and mine and isinstance(mine[0], float):
        # Both print the same float32.
        return len(mine) == len(other) and all(
            abs(a - b) <= 1e-6 * abs(a) for a, b in zip(mine, other, strict=True)
        )
    return mine == other
