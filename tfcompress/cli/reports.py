"""The command `tfcompress report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from tfcompress.cli.command import command
from tfcompress.cli.options import Samples
from tfcompress.cli.terminal import Progress
from tfcompress.results import Result

if TYPE_CHECKING:
    from rich.console import Console

_RESULTS = ".jsonl"
_MODELS = (".keras", ".h5", ".hdf5")
_FORMS = (
    "expected the results of `tfcompress bench` (RESULTS.jsonl), or a model and the file made of "
    "it (MODEL.keras MODEL.tflite --data DATA)"
)


@dataclasses.dataclass(frozen=True)
class Written(Result):
    """A report that was written: where, and its bytes."""

    path: str
    bytes: int

    def _print(self, console: Console) -> None:
        line = f"{self.path}: {self.bytes / 1e6:.1f} MB, one file that needs no network"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@command(writes=lambda given: [given["output"]])
def report(
    files: Annotated[
        list[Path],
        Argument(
            help="Results of `tfcompress bench` (.jsonl), or a Keras model and the .tflite file "
            "made of it."
        ),
    ],
    output: Annotated[
        Path, Option("--output", "-o", help="The .html file to write.", readable=False)
    ],
    data: Annotated[
        Path | None,
        Option(help="For a model: inputs, a .npy or .npz file, or a folder of images."),
    ] = None,
    target: Annotated[
        str | None,
        Option(
            help="For a model: a device, or a target file of your own, that the file is checked "
            "for."
        ),
    ] = None,
    *,
    reading: Samples,
    progress: Progress,
) -> Any:
    """Write an HTML report: on results of the benchmark, or on one model.

    \b
    Examples:
      tfcompress report tfcompress-bench.jsonl -o bench.html
      tfcompress report model.keras model.tflite --data x_test.npy -o model.html
      tfcompress report model.keras model.tflite --data photos/ --scaling 0_1 \\
          --target edge_tpu -o model.html

    The report is one file that needs no network: plots of quality against size and latency,
    tables, and every layer with its weights. That of a model tells how far its outputs are from
    the file's, latency beside float32, and what a target says; exit status 0 then only means that
    it was written.
    """
    from tfcompress.files.writing import check_writable, is_same
    from tfcompress.report.page import require_extra

    is_model = _is_model(files)
    given: dict[str, Any] = {"--data": data, "--target": target}
    given |= {"--image-size": reading.image_size, "--samples": reading.samples}
    if not is_model and (unfit := [name for name, value in given.items() if value is not None]):
        raise ValueError(
            f"{', '.join(unfit)} go with a model; received results, '{files[0]}'. Leave them out."
        )
    require_extra()
    check_writable(output)
    read = [*files, *(Path(path) for path in (data, target) if path is not None)]
    if any(is_same(output, path) for path in read):
        raise ValueError(f"--output is one of the files to read, '{output}'. Name another file.")
    if not is_model:
        written = _on_results(files[0], output)
    elif data is None:
        raise ValueError(
            "the report on a model needs --data, samples of its inputs; received none. "
            "Add --data x_test.npy."
        )
    else:
        written = _on_model(files, output, data, target, reading, progress)
    return Written(str(output), written)


def _is_model(files: list[Path]) -> bool:
    """Whether the files are a model and its .tflite file; else they are results."""
    endings = [file.suffix.lower() for file in files]
    if endings == [_RESULTS]:
        return False
    if len(files) == 2 and endings[1] == ".tflite":
        if endings[0] in _MODELS or files[0].is_dir():
            return True
        raise ValueError(f"'{files[0]}' is no Keras model; {_FORMS}.")
    if len(files) == 2 and endings[0] == ".tflite":
        raise ValueError(f"received the .tflite file first; {_FORMS}. Swap the two.")
    named = " ".join(f"'{file}'" for file in files)
    if len(files) == 1 and endings[0] in (".tflite", *_MODELS):
        raise ValueError(f"received {named} alone; {_FORMS}. Name both files.")
    if len(files) > 1 and set(endings) == {_RESULTS}:
        raise ValueError(
            f"received {len(files)} files of results; {_FORMS}. Write a report on each, or put the "
            "lines of all into one file."
        )
    raise ValueError(f"received {named}; {_FORMS}.")


def _on_results(path: Path, output: Path) -> int:
    from tfcompress.bench.report import write_results_report
    from tfcompress.bench.running.results import read_rows

    rows = read_rows(path)
    if not rows:
        raise ValueError(f"'{path}' is empty; {_FORMS}. Run `tfcompress bench` first.")
    return write_results_report(rows, output)


def _on_model(
    files: list[Path],
    output: Path,
    data: Path,
    target: str | None,
    reading: Samples,
    progress: Progress,
) -> int:
    # First what is quick to be found wrong, before the seconds that TensorFlow takes.
    from tfcompress.targets.targets import load_target
    from tfcompress.tflite import flatbuffer

    rules = None if target is None else load_target(target)
    graph = flatbuffer.read(files[1]).subgraphs[0]
    shapes = [tuple(graph.tensors[i].shape) for i in graph.inputs]
    loaded, arrays = reading.load(files[0], data, progress, shapes, files[1])
    from tfcompress.report.model import write_model_report

    return write_model_report(
        loaded, files[1], output, arrays, rules, samples=reading.samples, progress=progress
    )
