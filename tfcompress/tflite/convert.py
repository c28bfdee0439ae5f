"""convert: a Keras model in, a small .tflite and a report about it out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

from tfcompress import files
from tfcompress.targets import Target
from tfcompress.tflite.job import Job
from tfcompress.tflite.report import Report
from tfcompress.tflite.settings import settle, settle_format

Progress = Callable[[str, int, int | None], Any]


def convert(
    model,
    path,
    *,
    precision: str | None = None,
    io_dtype: str | None = None,
    calibration: Any = None,
    batch_size: int | None = None,
    dense: str | None = None,
    target: str | os.PathLike[str] | Target | None = None,
    metadata: Any = None,
    format: str | None = None,
    strict: bool = False,
    select_tf_ops: bool = False,
    samples: int | None = 500,
    progress: Progress | None = None,
) -> Report:
    """Writes a Keras model as a .tflite file, or on from there as ONNX or OpenVINO IR.

    Args:
        model: a `keras.Model`, from `quantize_aware` or plain, or the path of a .keras, .h5 or
            SavedModel; also a model of tf_keras, plain or under TFMOT's wrappers.
        path: where the file goes; it is written whole or not at all.
        precision: "float32"; "float16" (weights); "dynamic_int8" (int8 weights, activations
            quantized at run time); "int8"; "int16x8" (int16 activations); "int4" (4-bit weights of
            Conv2D and Dense, with int8 activations if their ranges are known, float otherwise).
            None: what the target prefers, or "int8".
        io_dtype: type of inputs and outputs: "float32", "int8", "uint8", or "int16" with int16x8.
            None: what the target prefers, or "float32".
        calibration: samples of the inputs, for int8, int16x8 or int4 of a model not trained with
            `quantize_aware`: a NumPy array, dict, generator or `tf.data.Dataset` of float values
            as in training; a few hundred samples serve.
        batch_size: fixed batch size of the file. None: what the target asks for, or 1.
        dense: "per_channel" or "per_tensor" scales of the weights of Dense layers that were not
            trained for quantization. None: what the target takes, or "per_channel".
        target: a name from `list_targets()`, or the path of a target file of your own: fills in
            what is None above and checks the file at the end, see `check`. What contradicts it is
            an error. For targets whose compilers reject new op versions, these are lowered.
        metadata: a `Metadata`, a dict or a JSON file: names, descriptions, normalization and labels
            that go into a .tflite file.
        format: "tflite", "onnx" or "openvino" (an .xml file and a .bin file beside it), made from
            the .tflite file by tf2onnx and OpenVINO in environments of their own. None: by the
            path's ending.
        strict: raise if an operation stays float although integers were asked for.
        select_tf_ops: allow operations of TensorFlow that LiteRT lacks (needs the Flex delegate).
        samples: how many calibration samples to use, the first ones; None uses all.
        progress: called as `progress(stage, done, total)`.

    Returns:
        A `Report`: sizes, operations, what stayed float and why, the target's check, seconds.

    Raises:
        ValueError: if an argument, the model, the calibration data or the metadata will not do.

    Example:
        >>> report = convert(qat, "model.tflite", precision="int8", io_dtype="int8")
        >>> report = convert(qat, "model.tflite", target="edge_tpu")
    """
    settings = settle(precision, io_dtype, batch_size, dense, target)
    format = settle_format(settings, format, path, metadata)
    described = _metadata(metadata)
    files.check_writable(path)
    job = Job(settings, strict, select_tf_ops, progress)
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        model = job.timed("load", files.load_model, model)
    data = job.finish(job.run(model, calibration, samples), described)
    report = job.report(path, data)
    if format == "tflite":
        files.atomic_write(path, data)
        return report
    from tfcompress.tflite import exchange

    write = {"onnx": exchange.to_onnx, "openvino": exchange.to_openvino}[format]
    # An iterator is used up by now.
    kept = None if isinstance(calibration, Iterator) else calibration
    exchanged = job.timed(format, write, data, path, samples=kept)
    return dataclasses.replace(
        report, format=format, exchanged=exchanged, seconds=job.rounded_seconds()
    )


def _metadata(given: Any) -> Any:
    if given is None:
        return None
    from tfcompress.tflite.metadata import load_metadata

    return load_metadata(given)
