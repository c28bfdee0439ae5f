"""What a target says about a .tflite file as a whole: inputs and outputs, memory, good habits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tfcompress.targets.measures import is_kept, measured, output_channels
from tfcompress.targets.operators import Op, tensors
from tfcompress.targets.result import Finding
from tfcompress.targets.targets import IO_DTYPES, Target, source_of
from tfcompress.tflite import arena
from tfcompress.tflite.inspection import TensorInfo
from tfcompress.tflite.metadata import Metadata, TensorMetadata, metadata_of

_PRECISIONS = {"int16": "int16x8", "dynamic_int8": "dynamic_int8", "int8": "int8"}


def findings(model: Any, ops: list[Op], data: bytes, target: Target) -> tuple[Finding, ...]:
    """Return what is to be said of a whole file, fatal things first."""
    found = [
        *_refused(model, target),
        *_io_dtypes(model, ops, target),
        *_batch(model, target),
        *_shapes(model, target),
        *_metadata(model, data, target),
        *_memory(model, len(data), target),
        *_advice(ops, target),
        *_channels(ops, target),
        *_precision(ops, target),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.fatal))


def constant_bytes(model: Any) -> int:
    """Return the bytes of all constants that tensors refer to, each buffer once."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    data = (model.buffers[i].data for i in used)
    return sum(len(stored) for stored in data if stored is not None)


def _refused(model: Any, target: Target) -> Iterator[Finding]:
    """Inputs and outputs over which the target's compiler fails."""
    if target.refused_io is None:
        return
    for kind, tensor in edges(model):
        if tensor.dtype in target.refused_io.dtypes:
            text = f"{kind} '{tensor.name}' is {tensor.dtype}"
            mend = f"Leave what gives or takes {tensor.dtype} at the edge to the program around it."
            rule = target.refused_io.rule
            yield finding(target, "refused", True, text, mend, rule=rule)


def _io_dtypes(model: Any, ops: list[Op], target: Target) -> Iterator[Finding]:
    expected = ", ".join(target.io_dtypes)
    fitting = [dtype for dtype in target.io_dtypes if dtype in IO_DTYPES[_computed(ops)]]
    mend = io_mend((fitting or target.io_dtypes)[0])
    for kind, tensor in misfitting_edges(model, target):
        text = f"{kind} '{tensor.name}' is {tensor.dtype}; {target.title} takes {expected}"
        yield finding(target, "io_dtype", True, text, mend, rule=target.io_rule)


def _batch(model: Any, target: Target) -> Iterator[Finding]:
    expected, fatal = target.shapes.batch, target.shapes.batch_required
    known = tensors(model, 0)
    for tensor in (known[i] for i in model.subgraphs[0].inputs):
        batch = tensor.shape_signature[0] if len(tensor.shape_signature) > 1 else expected
        if expected is not None and batch != expected:
            size = "of any size" if batch < 0 else str(batch)
            mend = f"Convert with batch_size={expected} (--batch-size {expected})."
            text = f"input '{tensor.name}' has a batch {size}; {expected} is "
            text += "required here" if fatal else f"better here. {mend}"
            given = mend if fatal else None
            yield finding(target, "batch", fatal, text, given, rule=target.shapes.rule)


def _memory(model: Any, file_bytes: int, target: Target) -> Iterator[Finding]:
    memory = target.memory
    activations = arena.activation_bytes(model)
    smaller = "Make the model's inputs or its first layers smaller."
    compress = "Compress the weights, or take a smaller model."
    for key, used, what, mend in (
        ("sram_bytes", activations, "activations take at least", smaller),
        ("weight_bytes", constant_bytes(model), "constants take", compress),
        ("flash_bytes", file_bytes, "the file takes", "Compress the weights of the model."),
    ):
        limit = memory[key]
        if limit is not None and used > limit:
            fatal = key in memory.fatal
            effect = "it does not fit" if fatal else "what is beyond makes it slower"
            text = f"{what} {used:,} bytes, of {limit:,} there are: {effect}"
            given = mend if fatal else None
            yield finding(target, "memory", fatal, text, given, rule=memory.rule)


