"""LiteRT's interpreter with the kernels that are asked for, and what its errors mean."""

from __future__ import annotations

import re
import warnings
from typing import Any

# Names of `OpResolverType`s.
REFERENCE = "BUILTIN_REF"
_OPTIMIZED = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
DEFAULT = "AUTO"
# By the names that people know; XNNPACK is what LiteRT takes if it is told nothing.
OTHERS = {"XNNPACK": DEFAULT, "optimized": _OPTIMIZED}
_LACKING = re.compile(r"Didn't find op for builtin opcode '(\w+)'")
_NOT_BUILTIN = re.compile(r"unresolved custom op|(Select|Regular) TensorFlow op")


def load(content: bytes, kernels: str = REFERENCE, *, keep: bool = False) -> tuple[Any, str]:
    """Load a file into LiteRT.

    The reference kernels lack a few operators (ELU, CEIL, ROUND, SEGMENT_SUM and others) that the
    optimized ones have: a file with one of these takes the optimized kernels, without XNNPACK.

    Args:
        content: the bytes of the file.
        kernels: name of an `OpResolverType`.
        keep: keep intermediate tensors.

    Returns:
        (the interpreter with its tensors allocated, a note if it has not the kernels asked for).

    Raises:
        Exception: LiteRT cannot run the file; of any type, as damaged files fail in many ways.

    Example:
        >>> interpreter, note = load(data)  # doctest: +SKIP
    """
    try:
        return _interpreter(content, kernels, keep), ""
    except ValueError as error:
        lacking = _LACKING.search(str(error))
        if lacking is None or kernels != REFERENCE:
            raise
    note = f"LiteRT's reference kernels lack {lacking[1]}: its optimized ones instead"
    return _interpreter(content, _OPTIMIZED, keep), note


def _interpreter(content: bytes, kernels: str, keep: bool) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of its own deprecation.
        interpreter = Interpreter(
            model_content=content,
            experimental_op_resolver_type=getattr(OpResolverType, kernels),
            experimental_preserve_all_tensors=keep,
        )
    interpreter.allocate_tensors()
    return interpreter


def line(error: Exception) -> str:
    """What LiteRT says, as one line without a full stop; the type if it says nothing."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def cannot_run(name: str, error: Exception) -> ValueError:
    """The error that tells that LiteRT cannot run a file, with what can be done.

    Args:
        name: what to call the file.
        error: LiteRT's own.
    """
    said = line(error)
    lacking = _LACKING.search(said)
    if lacking is not None:
        advice = (
            f"This LiteRT has no kernel for {lacking[1]} in that version: replace the layer that "
            "it comes from, or install a newer ai-edge-litert."
        )
    elif _NOT_BUILTIN.search(said):
        advice = (
            "Expected built-in operators only; convert again without SELECT_TF_OPS and custom "
            "operators."
        )
    else:
        advice = "It is damaged, or was made wrong: expected a file that LiteRT runs; convert the "
        advice += "model again."
    return ValueError(f"LiteRT cannot run {name}: {said}. {advice}")
