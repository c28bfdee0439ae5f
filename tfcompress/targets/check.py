"""Whether a .tflite file suits a target: operator by operator, by the rules in its file."""

from __future__ import annotations

import dataclasses
import itertools
import os
from typing import Any

from tfcompress.targets.measures import is_kept, measure, measured
from tfcompress.targets.operators import Op, operators
from tfcompress.targets.result import Check, Finding, OperatorCheck, Part
from tfcompress.targets.targets import Target, load_target, source_of
from tfcompress.targets.whole_file import (
    constant_bytes,
    findings,
    input_shapes,
    io_mend,
    misfitting_edges,
)
from tfcompress.tflite import arena, flatbuffer, run
from tfcompress.tflite.weight_codes import OPERATOR

_PLAIN = "Convert again without compressed_weights: TFLite Micro alone decodes weights in codes."


def check(path: str | os.PathLike[str] | bytes, target: str | os.PathLike[str] | Target) -> Check:
    """Check a .tflite file against the rules of a target, without running it.

    For targets that run LiteRT, it also has to load the file.

    Args:
        path: the file, or its bytes.
        target: a name from `list_targets()`, the path of a target file, or a loaded one.

    Returns:
        A `Check`: each operator mapped or not and why, how the graph is split, memory in bytes,
        what to do. `passed` only if every operator is mapped and nothing else is in the way.

    Raises:
        TypeError: the target is neither of these.
        ValueError: the target is not known or its file is not valid; there is no such .tflite
            file, or it is damaged.

    Example:
        >>> found = check("model.tflite", "edge_tpu")  # doctest: +SKIP
        >>> found.passed, found.mends  # doctest: +SKIP
        (False, ("Convert with io_dtype='int8' (--io-dtype int8).",))
    """
    target = target if isinstance(target, Target) else load_target(target)
    data = flatbuffer.load(path)
    model = flatbuffer.read(data, name=flatbuffer.describe(path))
    found = check_parsed(model, data, target, path)
    return dataclasses.replace(found, findings=(*_unloadable(data, target), *found.findings))


def _unloadable(data: bytes, target: Target) -> list[Finding]:
    """What LiteRT says of a file that it does not load, of those that it has to load here."""
    if target.get("loaded_by") != "litert":
        return []
    try:
        run.Loaded(data, run.DEFAULT)
    except (MemoryError, ValueError, RuntimeError) as error:
        said = run.line(error)
        if OPERATOR in said:
            text = f"LiteRT does not load the file: {run.ONLY_MICRO}"
            return [Finding("refused", True, text, _PLAIN)]
        if run.NOT_BUILTIN.search(said):
            text = f"LiteRT loads the file only where an app brings operators of its own: {said}"
            return [Finding("custom", True, text)]
        mend = "It is damaged, or was made wrong: convert the model again."
        return [Finding("refused", True, f"LiteRT does not load the file: {said}", mend)]
    return []


def check_parsed(
    model: Any, data: bytes, target: Target, path: str | os.PathLike[str] | bytes
) -> Check:
    """Check a file that is unpacked already; see `check`."""
    ops = operators(model)
    judged = _split_off([judge(op, target) for op in ops], ops, target)
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
    return Check(
        path=name,
        target=target.name,
        title=target.title,
        accept_options=_accept_options(target),
        compiler=target.compiler.name if target.compiler else None,
        partition=target.partition,
        elsewhere=target.elsewhere.place if target.elsewhere else None,
        operators=tuple(judged),
        parts=_parts(judged),
        findings=(*findings(model, ops, data, target), *_still_runs(judged, target)),
        activation_bytes=arena.activation_bytes(model),
        constant_bytes=constant_bytes(model),
        file_bytes=len(data),
    )


def mapped(model: Any, target: Target) -> int:
    """How many operators of a file a target maps."""
    return sum(judge(op, target).mapped for op in operators(model))


def judge(op: Op, target: Target) -> OperatorCheck:
    """Tell whether a target maps an operator, whatever stands around it."""
    name = op.info.name
    for limit in (target.limits[limit] for limit in target.common_limits):
        # Whatever else it is, the compiler makes nothing of the file.
        if limit.get("fatal") and is_kept(op, limit) is False:
            return _breach(op, target, limit)
    if not op.is_builtin:
        known = name in target.custom_operators
        if known:
            return _verdict(op, target, None, target.operators_rule)
        mend = _PLAIN if name == OPERATOR else None
        return _verdict(op, target, "operator", target.operators_rule, mend=mend)
    entry = target.operators.get(name) or target.operators.get("*")
    if entry is None:
        reason = f"{target.title} does not list {name}"
        return _verdict(op, target, "operator", target.operators_rule, reason)
    rule = entry.get("rule", target.operators_rule)
    dtypes, version = entry.dtypes, entry.version
    if dtypes is not None and op.info.dtype not in dtypes:
        reason = f"it computes in {op.info.dtype}; mapped are {', '.join(dtypes)}"
        return _verdict(op, target, "dtype", rule, reason)
    if version is not None and op.info.version > version:
        reason = f"it is version {op.info.version}; the highest known to be mapped is {version}"
        return _verdict(op, target, "version", rule, reason)
    return _shape_verdict(op, target) or _limit_verdict(op, target, entry)


def _shape_verdict(op: Op, target: Target) -> OperatorCheck | None:
    shapes = target.shapes
    for key, limit, status, text in (
        ("dynamic_dimensions", 0 if shapes.static else None, "dynamic", "shapes must be static"),
        ("rank", shapes.rank, "rank", f"tensors have at most {shapes.rank} dimensions"),
        (
            *("inner_rank", shapes.inner_dims, "rank"),
            f"only the {shapes.inner_dims} innermost dimensions may be larger than 1",
        ),
    ):
        if limit is not None and not is_kept(op, {"value": key, "max": limit}):
            told = measured(op, {"value": key})
            return _verdict(op, target, status, shapes.rule, f"{text}; {told}")
    return None


