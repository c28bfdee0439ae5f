"""The names by which the states of a step model are known, in Keras and in every file.

A state comes in as the input `<what>_state` and goes out as the output `<what>_state_out`, which is
the next call's input. One that starts late, as what it remembers comes late, bears the number of
the calls before which it stays as it began: `<what>_state_from_3`. All begin as zeros. One that is
called `<what>_variable` is the same in Keras; in a file it is neither an input nor an output, but a
variable that the file keeps from call to call.
"""

import re
from collections.abc import Iterable
from typing import Any

_STATE = re.compile(r".+_(?:variable|state(?:_from_(\d+))?)")
_OUT = "_out"


def state_name(what: str, start: int = 0) -> str:
    """The name of a state that begins at a call, the first by default."""
    return f"{what}_state_from_{start}" if start else f"{what}_state"


def variable_name(what: str) -> str:
    """The name of a state that a file keeps by itself."""
    return f"{what}_variable"


def is_variable(name: str) -> bool:
    """Whether a state is kept by the file itself."""
    return name.endswith("_variable")


def out_of(name: str) -> str:
    """The name of the output that a state is fed back from."""
    return name + _OUT


def start_of(name: str) -> int:
    """The number of calls before which a state stays as it began."""
    found = _STATE.fullmatch(name)
    return int(found[1] or 0) if found else 0


def states_of(inputs: Iterable[str], outputs: Iterable[str]) -> list[str]:
    """Those of the inputs that are states, by the names of inputs and outputs."""
    given = set(outputs)
    return [name for name in inputs if _STATE.fullmatch(name) and out_of(name) in given]


def pairs_of(graph: Any) -> list[tuple[Any, Any]]:
    """The tensors that the states of a step model's graph come as and go as."""
    if not isinstance(graph.outputs, dict):
        return []
    inputs = [node.outputs[0] for node in graph.nodes if node.is_input]
    given = {tensor.name: tensor for tensor in inputs}
    return [(given[name], graph.outputs[out_of(name)]) for name in states_of(given, graph.outputs)]
