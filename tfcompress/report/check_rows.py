"""What a target's check found, as the report tells it."""

from __future__ import annotations

from typing import Any

from tfcompress.tflite.check.result import Check, OperatorCheck, caution, verdict_on

_LAYERS = 3


def check_rows(found: Check, names: dict[tuple[int, int], str]) -> dict[str, Any]:
    """A check with its operators grouped by what was said of them.

    Args:
        found: from `tfcompress.check`.
        names: (subgraph, index) of an operator -> the name of its layer.

    Returns:
        "target", "title", "verdict", "passed", "runs_in_parts", "mapped", "count", "caution",
        "mends", "fatal" and "notes" (texts), memory in bytes, and "groups": dicts of "name",
        "dtype", "mapped", "count", "status", "reason", "mend", "source" and "layers" (a text).
    """
    groups: dict[tuple[Any, ...], list[OperatorCheck]] = {}
    for op in found.operators:
        key = (op.mapped, op.name, op.dtype, op.status, op.reason)
        groups.setdefault(key, []).append(op)
    # What is not mapped comes first: it is what is to be mended.
    ordered = sorted(groups.values(), key=lambda ops: (ops[0].mapped, -len(ops)))
    return {
        "target": found.target,
        "title": found.title,
        "verdict": verdict_on(found),
        "passed": found.passed,
        "runs_in_parts": found.runs_in_parts,
        "mapped": found.mapped,
        "count": len(found.operators),
        "caution": caution(found),
        "mends": found.mends,
        "fatal": [finding.text for finding in found.findings if finding.fatal],
        "notes": [finding.text for finding in found.findings if not finding.fatal],
        "activation_bytes": found.activation_bytes,
        "constant_bytes": found.constant_bytes,
        "groups": [_group(ops, names) for ops in ordered],
    }


def _group(ops: list[OperatorCheck], names: dict[tuple[int, int], str]) -> dict[str, Any]:
    first = ops[0]
    layers = [names.get((op.subgraph, op.index)) or f"operator {op.index}" for op in ops]
    more = f" and {len(layers) - _LAYERS} more" if len(layers) > _LAYERS else ""
    return {
        "name": first.name,
        "dtype": first.dtype,
        "mapped": first.mapped,
        "count": len(ops),
        "status": first.status,
        "reason": first.reason or "",
        "mend": first.mend or "",
        "source": first.source or "",
        "layers": ", ".join(layers[:_LAYERS]) + more,
    }
