"""What becomes of models that people have, beside TFLiteConverter and litert-quantizer.

`make zoo` installs the packages that they come from, measures them all and writes docs/zoo.md.
"""

import json
import multiprocessing
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from measurements import parser_of, tell
from tfcompress.files import writing
from tfcompress.report.page import MISSING

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
# Whole int8 is asked of those without recurrent loops.
_INTRO = """# The zoo: models that people have

Small configurations of models from KerasHub and other packages, and examples rebuilt, with random
weights and random samples: they prove what works and how equal numbers are, not accuracy.
`make zoo` measures them and writes this page.

- flat: greatest difference of the flat copy's outputs, relative to the largest output.
- QAT: seconds to make the quantization-aware copy (to build the model).
- float: operators that stay float in the int8 file of that copy; loops are recurrent layers of
  classes of their own, or that keep states, whose inside stays float.
- steps: the file's greatest distance from the copy at an output, in quantization steps (what
  LiteRT's own reference kernels and XNNPACK differ by).
- dB: signal to noise of the file against the copy.
- PTQ: dB of the int8 file quantized after training against the float model (float operators),
  beside TFLiteConverter and litert-quantizer with the same samples.
- pruned: share of the parameters left by `prune_channels(macs=0.5)`.

"""


def zoo(arguments: list[str] | None = None) -> int:
    """What becomes of models that people have: flat copy, QAT, int8 files, peers, pruning."""
    parser = parser_of(zoo, {"seconds": (600, "the longest that one model may take")})
    parser.add_argument("--models", nargs="+", metavar="NAME", help="all by default")
    parser.add_argument("--stages", nargs="+", default=[], metavar="STAGE")
    parser.add_argument("--write", action="store_true", help="write docs/zoo.md anew")
    options = parser.parse_args(arguments)
    from zoo.measuring import NAMES, STAGES

    unknown = {*(options.models or ()), *options.stages} - {*NAMES, *STAGES}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; models: {', '.join(NAMES)}")
    rows = []
    for name in options.models or NAMES:
        rows.append(measured(name, options.stages, options.seconds))
        tell(json.dumps(rows[-1]) if options.json else line(rows[-1]))
    page = _INTRO + table(rows) + "\n" + summary(rows) + "\n"
    if left := [name for name in NAMES if name not in (options.models or NAMES)]:
        page += f"\nNot measured for this page: {', '.join(left)}.\n"
    if options.write:
        writing.atomic_write(PAGE, page.encode())
    print(json.dumps(rows) if options.json else page)
    return 0


def measured(name: str, stages: Iterable[str], seconds: float) -> dict[str, Any]:
    """What `zoo.measuring.measure` finds in a process of its own, which may die or take long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo.measuring"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, name, list(stages)))
    process.start()
    theirs.close()
    found: dict[str, Any] = {"name": name}
    end = time.monotonic() + seconds
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            found = ours.recv()
        found["error"] = f"took more than {seconds} s"
    except EOFError:
        process.join(10)
        if process.exitcode:
            found["error"] = f"the process ended with {process.exitcode}"
    finally:
        process.kill()
    return found


def _measure(connection, name: str, stages: list[str]) -> None:
    from zoo.measuring import measure

    try:
        measure(name, stages, connection.send)
    except Exception as error:  # The model itself could not be built.
        connection.send({"name": name, "error": f"{type(error).__name__}: {error}"[:300]})


def _cell(row: Mapping[str, Any], stage: str, form) -> str:
    found = row.get(stage)
    if found is None:
        return MISSING
    return "failed" if "error" in found else form(found)


def _floats(found: Mapping[str, Any]) -> str:
    parts = [f"{count} {name}" for name, count in found["floats"].items()]
    if found.get("loops"):
        parts.insert(0, f"{found['loops']} loops")
    return ", ".join(parts) or "0"


def _quality(found: Mapping[str, Any]) -> str:
    return f"{min(found['sqnr_db'], 200):.1f} ({sum(found['floats'].values())})"


# heading -> the text of a row
_COLUMNS = {
    "model": lambda row: row["name"],
    "what": lambda row: row.get("what") or row["error"],
    "flat": lambda row: _cell(row, "flatten", lambda f: f"{f['difference']:.0e}"),
    "QAT s": lambda row: _cell(row, "qat", lambda f: f"{f['copy_s']:.1f} ({row['build_s']:.1f})"),
    "float": lambda row: _cell(row, "file", _floats),
    "steps": lambda row: _cell(row, "file", lambda f: f"{f['steps']:.0f} ({f['kernels']:.0f})"),
    "dB": lambda row: _cell(row, "file", lambda f: f"{min(f['sqnr_db'], 200):.1f}"),
    "PTQ dB": lambda row: _cell(row, "ptq", _quality),
    "TFLiteConverter": lambda row: _cell(row, "converter", _quality),
    "litert-quantizer": lambda row: _cell(row, "quantizer", _quality),
    "pruned": lambda row: _cell(row, "prune", lambda f: f"{f['parameters']:.0%}"),
}


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [list(_COLUMNS), ["---"] * len(_COLUMNS)]
    lines += [[text(row).replace("|", "/") for text in _COLUMNS.values()] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def line(row: Mapping[str, Any]) -> str:
    """A row in one line, with the errors that stages ended with."""
    cells = ", ".join(f"{name} {text(row)}" for name, text in _COLUMNS.items() if name != "what")
    errors = [
        f"\n  {k}: {v['error']}" for k, v in row.items() if isinstance(v, dict) and "error" in v
    ]
    return f"{cells} {row.get('error', '')}" + "".join(errors)


def summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """How many of the models do what is promised."""
    rows = list(rows)

    def of(stage: str) -> list[Mapping[str, Any]]:
        return [row[stage] for row in rows if "error" not in row.get(stage, {"error": ""})]

    def count(stage: str, holds) -> str:
        return f"{sum(bool(holds(found)) for found in of(stage))} of {len(rows)}"

    files = [found for found in of("file") if not found["loops"]]
    whole = sum(not found["floats"] for found in files)
    behind = [row["name"] for row in rows if _behind(row) > 1]
    return "\n".join(
        [
            f"- equal flat copy (1e-5): {count('flatten', lambda f: f['difference'] <= 1e-5)}",
            f"- quantization-aware copy trains: {count('qat', lambda f: f['finite'])}",
            f"- int8 file: {count('file', lambda f: True)}; without loops {whole} of {len(files)} "
            "have no float operator",
            f"- within 1 step: {count('file', lambda f: f['steps'] < 1.5)}; within 2: "
            f"{count('file', lambda f: f['steps'] < 2.5)}; at least 35 dB: "
            f"{count('file', lambda f: f['sqnr_db'] >= 35)}",
            f"- quantized after training: {count('ptq', lambda f: True)}; more than 1 dB behind "
            f"the better peer: {', '.join(behind) or 'none'}",
            f"- channels pruned: {count('prune', lambda f: f['same'])}",
        ]
    )


def _behind(row: Mapping[str, Any]) -> float:
    """By how many dB the better peer is ahead; none of a file that could not be made."""
    ours = row.get("ptq", {}).get("sqnr_db", 200.0)
    peers = [row.get(name, {}).get("sqnr_db", -200.0) for name in ("converter", "quantizer")]
    return min(max(peers), 200.0) - ours
