"""`make accept`: published architectures, quantized here, through every tool; one table.

python -m tfcompress.acceptance.suite [--only MODELS] [--tools TOOLS] [-o results.md]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tfcompress import files
from tfcompress.acceptance.accept import Acceptance, ToolResult, accept, list_tools
from tfcompress.suggestions import expected_one_of

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
        model: its architecture.
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
    """Make the files and ask the tools.

    Args:
        only: names of architectures, all if None.
        tools: names of tools, all if None.
        folder: where the files go.

    Returns:
        One `Row` for each file.
    """
    from tfcompress.acceptance.suite_files import make_files

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
    """The table, and below it why something did not pass.

    Args:
        rows: of files with the same tools, or not.

    Returns:
        Markdown.
    """
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
    parser = argparse.ArgumentParser(prog="tfcompress.acceptance.suite", description=__doc__)
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
        with tempfile.TemporaryDirectory() as scratch:
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
        files.atomic_write(given.output, content.encode())
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
    files.check_writable(path)


if __name__ == "__main__":
    sys.exit(main())
