"""`make accept`: published architectures, quantized here, through every tool; one table.

python -m tfcompress.bench.acceptance [--only MODELS] [--tools TOOLS] [-o results.md]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress.bench.demo import load_digits
from tfcompress.bench.models import generated_data
from tfcompress.bench.tasks import TASKS, Task
from tfcompress.compression.compress import quantize_aware
from tfcompress.conversion.convert import convert
from tfcompress.errors import expected_one_of
from tfcompress.files import temporary, writing
from tfcompress.tflite.metadata import Metadata, TensorMetadata, add_metadata
from tfcompress.tools.accept import Acceptance, ToolResult, accept, list_tools

# The task of the benchmark that has each architecture.
ARCHITECTURES = {
    "digits": TASKS["digits"],
    "ds_cnn": TASKS["keywords"],
    "mobilenet_v1": TASKS["wake_vision"],
    "resnet8": TASKS["glyphs"],
    "autoencoder": TASKS["anomaly"],
}

# Tools for files whose inputs and outputs are integers, as on an NPU or a microcontroller ...
INTEGER_TOOLS = ("vela", "tflm", "openvino", "onnxruntime", "arm64", "kotlin", "apk")

# ... and for those that take floats, and say in their metadata what these mean.
FLOAT_TOOLS = ("litertjs", "mediapipe", "tflite_support")

# The figures that the table shows of each tool: column, name of the figure.
COLUMNS = {
    "vela": (("Vela CPU ops", "CPU ops"), ("NPU ops", "NPU ops"), ("ms (U55-128)", "ms")),
    "tflm": (("TFLM LSB", "max LSB"), ("arena", "arena bytes")),
    "openvino": (("OpenVINO LSB", "max LSB"),),
    "onnxruntime": (("ONNX LSB", "max LSB"),),
    "arm64": (("ARM64 LSB", "max LSB"), ("its XNNPACK", "XNNPACK max LSB")),
    "litertjs": (("LiteRT.js LSB", "max LSB"),),
}

LEGEND = """\
LSB: largest difference of the outputs from those of LiteRT's reference kernels, on typical inputs.
`0 (XNNPACK; 4)`: 0 from LiteRT's XNNPACK kernels, and 4 from its reference, as these two are from
one another. `3 (ops 1)`: 3 at the outputs, where the steps of many operators add up; each operator
alone, fed with what LiteRT feeds it, is within 1."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One file.

    Attributes:
        model: one of the `ARCHITECTURES`.
        method: how it was quantized: QAT or PTQ.
        io_dtype: of its inputs and outputs.
        parameters: of the Keras model.
        file_bytes: its size.
        acceptance: what the tools said.
    """

    model: str
    method: str
    io_dtype: str
    parameters: int
    file_bytes: int
    acceptance: Acceptance


def run(only: Iterable[str] | None, tools: Iterable[str] | None, folder: Path) -> list[Row]:
    """Make the files and ask the tools."""

    asked = list_tools() if tools is None else list(tools)
    rows = []
    for made in make_files(only, folder):
        kind = FLOAT_TOOLS if made.io_dtype == "float32" else INTEGER_TOOLS
        chosen = [name for name in kind if name in asked]
        if not chosen:
            continue
        found = accept(made.path, chosen, data=made.data)
        print(found, file=sys.stderr, flush=True)
        size = made.path.stat().st_size
        rows.append(Row(made.model, made.method, made.io_dtype, made.parameters, size, found))
    return rows


def to_markdown(rows: Sequence[Row]) -> str:
    """The table, and below it why something did not pass."""
    lines = []
    for io_dtype in dict.fromkeys(row.io_dtype for row in rows):
        chosen = [row for row in rows if row.io_dtype == io_dtype]
        tools = list(dict.fromkeys(r.tool for row in chosen for r in row.acceptance.results))
        heads = ["model", "parameters", "int8 by", "bytes"]
        heads += [head for tool in tools for head, _ in COLUMNS.get(tool, ((tool, ""),))]
        lines += [f"Inputs and outputs {io_dtype}:", ""]
        lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for row in chosen:
            cells = [row.model, f"{row.parameters:,}", row.method, f"{row.file_bytes:,}"]
            results = {result.tool: result for result in row.acceptance.results}
            for tool in tools:
                cells += _cells(tool, results[tool])
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, LEGEND, "", *_reasons(rows)])


def _cells(tool: str, result: ToolResult) -> list[str]:
    columns = COLUMNS.get(tool)
    if columns is None:
        return [result.status]
    cells = []
    for number, (_, name) in enumerate(columns):
        value = result.figures.get(name, "")
        text = f"{value:,}" if isinstance(value, int) else str(value)
        if name == "max LSB" and "max LSB of an op" in result.figures:
            text += f" (ops {result.figures['max LSB of an op']})"
        elif name == "max LSB" and "kernels" in result.figures:
            text += f" ({result.figures['kernels']}; {result.figures['LSB to reference']})"
        if number == 0 and result.status != "passed":
            text = f"{result.status.upper()} {text}".strip()
        cells.append(text)
    return cells


def _reasons(rows: Sequence[Row]) -> list[str]:
    return [
        f"- {row.model}, {row.method}, {result.tool}: {result.status}: {result.reason}"
        for row in rows
        for result in row.acceptance.results
        if result.status != "passed"
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the suite; the exit status is 0 if every tool passed every file that is meant for it."""
    parser = argparse.ArgumentParser(prog="tfcompress.bench.acceptance", description=__doc__)
    parser.add_argument("--only", metavar="MODEL,...", help="these architectures only")
    parser.add_argument("--tools", metavar="TOOL,...", help="these tools only")
    parser.add_argument("--folder", type=Path, help="keep the .tflite files in this folder")
    parser.add_argument("-o", "--output", type=Path, help="write the table: .md, or all: .json")
    given = parser.parse_args(arguments)
    try:
        only = _names(given.only)
        tools = _names(given.tools)
        _check("tool", tools, list_tools())
        if given.output is not None:
            _check_output(given.output)
        start = time.perf_counter()
        with temporary.folder() as scratch:
            rows = run(only, tools, given.folder or Path(scratch))
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    text = to_markdown(rows)
    print(text)
    print(f"{time.perf_counter() - start:.0f} seconds.", file=sys.stderr)
    if given.output is not None:
        plain = [_plain(row) for row in rows]
        content = text if given.output.suffix == ".md" else json.dumps(plain, indent=2)
        writing.atomic_write(given.output, content.encode())
    return 0 if rows and all(row.acceptance.passed for row in rows) else 1


