"""convert: a Keras model in, a small .tflite and a report about it out."""

from collections.abc import Callable
from typing import Any

from tfcompress import files
from tfcompress.tflite.job import Job
from tfcompress.tflite.report import Report

IO_DTYPES = {
    "float32": ("float32",),
    "float16": ("float32",),
    "dynamic_int8": ("float32",),
    "int8": ("float32", "int8", "uint8"),
    "int16x8": ("float32", "int16"),
    "int4": ("float32", "int8", "uint8"),
}
PRECISIONS = tuple(IO_DTYPES)

Progress = Callable[[str, int, int | None], Any]


def convert(
    model,
    path,
    *,
    precision: str = "int8",
    io_dtype: str = "float32",
    calibration: Any = None,
    batch_size: int = 1,
    strict: bool = False,
    select_tf_ops: bool = False,
    samples: int | None = 500,
    progress: Progress | None = None,
) -> Report:
    """Writes a Keras model as a .tflite file.

    Args:
        model: a `keras.Model`, from `quantize_aware` or plain, or the path of a .keras, .h5 or
            SavedModel; also a model of tf_keras, plain or under TFMOT's wrappers.
        path: where the file goes; it is written whole or not at all.
        precision: "float32"; "float16" (weights); "dynamic_int8" (int8 weights, activations
            quantized at run time); "int8"; "int16x8" (int16 activations); "int4" (4-bit weights of
            Conv2D and Dense, with int8 activations if their ranges are known, float otherwise).
        io_dtype: type of inputs and outputs: "float32", "int8", "uint8", or "int16" with int16x8.
        calibration: samples of the inputs, for int8, int16x8 or int4 of a model not trained with
            `quantize_aware`: a NumPy array, dict, generator or `tf.data.Dataset` of float values
            as in training; a few hundred samples serve.
        batch_size: fixed batch size of the file.
        strict: raise if an operation stays float although integers were asked for.
        select_tf_ops: allow operations of TensorFlow that LiteRT lacks (needs the Flex delegate).
        samples: how many calibration samples to use, the first ones; None uses all.
        progress: called as `progress(stage, done, total)`.

    Returns:
        A `Report`: sizes, operations, what stayed float and why, seconds.

    Raises:
        ValueError: if an argument, the model or the calibration data will not do.

    Example:
        >>> report = convert(qat, "model.tflite", precision="int8", io_dtype="int8")
    """
    check_arguments(precision, io_dtype, batch_size)
    files.check_writable(path)
    job = Job(precision, io_dtype, batch_size, strict, select_tf_ops, progress)
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        model = job.timed("load", files.load_model, model)
    data = job.run(model, calibration, samples)
    report = job.report(path, data)
    files.atomic_write(path, data)
    return report


def check_arguments(precision: str, io_dtype: str, batch_size: int = 1) -> None:
    """Raises unless `convert` takes a precision with a type of inputs and outputs and a batch."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)}; received {precision!r}."
        )
    if io_dtype not in IO_DTYPES[precision]:
        raise ValueError(
            f"io_dtype must be one of {', '.join(IO_DTYPES[precision])} with precision "
            f"'{precision}'; received {io_dtype!r}."
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of 1 or more; received {batch_size!r}.")
