"""The text of each file that `c_array` writes."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfcompress.export.filling import Values, fill
from tfcompress.export.microcontroller.result import CArray, Port
from tfcompress.graph.states import out_of, start_of, states_of
from tfcompress.tflite.inspection import Inspection

_TEMPLATES = Path(__file__).parent / "templates"


class Kind(NamedTuple):
    """A type: its member of TfLiteTensor's data, what fills an input, and how it is printed."""

    member: str
    value: str
    form: str
    cast: str


# Integers without a scale are mostly indices, of which 0 is always one.
TYPES = {
    "float32": Kind("f", "static_cast<float>(i % 256) / 255.0f", "%f", "double"),
    "int8": Kind("int8", "static_cast<int8_t>(i % 256 - 128)", "%d", "int"),
    "uint8": Kind("uint8", "static_cast<uint8_t>(i % 256)", "%d", "int"),
    "int16": Kind("i16", "static_cast<int16_t>(i % 256)", "%d", "int"),
    "int32": Kind("i32", "0", "%ld", "long"),
    "uint32": Kind("u32", "0", "%lu", "unsigned long"),
    "int64": Kind("i64", "0", "%ld", "long"),
    "bool": Kind("b", "false", "%d", "int"),
}


# The files, named after the model, by their templates.
_FILES = {
    "array.h": "{}.h",
    "array.cc": "{}.cc",
    "ops.h": "{}_ops.h",
    "settings.h": "{}_settings.h",
    "states.h": "{}_states.h",
    "main.cc": "main.cc",
    "README.md": "README.md",
}


def _templates(states: bool) -> dict[str, str]:
    return {key: file for key, file in _FILES.items() if states or key != "states.h"}


def file_names(name: str, states: bool = False) -> tuple[str, ...]:
    """The files, named after the model, which may keep states from call to call."""
    return tuple(file.format(name) for file in _templates(states).values())


def generate(found: CArray, data: bytes) -> dict[str, str]:
    """Write the files as texts."""
    big, measured = found.name.upper(), found.arena_bytes or 0
    states = states_of_ports(found.inputs, found.outputs)
    held, given = ({pair[side] for pair in states} for side in (0, 1))
    values: Values = {
        "name": found.name,
        "NAME": big,
        "size": len(data),
        "bytes": f"{len(data):,}",
        "array": byte_lines(data),
        "ops": len(found.ops),
        # The resolver of TFLite Micro has no room for none.
        "room": max(1, len(found.ops)),
        "calls": "\n".join(
            f"  if (resolver.{method}() != kTfLiteOk) return kTfLiteError;" for method in found.ops
        ),
        "measured": found.arena_bytes is not None,
        "note": comment(found.arena_note),
        "arena": _rounded(measured),
        "arena_bytes": f"{measured:,}",
        "lower": found.arena_lower_bound,
        "lower_bytes": f"{found.arena_lower_bound:,}",
        "guess": _rounded(2 * found.arena_lower_bound + 16 * 1024),
        "variables": found.variables,
        "fills": "\n".join(_fill(i, p) for i, p in enumerate(found.inputs) if i not in held),
        "prints": "\n".join(_print(i, p) for i, p in enumerate(found.outputs) if i not in given),
        "ports": "\n".join(_port_lines(found, big)),
        "table": "\n".join(_table(found)),
        "states": bool(states),
        "times": "in two calls" if states else "once",
        **_state_lines(found, states),
    }
    texts = (fill(_TEMPLATES, template, values) for template in _templates(bool(states)))
    return dict(zip(file_names(found.name, bool(states)), texts, strict=True))


def states_of_ports(inputs: Sequence[Port], outputs: Sequence[Port]) -> list[tuple[int, int]]:
    """The numbers of the inputs that are states, and of the outputs that they go out as."""
    taken, given = ([port.name for port in ports] for ports in (inputs, outputs))
    names = states_of(taken, given)
    return [(taken.index(name), given.index(out_of(name))) for name in names]


def _state_lines(found: CArray, states: list[tuple[int, int]]) -> dict[str, str]:
    """The lines of the header of states, one for each."""
    fields, begins, gives, takes = [], [], [], []
    for number, (i, j) in enumerate(states):
        port, field = found.inputs[i], f"states.state_{number}"
        member = TYPES[port.dtype].member
        start = start_of(port.name)
        fields.append(f"  /* {comment(port.name)} */")
        fields.append(f"  alignas(8) uint8_t state_{number}[{port.bytes}];")
        zero = (port.zero_point or 0) % 256 if port.dtype in ("int8", "uint8") else 0
        begins.append(f"  memset({field}, {zero}, sizeof({field}));")
        gives.append(f"  memcpy(interpreter.input({i})->data.{member}, {field}, sizeof({field}));")
        condition = f"if (states.calls > {start}) " if start else ""
        taken = f"memcpy({field}, interpreter.output({j})->data.{member}, sizeof({field}));"
        takes.append(f"  {condition}{taken}")
    lines = {"fields": fields, "begins": begins, "gives": gives, "takes": takes}
    return {f"state_{key}": "\n".join(text) for key, text in lines.items()}


