"""convert: a Keras model as a .tflite file, or on from there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfcompress.conversion import exchange, pointwise, states
from tfcompress.conversion.job import Job
from tfcompress.conversion.report import Report
from tfcompress.conversion.settings import (
    settle,
    settle_format,
    settle_trained,
)
from tfcompress.files import models, writing
from tfcompress.graph.pixels import normalization_in_front
from tfcompress.targets.targets import Target
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.metadata import Metadata, TensorMetadata, load_metadata
from tfcompress.tflite.pixels import normalization_of
from tfcompress.tools import runtimes

Progress = Callable[[str, int, int | None], Any]


def convert(
    model,
    path,
    *,
    precision: str | Mapping[Any, str] | None = None,
    io_dtype: str | Sequence[str] | None = None,
    calibration: Any = None,
    batch_size: int | None = None,
    dense: str | None = None,
    convolution: str | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    skip: str | Sequence[str] = (),
    observer: str | None = None,
    weight_observer: str | None = None,
    tune: str | Sequence[str] | None = None,
    compressed_weights: bool | None = None,
    flash: int | None = None,
    ram: int | None = None,
    target: str | os.PathLike[str] | Target | None = None,
    metadata: Any = None,
    format: str | None = None,
    strict: bool = False,
    select_tf_ops: bool = False,
    samples: int | None = 500,
    trusted: bool = False,
    signature: str | None = None,
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
            None: what the model was trained for, if the target takes that, or what the target
            prefers, or "int8". Weights of a model from `Quantize(bits=2..8)` are stored layer by
            layer in the fewest bits that hold them and LiteRT has a kernel for ("int4" in all: 2
            for Dense, 4 for it, Conv2D and depthwise ones, else 8). Or {pattern: precision}: a
            pattern is the name or class of layers as in `Rule` ("*", "block_1*", "Dense"), a type
            such as `keras.layers.Dense`, or a predicate `f(layer) -> bool`. For a model that
            calibration data quantize a precision is "int8", "int4" (Dense, convolutions and
            depthwise ones), "int2" or "int4_blockwise" (Dense; the latter with float activations
            and a scale for each 32 weights of a row), "int16x8", "float16" or "float32"; for one
            that was trained in few bits "int8", "int4" or "int2", never fewer than it was trained
            in. The last pattern that matches a layer decides; those without are int8, or as they
            were trained, as are layers that a wide pattern gives a precision that LiteRT has no
            kernel of for them. Between layers that differ values are quantized anew. What makes
            features of sound before the first weights (a spectrum, its bands and logarithm) stays
            float32 in integer files unless a pattern other than "*" matches it; see `split`.
        io_dtype: type of inputs and outputs: "float32", "int8", "uint8", or "int16" with int16x8;
            or that of the inputs and that of the outputs, as ("uint8", "float32").
            None: what the target prefers, or "float32".
        calibration: samples of the inputs, for int8, int16x8 or int4 of a model not trained with
            `quantize_aware`: a NumPy array, dict, generator or `tf.data.Dataset` of float values
            as in training; a few hundred samples serve. Sizes that inputs leave open, in any
            precision, are those of the first sample.
        batch_size: fixed batch size of the file. None: what the target asks for, or 1.
        dense: "per_channel" or "per_tensor" scales of the weights of Dense layers that were not
            trained for quantization. None: what the target takes, or "per_channel".
        convolution: the same for the weights of convolutions. None: "per_channel".
        ranges: (least, greatest) value by the name of an input, an output or a layer, for its
            output, in place of what calibration finds.
        skip: names (or shell patterns) of layers that stay float, with calibration. Those of a
            model from `quantize_aware` are named there.
        observer: which range activations get from calibration samples, in 8 bits: "min_max" keeps
            all values; "moving_average" (0.95, of batches), "percentile" (99.99), "mse", "kl" or
            "octav" clip some of them for smaller steps. Inputs, outputs and scores keep all.
            None: "min_max".
        weight_observer: which scale weights get that were not trained for quantization: "max" keeps
            all values; "mse" has the least squared error, "octav" expects it (for int4, above
            all). None: "max". Where it is another and `tune` is left out, nothing is tuned, as
            that chooses scales of its own.
        tune: what is done to a plain Keras model before its weights are rounded, with calibration
            data: "fast" gives kernels of fewer than 8 bits the codes and scales with which layers
            give what they gave (`post_training.gptq`), in seconds; "best" tries all of the
            following on all kernels, for up to a minute; "none" rounds to nearest. Or a list of
            "batch_norm", "equalize" (for "per_tensor"), "gptq", "adaround" and "bias", the
            functions of `tfcompress.post_training`. What does not help on samples that are kept
            aside is left out; the report tells what each was worth. None: "fast".
        compressed_weights: for target "microcontroller": weights stay in codes in flash (tables of
            up to 7 bits, masks of zeros, Huffman's), which TFLite Micro decodes before the layer
            that reads them, and what it does not read is left out. Each weight takes its smallest
            code, if that is smaller: with few values or many zeros, from `Cluster`, `Codebook`,
            `Prune` or few bits. TFLite Micro runs the file against the plain one, in an environment
            of its own: equal bit for bit, or an error. LiteRT cannot run it. None: where flash or
            ram is given.
        flash: the most bytes of the file; only as many weights are in codes as it takes.
            None: the smallest file.
        ram: the most bytes of the arena, as TFLite Micro measures it: a decoded weight lives there
            while its layer runs, so that large ones may have to stay plain. None: any.
        target: a name from `list_targets()`, or the path of a target file of your own: fills in
            what is None above and checks the file at the end, see `check`. What contradicts it is
            an error. For targets whose compilers reject new op versions, these are lowered.
        metadata: a `Metadata`, a dict or a JSON file: names, descriptions, normalization and labels
            that go into a .tflite file. Where the file could not tell that its model has the
            preprocessing of pixels inside, the normalization is filled in.
        format: "tflite", "onnx" or "openvino" (an .xml file and a .bin file beside it), made from
            the .tflite file by tf2onnx and OpenVINO in environments of their own. None: by the
            path's ending.
        strict: raise if an operation stays float although integers were asked for.
        select_tf_ops: allow operations of TensorFlow that LiteRT lacks (needs the Flex delegate).
        samples: how many calibration samples to use at most, the first ones: fewer once the ranges
            have settled, of which the report tells; None uses all.
        trusted: take a SavedModel although it has operators that read or write files or run code
            when it is loaded or run. Whoever made it can then do what you can.
        signature: which signature of a SavedModel; the file keeps its name. None: "serve",
            "serving_default", or the only one.
        progress: called as `progress(stage, done, total)`.

    Returns:
        A `Report`: sizes, operations, what stayed float and why, the target's check, seconds.

    Raises:
        ValueError: if an argument, the model, the calibration data or the metadata will not do,
            or flash or ram cannot be kept.
        tools.environments.Unavailable: TFLite Micro is needed, and cannot be had.

    Example:
        >>> report = convert(qat, "model.tflite", precision="int8", io_dtype="int8")
        >>> report = convert(qat, "model.tflite", target="edge_tpu")
    """
    settings = settle(
        precision,
        io_dtype,
        batch_size,
        dense,
        target,
        convolution,
        ranges,
        skip,
        observer,
        weight_observer,
        tune,
        compressed_weights,
        flash,
        ram,
    )
    format = settle_format(settings, format, path, metadata)
    known = None if metadata is None else load_metadata(metadata)
    writing.check_writable(path)
    if settings.compressed_weights:
        runtimes.require_tflm()
    job = Job(settings, strict, select_tf_ops, progress)
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        model = job.timed("load", models.load_model, model, trusted=trusted)
    if signature is not None:
        model = models.with_signature(model, signature)
    if precision is None:
        job.settle(settle_trained(settings, model))
        format = settle_format(job.settings, format, path, metadata)
    file = job.run(model, calibration, samples)
    file, told = pointwise.with_narrow_kernels(file, job.model, job.settings, job.is_trained)
    job.notes += told
    described = _with_pixels(model, file, known)
    held = states.kept(file)
    data = flatbuffer.write(file) if held else job.finish(file, described)
    job.notes += job.timed("run", job.trial.passed_by, file, data)
    if held:
        states.keep(file)
        data = job.finish(file, described)
    report = job.report(path, file, data)
    if settings.compressed_weights:
        data, report = job.with_coded_weights(file, described, report)
    if format == "tflite":
        writing.atomic_write(path, data)
        return report
    # An iterator is used up by now.
    kept = None if isinstance(calibration, Iterator) else calibration
    exchanged = job.timed(format, exchange.exchange, format, data, path, samples=kept)
    return dataclasses.replace(
        report, format=format, exchanged=exchanged, seconds=job.rounded_seconds()
    )


def _with_pixels(model: Any, file: Any, known: Metadata | None) -> Metadata | None:
    """The metadata, and how the model takes pixels if that is known but cannot be seen in the file.

    The converter folds a preprocessing into the first convolution.
    """
    inputs = file.subgraphs[0].inputs
    shape = list(file.subgraphs[0].tensors[inputs[0]].shape) if len(inputs) == 1 else []
    given = known.inputs[0] if known is not None and known.inputs else TensorMetadata()
    if len(shape) != 4 or shape[-1] not in (1, 3) or given.mean or normalization_of(file, None, 0):
        return known
    told = normalization_in_front(model)
    if told is None:
        return known
    entry = dataclasses.replace(given, mean=told.mean, std=told.std)
    return dataclasses.replace(known or Metadata(), inputs=(entry,))
