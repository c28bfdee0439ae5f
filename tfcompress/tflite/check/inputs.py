"""What a target says about a file's inputs and outputs, and what the file tells about them."""

from __future__ import annotations

from typing import Any

from tfcompress.targets import Target
from tfcompress.tflite.check.operators import tensors
from tfcompress.tflite.check.result import Finding
from tfcompress.tflite.inspection import TensorInfo
from tfcompress.tflite.metadata import Metadata, TensorMetadata, metadata_of

# Indices and truth values are taken as they are; these stand for real numbers.
_REAL = ("float32", "float16", "bfloat16", "int8", "uint8", "int16", "int4")


def finding(
    target: Target,
    kind: str,
    fatal: bool,
    text: str,
    mend: str | None = None,
    *,
    rule: str | None = None,
) -> Finding:
    """Return a `Finding` with the source and date of its rule."""
    known = next((r for r in target.rules if r.id == rule), None)
    return Finding(
        kind, fatal, text, mend, known.source if known else None, known.date if known else None
    )


def input_shapes(model: Any) -> list[tuple[int, ...]]:
    """Return the shape of each input of a file, -1 for a dimension of any size."""
    known = tensors(model, 0)
    return [tuple(known[i].shape_signature) for i in model.subgraphs[0].inputs]


def edges(model: Any) -> list[tuple[str, TensorInfo]]:
    """Return the inputs and outputs of a file, each with "input" or "output"."""
    graph, known = model.subgraphs[0], tensors(model, 0)
    both = (("input", graph.inputs), ("output", graph.outputs))
    return [(kind, known[i]) for kind, indices in both for i in indices]


def misfitting_edges(model: Any, target: Target) -> list[tuple[str, TensorInfo]]:
    """Return the inputs and outputs whose dtype, of real numbers, a target does not take."""
    return [
        (kind, tensor)
        for kind, tensor in edges(model)
        if tensor.dtype in _REAL and tensor.dtype not in target.io_dtypes
    ]


def io_mend(dtype: str) -> str:
    """Return the advice to convert with other inputs and outputs."""
    return f"Convert with io_dtype='{dtype}' (--io-dtype {dtype})."


def shapes(model: Any, target: Target) -> list[Finding]:
    """Return what is wrong with the shapes of a file's inputs.

    Args:
        model: a `ModelT`.
        target: whose rules.
    """
    if target.inputs is None:
        return []
    expected, known = target.inputs.shape, tensors(model, 0)
    found = []
    for index, shape in zip(model.subgraphs[0].inputs, input_shapes(model), strict=True):
        fits = len(shape) == len(expected) and all(
            isinstance(wanted, str) or size == wanted
            for size, wanted in zip(shape, expected, strict=True)
        )
        if not fits:
            text = (
                f"input '{known[index].name}' has the shape {_listed(shape)}; {target.title} takes "
                f"{_listed(expected)}"
            )
            rule = target.inputs.rule
            found.append(finding(target, "shape", True, text, target.inputs.mend, rule=rule))
    return found


def metadata(model: Any, data: bytes, target: Target) -> list[Finding]:
    """Return what the metadata of a file do not say although the target reads it there.

    Args:
        model: a `ModelT`.
        data: the bytes of the file.
        target: whose rules.
    """
    rules = target.metadata
    if rules is None:
        return []
    try:
        said = metadata_of(model, data, "the file") or Metadata()
    except ValueError as error:
        return [finding(target, "metadata", True, str(error), rules.mend, rule=rules.rule)]
    found = []
    known = tensors(model, 0)
    for position, index in enumerate(model.subgraphs[0].inputs):
        tensor = known[index]
        entry = said.inputs[position] if position < len(said.inputs) else TensorMetadata()
        if tensor.dtype in rules.normalization and not entry.mean:
            text = (
                f"input '{tensor.name}' is {tensor.dtype}, and the file's metadata give no mean "
                "and std of it"
            )
            found.append(finding(target, "metadata", True, text, rules.mend, rule=rules.rule))
    if rules.labels and not any(entry.labels for entry in said.outputs):
        text = (
            "the file's metadata hold no labels, so that classes have no names. Give them with "
            "metadata= (--metadata)"
        )
        found.append(finding(target, "metadata", False, text, rule=rules.rule))
    return found


def _listed(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
