"""The commands that make .tflite files and look into them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from tfcompress.cli.command import command, does_not_run, failed
from tfcompress.cli.options import (
    CODES,
    FORMATS,
    OBSERVERS,
    PRECISIONS,
    RAM,
    WEIGHT_OBSERVERS,
    ForTarget,
    IoDtype,
    Json,
    KerasFile,
    Model,
    Samples,
    TFLiteFile,
    choice,
    parsed,
    precision_asked,
    size,
)
from tfcompress.cli.terminal import Progress, emit
from tfcompress.tools.environments import cache_folder


def _ranges(texts: list[str]) -> dict[str, tuple[float, float]]:
    """Ranges by name of 'NAME=LEAST,GREATEST'."""
    found = {}
    for text in texts:
        name, _, limits = text.rpartition("=")
        try:
            low, high = (float(part) for part in limits.split(","))
        except ValueError:
            raise ValueError(
                f"--range must be NAME=LEAST,GREATEST, such as image=0,255; received '{text}'."
            ) from None
        found[name] = (low, high)
    return found


def _converted(given: Mapping[str, Any]) -> list[Path]:
    """What `convert` writes: some files ask tools, whose environments it may make."""
    plain = (given["format"] or given["output"].suffix) in ("tflite", ".tflite")
    codes = any(given[name] for name in ("compressed_weights", "flash", "ram"))
    return [given["output"], *([] if plain and not codes else [cache_folder() / "*"])]


def _step(model: Any, chunk: int, windows: Any, states: str, data: Any) -> tuple[Any, Any]:
    """The step model of a model over a window, and its calls over windows of data."""
    from tfcompress.surgery.streams.stream import Stream
    from tfcompress.surgery.streams.streaming import streaming

    made = streaming(model, chunk, windows=windows, states=states)
    return made, None if data is None else Stream(made).samples(data)


@command(fails=does_not_run, writes=_converted)
def convert(
    model: Model,
    output: Annotated[
        Path,
        Option(
            "--output",
            "-o",
            help="The file to write: .tflite, or .onnx or .xml (OpenVINO).",
            readable=False,
        ),
    ],
    target: ForTarget = None,
    precision: Annotated[
        str | None,
        choice(
            PRECISIONS,
            "What the file computes in; int4 means the weights. By default what the target "
            "prefers, or int8. Or the .yaml file of a recipe with a section precision, for "
            "--calibration to quantize layers by.",
            or_ending=(".yaml", ".yml"),
        ),
    ] = None,
    io_dtype: IoDtype = None,
    calibration: Annotated[
        Path | None,
        Option(
            help="Typical inputs, for int8 and the like of a model trained without quantization: "
            "a .npy or .npz file, or a folder of images."
        ),
    ] = None,
    *,
    reading: Samples,
    batch_size: Annotated[
        int | None,
        Option(min=1, help="Fixed batch size of the file; by default the target's, or 1."),
    ] = None,
    dense: Annotated[
        str | None,
        choice(
            ("per_channel", "per_tensor"),
            "Scales of Dense weights that were not trained for quantization; by default the "
            "target's, or per_channel.",
        ),
    ] = None,
    convolution: Annotated[
        str | None,
        choice(("per_channel", "per_tensor"), "The same of convolutions; by default per_channel."),
    ] = None,
    range_: Annotated[
        list[str] | None,
        Option(
            "--range",
            metavar="NAME=LEAST,GREATEST",
            help="What an input, an output or a layer's output is between, instead of what "
            "--calibration finds; may be given several times.",
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="A layer, or a pattern, that stays float where --calibration quantizes; may be "
            "given several times.",
        ),
    ] = None,
    observer: Annotated[
        str | None,
        choice(
            OBSERVERS,
            "Which range activations get from --calibration; by default min_max, which keeps all "
            "values.",
        ),
    ] = None,
    weight_observer: Annotated[
        str | None,
        choice(
            WEIGHT_OBSERVERS,
            "Which scale weights get that were not trained for quantization; by default max, which "
            "keeps all values.",
        ),
    ] = None,
    tune: Annotated[
        str | None,
        Option(
            metavar="fast|best|none|STEPS",
            help="What is done to a float model before its weights are rounded: fast (the default) "
            "to kernels of fewer than 8 bits, in seconds; best to all, for up to a minute; none; "
            "or some of batch_norm, equalize, gptq, adaround, bias with commas between.",
        ),
    ] = None,
    compressed_weights: Annotated[
        bool | None,
        Option(
            "--compressed-weights",
            help=f"{CODES}; by default where --flash or --ram is given.",
        ),
    ] = None,
    flash: Annotated[
        str | None,
        size("The most of the file, such as 48k: of the weights only what it takes is in codes."),
    ] = None,
    ram: Annotated[
        str | None,
        size(RAM),
    ] = None,
    metadata: Annotated[
        Path | None,
        Option(help="A JSON file of names, descriptions, normalization and labels for the file."),
    ] = None,
    format: Annotated[
        str | None,
        choice(
            FORMATS,
            "tflite, or made from it: onnx, or openvino (.xml and .bin); by default what the "
            "output's name says.",
        ),
    ] = None,
    signature: Annotated[
        str | None,
        Option(help="Which signature of a SavedModel; by default serve, or the only one."),
    ] = None,
    chunk: Annotated[
        int | None,
        Option(
            min=1,
            help="Make the model one over the next so many frames of a stream: what it keeps of "
            "those before goes in and out as states. --calibration is windows of frames.",
        ),
    ] = None,
    window: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="With --chunk: a layer, or a pattern, that reads a whole window, which is kept; "
            "may be given several times.",
        ),
    ] = None,
    states: Annotated[
        str | None,
        choice(
            ("io", "variables"),
            "With --chunk: whether states are inputs and outputs, which the application feeds "
            "back, or variables that the file keeps; by default io.",
        ),
    ] = None,
    strict: Annotated[bool, Option("--strict", help="Fail if any operation stays float.")] = False,
    select_tf_ops: Annotated[
        bool, Option("--select-tf-ops", help="Allow TensorFlow operations (Flex delegate).")
    ] = False,
    progress: Progress,
) -> Any:
    """Convert a Keras model to a .tflite file.

    \b
    Examples:
      tfcompress convert qat.keras -o model.tflite --target edge_tpu
      tfcompress convert qat.keras -o model.tflite --io-dtype int8 --metadata metadata.json
      tfcompress convert model.keras -o model.tflite --calibration x_train.npy --samples 300
      tfcompress convert model.h5 -o model.tflite --calibration photos/ --image-size 224x224 \\
          --scaling=-1_1
      tfcompress convert saved_model/ -o model.tflite --precision float16 --json
      tfcompress convert model.keras -o model.tflite --calibration x.npy --precision mixed.yaml
      tfcompress convert qat.keras -o model.tflite --target microcontroller --flash 48k --ram 64k
      tfcompress convert qat.keras -o model.onnx
      tfcompress convert qat.keras -o step.tflite --io-dtype int8 --chunk 2 --window pool

    Without training for quantization, int8, int16x8 and int4 need --calibration. The file is
    written whole or not at all.

    Exit status: 0 if the file was written, 1 if it was but does not run on the target, or not
    from some operator on.
    """
    from tfcompress.conversion.settings import settle, settle_format
    from tfcompress.files import writing
    from tfcompress.tflite.metadata import load_metadata

    # Before the seconds of the rest.
    how: dict[str, Any] = {
        "precision": precision_asked(precision),
        "io_dtype": io_dtype,
        "batch_size": batch_size,
        "dense": dense,
        "convolution": convolution,
        "ranges": _ranges(range_ or []),
        "skip": tuple(skip or ()),
        "observer": observer,
        "weight_observer": weight_observer,
        "tune": tune.split(",") if tune and "," in tune else tune,
        "compressed_weights": compressed_weights,
        "flash": parsed(flash),
        "ram": parsed(ram),
        "target": target,
    }
    settings = settle(**how)
    format = settle_format(settings, format, output, metadata)
    described = None if metadata is None else load_metadata(metadata)
    writing.check_writable(output)
    if writing.is_same(output, model):
        raise ValueError(f"--output is the model itself, '{model}'. Name another file.")
    if (window or states) and chunk is None:
        wrong = "--window" if window else "--states"
        raise ValueError(f"{wrong} is for --chunk, which is missing. Pass --chunk 1, say.")
    loaded, data = reading.load(model, calibration, progress)
    if chunk is not None:
        loaded, data = _step(loaded, chunk, window or (), states or "io", data)
    from tfcompress.conversion.convert import convert as run

    return run(
        loaded,
        output,
        calibration=data,
        **how,
        metadata=described,
        format=format,
        strict=strict,
        select_tf_ops=select_tf_ops,
        samples=reading.samples,
        signature=signature,
        progress=progress,
    )


def inspect(
    file: TFLiteFile,
    json: Json = False,
    details: Annotated[
        bool, Option("--details", help="List every operator and tensor, too.")
    ] = False,
) -> None:
    """Show what is in a .tflite file: sizes, types, operators, scales.

    \b
    Examples:
      tfcompress inspect model.tflite
      tfcompress inspect model.tflite --details
      tfcompress inspect model.tflite --json > model.json
    """
    from tfcompress.tflite.inspect import inspect as run

    emit(run(file), json, details=details)


@command(fails=failed, writes=lambda given: [])
def verify(
    model: Model,
    file: Annotated[Path, Argument(help="The .tflite file made of it.")],
    data: Annotated[Path, Option(help="Inputs: a .npy or .npz file, or a folder of images.")],
    layers: Annotated[
        bool, Option("--layers", help="Compare layer by layer, to find a bad one.")
    ] = False,
    tolerance: Annotated[
        float | None,
        Option(
            min=0.0,
            metavar="LSB",
            help="Largest difference in units of an output's last bit, for all outputs. By default "
            "each is judged by what it is: 1, or its SQNR and the decisions of scores.",
        ),
    ] = None,
    *,
    reading: Samples,
    progress: Progress,
) -> Any:
    """Compare a .tflite file with the Keras model on the same data.

    \b
    Examples:
      tfcompress verify model.keras model.tflite --data x_test.npy
      tfcompress verify model.keras model.tflite --data photos/ --scaling 0_1 --samples 200
      tfcompress verify model.keras model.tflite --data x_test.npz --layers --tolerance 2

    Exit status: 0 if the file passes, 1 if it does not.
    """
    from tfcompress.tflite import flatbuffer
    from tfcompress.tflite.plain_weights import has_codes
    from tfcompress.tflite.run import ONLY_MICRO, cannot_run

    # Before the seconds that TensorFlow takes.
    if has_codes(flatbuffer.read(file)):
        raise cannot_run(f"'{file}'", RuntimeError(ONLY_MICRO))
    loaded, arrays = reading.load(model, data, progress, file=file)
    from tfcompress.verification.verify import verify as run

    return run(
        loaded,
        file,
        arrays,
        layers=layers,
        tolerance=tolerance,
        samples=reading.samples,
        progress=progress,
    )


@command(writes=lambda given: [])
def benchmark(
    files: Annotated[
        list[Path], Argument(help="The .tflite files; the others are compared with the first.")
    ],
    runs: Annotated[int, Option(min=1, help="Timed runs per file and round.")] = 50,
    rounds: Annotated[int, Option(min=1, help="The files take turns in so many.")] = 5,
    threads: Annotated[int, Option(min=1, help="CPU threads.")] = 1,
    data: Annotated[
        Path | None,
        Option(help="Inputs: a .npy or .npz file, or a folder of images; random if left out."),
    ] = None,
    *,
    progress: Progress,
) -> Any:
    """Measure latency, size and memory of .tflite files, side by side.

    \b
    Examples:
      tfcompress benchmark model.tflite
      tfcompress benchmark float.tflite int8.tflite --threads 4
      tfcompress benchmark float.tflite int8.tflite --runs 20 --rounds 9 --json
    """
    from tfcompress.files.arrays import load_inputs
    from tfcompress.tflite.benchmark import benchmark as run
    from tfcompress.tflite.inspect import inspect as look_into

    arrays: Any = None
    if data is not None:
        shapes = [tensor.shape for tensor in look_into(files[0]).inputs]
        arrays = load_inputs(data, shapes, limit=1)
    return run(
        files,
        runs=runs,
        rounds=rounds,
        threads=threads,
        data=arrays,
        progress=lambda done, total: progress("benchmark", done, total),
    )


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]] | tuple[int, ...] | None:
    """{name of an input: its shape} out of "image=224x224x3"; of one without a name its shape."""
    found = {}
    for text in texts:
        name, _, shape = text.rpartition("=")
        if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) is None or (not name and len(texts) > 1):
            raise ValueError(
                f"--shape must be [NAME=]SIZExSIZE without the batch, with a name if there are "
                f"several; received {text!r}. Try image=224x224x3."
            )
        found[name] = tuple(map(int, shape.split("x")))
    return found.pop("", None) or found or None


def _check_shapes(texts: list[str] | None) -> list[str] | None:
    parse_shapes(texts or [])
    return texts


@command(writes=lambda given: [])
def profile(
    model: KerasFile,
    shape: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]HxWxC",
            callback=_check_shapes,
            help="Shape of an input of which axes are not known, without the batch.",
        ),
    ] = None,
    bytes_per_value: Annotated[
        int | None,
        Option(
            metavar="1|2|4|8",
            help="Bytes of an activation, such as 1 for int8; by default what the model computes "
            "in takes.",
        ),
    ] = None,
    *,
    progress: Progress,
) -> Any:
    """Show what a Keras model costs: parameters, MACs and activation memory of every layer.

    \b
    Examples:
      tfcompress profile model.keras
      tfcompress profile model.keras --bytes-per-value 1
      tfcompress profile detector.keras --shape image=320x320x3 --json
    """
    if bytes_per_value not in (None, 1, 2, 4, 8):
        raise ValueError(
            f"--bytes-per-value must be 1, 2, 4 or 8; received {bytes_per_value}. Take 1 for int8."
        )
    progress("load the model", 0, None)
    from tfcompress.files import models
    from tfcompress.surgery.profile import profile as run

    loaded = models.load_model(model)
    if isinstance(loaded, models.SavedModel):
        raise ValueError(
            f"'{model}' is a SavedModel, which holds no Keras layers to count. Name the .keras "
            "or .h5 file that it was exported from."
        )
    progress("profile", 0, None)
    return run(loaded, shapes=parse_shapes(shape or []), bytes_per_value=bytes_per_value)