def _plain(row: Row) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "acceptance": row.acceptance.to_dict()}


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _check(what: str, names: Iterable[str] | None, known: Sequence[str]) -> None:
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; {expected_one_of(name, known)}")


def _check_output(path: Path) -> None:
    if path.suffix not in (".md", ".json"):
        raise ValueError(f"received -o {path}; expected a name that ends in .md or .json.")
    writing.check_writable(path)


SAMPLES, BATCH = 640, 32
EPOCHS, QAT_EPOCHS = 6, 2
CALIBRATION_SAMPLES = 200
SEED = 0


@dataclasses.dataclass(frozen=True)
class MadeFile:
    """A file of the suite, and inputs that the model was not trained with; see `Row`."""

    model: str
    method: str
    io_dtype: str
    parameters: int
    path: Path
    data: np.ndarray


def make_files(only: Iterable[str] | None, folder: Path) -> Iterator[MadeFile]:
    """Train, quantize and convert."""
    names = list(ARCHITECTURES if only is None else only)
    _check("model", names, list(ARCHITECTURES))
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        yield from _files(name, ARCHITECTURES[name], folder)


def _files(name: str, task: Task, folder: Path) -> Iterator[MadeFile]:
    keras.utils.set_random_seed(SEED)
    model = task.build(keras, task.published[0])
    (x, y), test = _data(name, model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # The training is too short for 0.99.
    _fit(model, x, y, task.loss, 2e-3, EPOCHS)
    qat = quantize_aware(model, momentum=0.9)
    _fit(qat, x, y, task.loss, 5e-4, QAT_EPOCHS)
    for method, source, io_dtype in (
        ("QAT", qat, "int8"),
        ("PTQ", model, "int8"),
        ("QAT", qat, "float32"),
    ):
        path = folder / f"{name}_{method.lower()}_{io_dtype}.tflite"
        calibration = x[:CALIBRATION_SAMPLES] if method == "PTQ" else None
        convert(source, path, precision="int8", io_dtype=io_dtype, calibration=calibration)
        if io_dtype == "float32":
            writing.atomic_write(path, add_metadata(path.read_bytes(), _metadata(model)))
        yield MadeFile(name, method, io_dtype, model.count_params(), path, test)


def _metadata(model: keras.Model) -> Metadata:
    """What readers of metadata are tried on: texts, normalization, a range and labels."""
    # Names are those of the signature.
    low, high = (0.0,), (1.0,)
    taken = TensorMetadata("", "what it looks at", (0.0,), (255.0,), low, high)
    labels = tuple(f"{model.name} {number}" for number in range(model.output_shape[-1]))
    classes = TensorMetadata("", "how sure it is of each", labels=labels)
    if model.output_shape == model.input_shape:
        classes = TensorMetadata("", "what it has seen", minimum=low, maximum=high)
    text = "Trained for a moment, to be looked at by other tools"
    return Metadata(model.name, text, inputs=(taken,), outputs=(classes,))


def _data(name: str, model: keras.Model):
    """Data to train with, as (x, y), and inputs to test with."""
    if name == "digits":
        train, (images, _) = load_digits()
        return train, images
    return generated_data(model, SAMPLES), generated_data(model, 32, seed=1)[0]


def _fit(model: keras.Model, x, y, loss: str, rate: float, epochs: int) -> None:
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)


if __name__ == "__main__":
    sys.exit(main())
