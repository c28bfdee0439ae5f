"""Small files for tools to be asked about, and tools made up for tests."""

import numpy as np
from tflite_by_hand import OPS, TYPES, build, code, fully_connected, graph, operator, tensor

WEIGHTS = np.array([[2, -1, 3], [1, 4, -2]], np.int8)
BIAS = np.array([10, -20], np.int32)


def two_layers():
    """int8 (1, 3) -> FULLY_CONNECTED -> hidden (1, 2) -> RELU -> (1, 2), all scales 0.5 or 1.

    hidden = round((weights @ x + bias) * 0.5), as its scale is 1 and that of the sum 0.5.
    """
    tensors = [
        tensor("x", [1, 3], TYPES.INT8, 0, [0.5], [0]),
        tensor("w", [2, 3], TYPES.INT8, 1, [1.0], [0]),
        tensor("b", [2], TYPES.INT32, 2, [0.5], [0]),
        tensor("hidden", [1, 2], TYPES.INT8, 0, [1.0], [0]),
        tensor("y", [1, 2], TYPES.INT8, 0, [1.0], [0]),
    ]
    operators = [operator(0, [0, 1, 2], [3], *fully_connected()), operator(1, [3], [4])]
    codes = [code(OPS.FULLY_CONNECTED, 4), code(OPS.RELU, 2)]
    constants = [WEIGHTS.tobytes(), BIAS.tobytes()]
    return build(codes, [graph(tensors, operators, [0], [4])], constants)


def two_layers_of_floats():
    """The same between float32 edges, without the RELU: x -> QUANTIZE -> ... -> DEQUANTIZE."""
    tensors = [
        tensor("x", [1, 3], TYPES.FLOAT32),
        tensor("w", [2, 3], TYPES.INT8, 1, [1.0], [0]),
        tensor("b", [2], TYPES.INT32, 2, [0.5], [0]),
        tensor("codes", [1, 3], TYPES.INT8, 0, [0.5], [0]),
        tensor("hidden", [1, 2], TYPES.INT8, 0, [1.0], [0]),
        tensor("y", [1, 2], TYPES.FLOAT32),
    ]
    operators = [
        operator(0, [0], [3]),
        operator(1, [3, 1, 2], [4], *fully_connected()),
        operator(2, [4], [5]),
    ]
    codes = [code(OPS.QUANTIZE), code(OPS.FULLY_CONNECTED, 4), code(OPS.DEQUANTIZE, 2)]
    constants = [WEIGHTS.tobytes(), BIAS.tobytes()]
    return build(codes, [graph(tensors, operators, [0], [5])], constants)


def floats():
    """float32 (1, 3) -> QUANTIZE -> int8 of scale 0.25 and zero point -8 -> DEQUANTIZE."""
    tensors = [
        tensor("x", [1, 3], TYPES.FLOAT32),
        tensor("q", [1, 3], TYPES.INT8, 0, [0.25], [-8]),
        tensor("y", [1, 3], TYPES.FLOAT32),
    ]
    operators = [operator(0, [0], [1]), operator(1, [1], [2])]
    codes = [code(OPS.QUANTIZE), code(OPS.DEQUANTIZE, 2)]
    return build(codes, [graph(tensors, operators, [0], [2])], [])


TOOLS = {
    "yes": 'return Outcome("passed", "", {"max LSB": 0, "bytes": 12345})',
    "no": 'return Outcome("failed", "7 operators [CPU]", {"CPU ops": 7})',
    "refuses": 'raise Refused("cannot read it")',
    "elsewhere": 'raise NotApplicable("takes floats only")',
    "absent": 'raise Unavailable("sudo apt-get install absent")',
    "sees": 'return Outcome("passed", "", {"first": int(file.inputs[0]["x"][0, 0])})',
    "counts": 'return Outcome("passed", "", {"cost": len(file.path.name) * 1000})',
    "tuned": 'return Outcome("passed", "", {"speed": file.options.get("speed", "none")})',
}


def made_up_tools(folder):
    """Writes modules of tools as `accept` asks them."""
    for name, body in TOOLS.items():
        (folder / f"made_up_{name}.py").write_text(
            "from tfcompress.tools.driving import NotApplicable, Outcome, Refused, Tool\n"
            "from tfcompress.tools.environments import Unavailable\n"
            "def run(file):\n"
            f"    {body}\n"
            "def check(value):\n"
            "    if value not in ('slow', 'fast'):\n"
            "        raise ValueError(f'received {value!r}; expected slow or fast.')\n"
            f"options = {{'speed': check}} if '{name}' == 'tuned' else {{}}\n"
            "costs = ('cost',)\n"
            f"TOOL = Tool('{name.capitalize()} 1.0', run, options, costs)\n"
        )
