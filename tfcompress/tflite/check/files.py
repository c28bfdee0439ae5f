"""What a target says about a .tflite file as a whole: inputs and outputs, memory, good habits."""

from __future__ import annotations

from typing import Any

from tfcompress.targets import Target
from tfcompress.tflite import arena
from tfcompress.tflite.check import inputs
from tfcompress.tflite.check.inputs import edges, finding, io_mend, misfitting_edges
from tfcompress.tflite.check.kernels import output_channels
from tfcompress.tflite.check.limits import is_kept, measured
from tfcompress.tflite.check.operators import Op, tensors
from tfcompress.tflite.check.result import Finding
from tfcompress.tflite.settings import IO_DTYPES

_PRECISIONS = {"int16": "int16x8", "dynamic_int8": "dynamic_int8", "int8": "int8"}


def findings(model: Any, ops: list[Op], data: bytes, target: Target) -> tuple[Finding, ...]:
    """Return what is to be said of a whole file, fatal things first.

    Args:
        model: a `ModelT`.
        ops: its operators.
        data: the bytes of the file.
        target: whose rules.

    Example:
        >>> findings(model, operators(model), data, target)  # doctest: +SKIP
        ()
    """
    found = [
        *_refused(model, target),
        *_io_dtypes(model, ops, target),
        *_batch(model, target),
        *inputs.shapes(model, target),
        *inputs.metadata(model, data, target),
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


def _refused(model: Any, target: Target) -> list[Finding]:
    """Inputs and outputs over which the target's compiler fails."""
    if target.refused_io is None:
        return []
    found = []
    for kind, tensor in edges(model):
        if tensor.dtype in target.refused_io.dtypes:
            text = f"{kind} '{tensor.name}' is {tensor.dtype}"
            mend = f"Leave what gives or takes {tensor.dtype} at the edge to the program around it."
            rule = target.refused_io.rule
            found.append(finding(target, "refused", True, text, mend, rule=rule))
    return found


def _io_dtypes(model: Any, ops: list[Op], target: Target) -> list[Finding]:
    expected = ", ".join(target.io_dtypes)
    fitting = [dtype for dtype in target.io_dtypes if dtype in IO_DTYPES[_computed(ops)]]
    mend = io_mend((fitting or target.io_dtypes)[0])
    found = []
    for kind, tensor in misfitting_edges(model, target):
        text = f"{kind} '{tensor.name}' is {tensor.dtype}; {target.title} takes {expected}"
        found.append(finding(target, "io_dtype", True, text, mend, rule=target.io_rule))
    return found


def _batch(model: Any, target: Target) -> list[Finding]:
    expected, fatal = target.shapes.batch, target.shapes.batch_required
    known = tensors(model, 0)
    found = []
    for tensor in (known[i] for i in model.subgraphs[0].inputs):
        batch = tensor.shape_signature[0] if len(tensor.shape_signature) > 1 else expected
        if expected is not None and batch != expected:
            size = "of any size" if batch < 0 else str(batch)
            mend = f"Convert with batch_size={expected} (--batch-size {expected})."
            text = f"input '{tensor.name}' has a batch {size}; {expected} is "
            text += "required here" if fatal else f"better here. {mend}"
            given = mend if fatal else None
            found.append(finding(target, "batch", fatal, text, given, rule=target.shapes.rule))
    return found


def _memory(model: Any, file_bytes: int, target: Target) -> list[Finding]:
    memory = target.memory
    found = []
    for key, used, what, mend in (
        (
            *("sram_bytes", arena.activation_bytes(model), "activations take at least"),
            "Make the model's inputs or its first layers smaller.",
        ),
        (
            *("weight_bytes", constant_bytes(model), "constants take"),
            "Compress the weights, or take a smaller model.",
        ),
        ("flash_bytes", file_bytes, "the file takes", "Compress the weights of the model."),
    ):
        limit = memory[key]
        if limit is not None and used > limit:
            fatal = key in memory.fatal
            effect = "it does not fit" if fatal else "what is beyond makes it slower"
            text = f"{what} {used:,} bytes, of {limit:,} there are: {effect}"
            found.append(
                finding(target, "memory", fatal, text, mend if fatal else None, rule=memory.rule)
            )
    return found


def _advice(ops: list[Op], target: Target) -> list[Finding]:
    """Limits that keep no operator from being mapped."""
    found: dict[str, list[Op]] = {}
    for op in ops:
        entry = target.operators.get(op.info.name) if op.is_builtin else None
        for name in (*target.common_limits, *entry.limits) if entry else ():
            if target.limits[name].get("advice") and is_kept(op, target.limits[name]) is False:
                found.setdefault(name, []).append(op)
    made = []
    for name, several in found.items():
        limit, first = target.limits[name], several[0]
        many = f" and {len(several) - 1} more" if len(several) > 1 else ""
        mend = limit.get("mend")
        text = f"{first.info.layer.split(';')[0] or first.info.name}{many}: {limit.text}"
        text = f"{text} ({measured(first, limit)}){'. ' + mend if mend else ''}"
        made.append(finding(target, "advice", False, text, rule=limit.rule))
    return made


def _channels(ops: list[Op], target: Target) -> list[Finding]:
    multiple = target.channels.multiple
    if multiple is None:
        return []
    widths = [(op.info.layer.split(";")[0], output_channels(op)) for op in ops]
    odd = [(layer, width) for layer, width in widths if width and width % multiple]
    if not odd:
        return []
    listed = ", ".join(f"{layer} ({width})" for layer, width in odd[:3])
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    text = (
        f"channels are handled {multiple} at a time; not so many: {listed}{more}. The next "
        f"multiple of {multiple} costs about the same time"
    )
    return [finding(target, "channels", False, text, rule=target.channels.rule)]


def _precision(ops: list[Op], target: Target) -> list[Finding]:
    if not ops or _computed(ops) == target.precision:
        return []
    text = f"the file computes in {_computed(ops)}; {target.precision} is recommended here"
    return [finding(target, "precision", False, text)]


def _computed(ops: list[Op]) -> str:
    """The precision, as of `convert`, that the operators' dtypes come closest to."""
    dtypes = {op.info.dtype for op in ops}
    computed = next((p for dtype, p in _PRECISIONS.items() if dtype in dtypes), None)
    return computed or ("float16" if "float16" in dtypes else "float32")