def _advice(ops: list[Op], target: Target) -> Iterator[Finding]:
    """Limits that keep no operator from being mapped."""
    found: dict[str, list[Op]] = {}
    for op in ops:
        entry = target.operators.get(op.info.name) if op.is_builtin else None
        for name in (*target.common_limits, *entry.limits) if entry else ():
            if target.limits[name].get("advice") and is_kept(op, target.limits[name]) is False:
                found.setdefault(name, []).append(op)
    for name, several in found.items():
        limit, first = target.limits[name], several[0]
        many = f" and {len(several) - 1} more" if len(several) > 1 else ""
        mend = limit.get("mend")
        text = f"{first.info.layer.split(';')[0] or first.info.name}{many}: {limit.text}"
        text = f"{text} ({measured(first, limit)}){'. ' + mend if mend else ''}"
        yield finding(target, "advice", False, text, rule=limit.rule)


def _channels(ops: list[Op], target: Target) -> Iterator[Finding]:
    multiple = target.channels.multiple
    if multiple is None:
        return
    widths = [(op.info.layer.split(";")[0], output_channels(op)) for op in ops]
    odd = [(layer, width) for layer, width in widths if width and width % multiple]
    if not odd:
        return
    listed = ", ".join(f"{layer} ({width})" for layer, width in odd[:3])
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    text = (
        f"channels are handled {multiple} at a time; not so many: {listed}{more}. The next "
        f"multiple of {multiple} costs about the same time"
    )
    yield finding(target, "channels", False, text, rule=target.channels.rule)


def _precision(ops: list[Op], target: Target) -> Iterator[Finding]:
    if ops and _computed(ops) != target.precision:
        text = f"the file computes in {_computed(ops)}; {target.precision} is recommended here"
        yield finding(target, "precision", False, text)


def _computed(ops: list[Op]) -> str:
    """The precision, as of `convert`, that the operators' dtypes come closest to."""
    dtypes = {op.info.dtype for op in ops if not op.sets_state}
    computed = next((p for dtype, p in _PRECISIONS.items() if dtype in dtypes), None)
    return computed or ("float16" if "float16" in dtypes else "float32")


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
    return Finding(kind, fatal, text, mend, *source_of(target, rule))


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


def _shapes(model: Any, target: Target) -> Iterator[Finding]:
    """What is wrong with the shapes of a file's inputs."""
    if target.inputs is None:
        return
    expected, known = target.inputs.shape, tensors(model, 0)
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
            yield finding(target, "shape", True, text, target.inputs.mend, rule=rule)


def _metadata(model: Any, data: bytes, target: Target) -> Iterator[Finding]:
    """What the metadata of a file do not say although the target reads it there."""
    rules = target.metadata
    if rules is None:
        return
    try:
        said = metadata_of(model, data, "the file") or Metadata()
    except ValueError as error:
        yield finding(target, "metadata", True, str(error), rules.mend, rule=rules.rule)
        return
    known = tensors(model, 0)
    for position, index in enumerate(model.subgraphs[0].inputs):
        tensor = known[index]
        entry = said.inputs[position] if position < len(said.inputs) else TensorMetadata()
        if tensor.dtype in rules.normalization and not entry.mean:
            text = (
                f"input '{tensor.name}' is {tensor.dtype}, and the file's metadata give no mean "
                "and std of it"
            )
            yield finding(target, "metadata", True, text, rules.mend, rule=rules.rule)
    if rules.labels and not any(entry.labels for entry in said.outputs):
        text = (
            "the file's metadata hold no labels, so that classes have no names. Give them with "
            "metadata= (--metadata)"
        )
        yield finding(target, "metadata", False, text, rule=rules.rule)


def _listed(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