def _limit_verdict(op: Op, target: Target, entry: Target) -> OperatorCheck:
    exempt = entry.get("exempt", ())
    common = [name for name in target.common_limits if name not in exempt]
    for limit in (target.limits[name] for name in (*common, *entry.limits)):
        if limit.get("advice"):
            continue
        if not is_kept(op, limit):
            return _breach(op, target, limit)
    return _verdict(op, target, None, None)


def _breach(op: Op, target: Target, limit: Target) -> OperatorCheck:
    reason = f"{limit.text} ({measured(op, limit)})"
    verdict = _verdict(op, target, limit.status, limit.rule, reason, limit.get("mend"))
    return dataclasses.replace(verdict, fatal=verdict.fatal or bool(limit.get("fatal")))


def _verdict(
    op: Op,
    target: Target,
    status: str | None,
    rule: str | None,
    reason: str | None = None,
    mend: str | None = None,
) -> OperatorCheck:
    info = op.info
    source, date = source_of(target, rule if status else None)
    words = target.statuses[status or "mapped"]
    if status is not None and mend is None:
        replaced = target.replacements.get(info.name) if status in ("operator", "dtype") else None
        mend = replaced or _usual_mend(op, status, target)
    mend = mend and _filled(mend, op, target)
    for key, value in (("op", info.name), ("dtype", info.dtype), ("version", info.version)):
        words = words.replace(f"{{{key}}}", str(value))
        mend = mend and mend.replace(f"{{{key}}}", str(value))
    return OperatorCheck(
        subgraph=info.subgraph,
        index=info.index,
        name=info.name,
        version=info.version,
        dtype=info.dtype,
        layer=info.layer,
        mapped=status is None,
        status=words,
        reason=reason,
        mend=mend,
        source=source,
        date=date,
        fatal=status in ("operator", "dtype") and info.name in target.fatal_operators,
    )


def _usual_mend(op: Op, status: str, target: Target) -> str | None:
    # No precision changes the dtype of indices, counts and truth values.
    if status == "dtype" and measure(op, "real_dtypes") == () and "integers" in target.mends:
        return target.mends["integers"]
    return target.mends.get(status)


def _filled(mend: str, op: Op, target: Target) -> str:
    """Fill in advice on the edges of the file, or leave it out where they are so already."""
    if mend.startswith("{io}"):
        misfits = misfitting_edges(op.model, target)
        return io_mend(target.io_dtypes[0]) if misfits else mend.removeprefix("{io}")
    batch = target.shapes.batch or 1
    advice = f"convert with batch_size={batch} (--batch-size {batch}); where that is not enough, "
    shapes = input_shapes(op.model)
    has_it = all(shape[0] == batch for shape in shapes if len(shape) > 1)
    filled = mend.replace("{batch}", "" if has_it else advice)
    return filled[:1].upper() + filled[1:]


def _still_runs(judged: list[OperatorCheck], target: Target) -> list[Finding]:
    """What a target says of operators that it leaves to something else."""
    text = target.elsewhere.text if target.elsewhere else None
    if text is None or all(op.mapped for op in judged):
        return []
    return [Finding("elsewhere", False, text)]


def _split_off(judged: list[OperatorCheck], ops: list[Op], target: Target) -> list[OperatorCheck]:
    """Where all that is mapped must be one part, mark what would need a second one.

    It reads, perhaps through others, what an operator elsewhere makes of this part. What is in
    front of the part, or beside it, keeps nothing from being mapped.
    """
    if target.partition != "rest":
        return judged
    # Tensors that come from the part, and those that went on from it elsewhere, by whom.
    inside: set[int] = set()
    outside: dict[int, OperatorCheck] = {}
    found = []
    for op, verdict in zip(ops, judged, strict=True):
        if op.info.subgraph:
            found.append(_behind(verdict, None, target) if verdict.mapped else verdict)
            continue
        given, made = [t.index for t in op.given], [t.index for t in op.outputs]
        left = next((outside[i] for i in given if i in outside), None)
        if verdict.mapped and left is not None:
            verdict = _behind(verdict, left, target)
        elif verdict.mapped:
            inside.update(made)
        elif left is None and inside.intersection(given):
            left = verdict
        if left is not None:
            outside.update(dict.fromkeys(made, left))
        found.append(verdict)
    return found


def _behind(verdict: OperatorCheck, first: OperatorCheck | None, target: Target) -> OperatorCheck:
    what = f"operator {first.index} ({first.name})" if first else "an operator with graphs inside"
    return dataclasses.replace(
        verdict,
        mapped=False,
        status=target.statuses.subgraph,
        reason=f"it comes behind {what}, which is not mapped",
        mend=first.mend if first else None,
    )


def _parts(judged: list[OperatorCheck]) -> tuple[Part, ...]:
    main = [op for op in judged if op.subgraph == 0]
    groups = ([*ops] for _, ops in itertools.groupby(main, key=lambda op: op.mapped))
    return tuple(Part(ops[0].mapped, ops[0].index, ops[-1].index) for ops in groups)


def _accept_options(target: Target) -> str | None:
    """How `tfcompress accept` asks the tool itself."""
    if target.accept is None:
        return None
    options = [f"--{key} {value}" for key, value in target.accept_options.items()]
    return " ".join(["--with", target.accept, *options])