def _rounded(size: int) -> int:
    return -(-size // 16) * 16


def _ports(found: CArray) -> Iterator[tuple[str, int, Port]]:
    for kind, ports in (("input", found.inputs), ("output", found.outputs)):
        for i, port in enumerate(ports):
            yield kind, i, port


def _port_lines(found: CArray, big: str) -> Iterator[str]:
    for kind, i, port in _ports(found):
        start = f"{big}_{kind.upper()}_{i}"
        shape = " x ".join(map(str, port.shape)) or "scalar"
        yield f"\n/* {kind} {i}: {comment(port.name)}, {port.dtype}, {shape} */"
        yield from (
            f"/* {comment(line)} */"
            for line in textwrap.wrap(port.about, _LONGEST, break_on_hyphens=False)
        )
        yield f"#define {start}_BYTES {port.bytes}u"
        if port.scale is not None:
            yield f"#define {start}_SCALE {number(port.scale)}"
            yield f"#define {start}_ZERO_POINT ({port.zero_point})"


def _table(found: CArray) -> Iterator[str]:
    for kind, i, port in _ports(found):
        shape = " x ".join(map(str, port.shape)) or "scalar"
        real = "x" if port.scale is None else f"{port.scale:.9g} (x - {port.zero_point})"
        yield f"| {kind} {i} | `{comment(port.name)}` | {port.dtype} | {shape} | {real} |"


def _fill(i: int, port: Port) -> str:
    kind, count = TYPES[port.dtype], math.prod(port.shape)
    return f"""\
  TfLiteTensor* input_{i} = interpreter.input({i});
  for (int i = 0; i < {count}; ++i) input_{i}->data.{kind.member}[i] = {kind.value};"""


def _print(i: int, port: Port) -> str:
    kind, count = TYPES[port.dtype], math.prod(port.shape)
    value = f"static_cast<{kind.cast}>(output_{i}->data.{kind.member}[i])"
    return f"""\
  const TfLiteTensor* output_{i} = interpreter.output({i});
  for (int i = 0; i < {count}; ++i) {{
    MicroPrintf("output {i}[%d]: {kind.form}", i, {value});
  }}"""


_BUILTIN = """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND
    BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM
    DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE EMBEDDING_LOOKUP ELU
    EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER
    GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
    LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MIRROR_PAD MEAN
    MINIMUM MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX
    REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT
    SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQUEEZE SQRT
    SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE_CONV TRANSPOSE UNPACK
    UNIDIRECTIONAL_SEQUENCE_LSTM VAR_HANDLE WHILE ZEROS_LIKE
"""

_IRREGULAR = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}

_SIGNAL = """
    Delay Energy FftAutoScale FilterBank FilterBankLog FilterBankSpectralSubtraction
    FilterBankSquareRoot Framer Irfft OverlapAdd PCAN Rfft Stacker Window
"""

_CUSTOM = {
    "CIRCULAR_BUFFER": "CircularBuffer",
    "TFLite_Detection_PostProcess": "DetectionPostprocess",
    "TFLM_DECODE": "Decode",
    "ethos-u": "EthosU",
    **{f"Signal{method}": method for method in _SIGNAL.split()},
}


def _method(name: str) -> str:
    words = name.replace("2D", "2_D").split("_")
    return _IRREGULAR.get(name) or "".join(word.capitalize() for word in words)


METHODS = {
    **{name: f"Add{_method(name)}" for name in _BUILTIN.split()},
    **{name: f"Add{method}" for name, method in _CUSTOM.items()},
}


def resolver_methods(found: Inspection, where: str) -> dict[str, str]:
    """Return the methods that add the operators of a file, by operator."""
    names = sorted({op.name for op in found.operators})
    lacking = [name for name in names if name not in METHODS]
    if lacking:
        raise ValueError(
            f"TFLite Micro has no operator {', '.join(repr(n)[1:-1][:60] for n in lacking)}, which "
            f"{where} needs; expected built-in operators of TFLite Micro. Replace the layers that "
            "they come from."
        )
    hybrid = sorted({op.name for op in found.operators if op.dtype.startswith("dynamic")})
    narrow = {t.dtype for t in found.tensors} & {"float16", "bfloat16"}
    if hybrid or narrow:
        which = f"{', '.join(hybrid)} with float activations" if hybrid else f"{min(narrow)} values"
        raise ValueError(
            f"TFLite Micro cannot run {where}: Hybrid models are not supported ({which}); expected "
            "int8 or int16x8 quantization, or float32. Convert again with precision='int8'."
        )
    return {name: METHODS[name] for name in names}


_LONGEST = 60


def check_name(name: str) -> None:
    """Check what the files, the array and the constants are to be named after."""
    wrong = not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)
    if wrong or "__" in name or len(name) > _LONGEST or name.lower() == "main":
        raise ValueError(
            f"name: received {name!r:.80}; expected a C identifier of at most {_LONGEST} letters, "
            "digits and single underscores that starts with a letter and is not main. Take "
            "g_model, for example."
        )


def comment(text: str) -> str:
    """A text that cannot end a comment, continue a line or hide itself."""
    # Not "?", of which C makes other signs (trigraphs).
    return re.sub(r"[^A-Za-z0-9_ .,:;=+()/-]", "_", text[:_LONGEST])


def number(value: float) -> str:
    """A float32 as a C constant that is exactly the same."""
    if not math.isfinite(value):
        raise ValueError(f"a scale is {value}; expected a finite number. Convert the model again.")
    text = f"{np.float32(value):.9g}"
    text = text if set(text) & set(".e") else f"{text}.0"
    return f"({text}f)" if value < 0 else f"{text}f"


def byte_lines(data: bytes) -> str:
    """The bytes as C numbers, twelve in a line."""
    codes = [f"0x{i:02x}," for i in range(256)]
    rows = (data[i : i + 12] for i in range(0, len(data), 12))
    return "\n".join("    " + " ".join(codes[b] for b in row) for row in rows)
