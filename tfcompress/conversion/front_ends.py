"""What makes features of sound inside of a model, which stays float in an integer file."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.conversion.layer_names import LayerNames
from tfcompress.graph.flatten import as_flat
from tfcompress.graph.front_end import WHY, FrontEnd, front_end, hint_of
from tfcompress.graph.nodes import Graph
from tfcompress.quantization.opening import spared_by
from tfcompress.targets.targets import Target, io_pair
from tfcompress.techniques.rules import Rules
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import op_name

REASON = f"it belongs to the front-end of sound: {WHY}"


def front_of(model: Any) -> FrontEnd | None:
    """The front-end of a Keras model; None if there is none, or it cannot be flattened."""
    if not isinstance(model, keras.Model):
        return None
    try:
        return front_end(Graph.of(as_flat(model)))
    except Exception:  # What users' layers raise is of any kind.
        return None


def tensors_of(file: Any, model: Any, front: FrontEnd | None, rules: Rules) -> set[int]:
    """The tensors of a float file that a front-end gives, by its layers or its operators."""
    graph, found = file.subgraphs[0], _before_logarithms(file)
    if front is None:
        return found if not isinstance(model, keras.Model) else set()
    names, spared, last = LayerNames(model), spared_by(rules, front), dict[int, str]()
    named: set[int] = set()
    for op in graph.operators:
        own = (names.of(flatbuffer.text(graph.tensors[i].name)) for i in op.outputs)
        layer = next(filter(None, (*own, *(last[i] for i in op.inputs if i in last))), "")
        last.update((i, layer) for i in op.outputs)
        named |= {*op.outputs} if layer in spared else set()
    return named


def _before_logarithms(file: Any) -> set[int]:
    """What logarithms of spectra are made of, with these."""
    makers = {i: op for op in file.subgraphs[0].operators for i in op.outputs}
    found: set[int] = set()
    for op in file.subgraphs[0].operators:
        if op_name(file, op) != "LOG":
            continue
        seen, stack = set(op.outputs), [op]
        kinds = set()
        while stack:
            before = stack.pop()
            kinds.add(op_name(file, before))
            new = {i for i in before.inputs if i in makers and i not in seen}
            seen |= new
            stack += [makers[i] for i in new]
        found |= seen if "RFFT2D" in kinds else set()
    return found


def notes_of_dynamic(front: FrontEnd | None) -> list[str]:
    """What is to be told of a front-end whose products round their inputs as they run."""
    if front is None:
        return []
    return [
        f"the front-end of sound, {front.words}, is rounded, too, where it has products: {WHY}. "
        "Split it off, and convert it in float32: front, rest, hint = tfcompress.split(model)"
    ]


def notes_of(front: FrontEnd | None, target: Target | None, io_dtype: str) -> list[str]:
    """What is to be told of a front-end that stays float, and how to split it off."""
    mend, words = "", "of sound"
    if front is not None:
        mend = ". To split it off: front, rest, hint = tfcompress.split(model)"
        words = f"of sound, {front.words},"
    told = f"the front-end {words} stays float, as {WHY}"
    if target is not None and "float32" not in target.precisions:
        told += f"; {target.title} takes integers alone, so that it does not run there"
    if io_pair(io_dtype)[0] != "float32":
        told += (
            f"; but its input comes in {io_pair(io_dtype)[0]}, which loses what is quiet: pass "
            "io_dtype='float32', or split it off"
        )
    notes = [told + mend]
    return notes if front is None else [*notes, hint_of(front)]
