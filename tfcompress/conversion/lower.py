"""A Keras model as a float .tflite: fixed batch, stable names, activation ranges marked in it."""

from __future__ import annotations

import contextlib
import math
import tempfile
from typing import Any

import keras
import tensorflow as tf
from keras import layers, tree
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfcompress.conversion.ranges import MARKED, MARKED_FLOAT
from tfcompress.files import models
from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph, Node, has_own_call, scope_name
from tfcompress.kinds import FOLDING
from tfcompress.layers.batch_norm import FusedBatchNorm, scale_and_offset
from tfcompress.layers.compressed import Compressed, baked_weight, target_variables
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.quantization.openers import Rsqrt
from tfcompress.quantization.opening import OUTPUT_SUFFIX
from tfcompress.quantization.placement import kind_of
from tfcompress.tflite import run
from tfcompress.tflite.signature import INPUT, OUTPUT


class _SameShape(layers.Layer):
    """A layer whose output has the shape of its input."""

    def compute_output_shape(self, input_shape):
        return input_shape


class Marker(_SameShape):
    """Two fake-quantization ops in a row, which tell a constant range to the file's reader."""

    def __init__(self, quantizer: FakeQuant, low: float, high: float):
        super().__init__(name=quantizer.name)
        self.quantizer, self.low, self.high = quantizer, low, high

    def call(self, x, source=0):
        x = self.quantizer._activate(x)
        marked = _fake_quant(x, self.low, self.high, self.quantizer.bits)
        floats = self.quantizer.float_source
        stays = floats is True or source in (floats or ())
        # The converter copies single ones to where it takes ranges for equal; ours come in pairs.
        wider = MARKED_FLOAT if stays else MARKED
        return _fake_quant(marked, wider * self.low, wider * self.high, self.quantizer.bits)


class OnGrid(_SameShape):
    """Weights rounded for good: the converter folds them, and the grid tells their scale."""

    def __init__(self, quantizer: FakeQuant):
        super().__init__(name=quantizer.name)
        self.levels = 2.0 ** (quantizer.bits - 1) - 1.0
        self.step = float(quantizer.limits()[1]) / self.levels

    def call(self, x, source=0):
        return tf.clip_by_value(tf.round(x / self.step), -self.levels, self.levels) * self.step


class Affine(_SameShape):
    """scale * x + offset by channel, as a 1x1 depthwise convolution: one exactly quantizable op."""

    def __init__(self, scale, offset, axis: int = -1, **kwargs):
        super().__init__(**kwargs)
        self.scale, self.offset, self.axis = scale, offset, axis

    def call(self, x):
        x = tf.cast(x, "float32")  # images may come in as integers
        last = len(x.shape) - 1
        if self.axis in (-1, last):
            return self._on_last(x)
        order = [i for i in range(last + 1) if i != self.axis] + [self.axis]
        back = [order.index(i) for i in range(last + 1)]
        return tf.transpose(self._on_last(tf.transpose(x, order)), back)

    def _on_last(self, x):
        channels = x.shape[-1]
        scale = tf.broadcast_to(tf.cast(self.scale, x.dtype), (channels,))
        offset = tf.broadcast_to(tf.cast(self.offset, x.dtype), (channels,))
        shape = tuple(x.shape)
        image = x if len(shape) == 4 else tf.reshape(x, (shape[0], 1, -1, channels))
        kernel = tf.reshape(scale, (1, 1, channels, 1))
        y = tf.nn.bias_add(tf.nn.depthwise_conv2d(image, kernel, (1, 1, 1, 1), "SAME"), offset)
        return y if len(shape) == 4 else tf.reshape(y, shape)


class PlainRsqrt(_SameShape):
    """1 / sqrt(x): the kernel itself gives its largest value at 0."""

    def call(self, x):
        return tf.math.rsqrt(x)


class Nearest(layers.Layer):
    """UpSampling2D as the one op that LiteRT has for it."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.factors = size

    def call(self, x):
        size = (x.shape[1] * self.factors[0], x.shape[2] * self.factors[1])
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=size, half_pixel_centers=False)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] * self.factors[0], shape[2] * self.factors[1], shape[3])


Names = tuple[list[str], list[str]]  # of inputs and outputs


def require_convertible(model: Any) -> None:
    """Raises a TypeError unless this is a Keras model or a SavedModel."""
    if not isinstance(model, keras.Model | models.SavedModel):
        raise TypeError(
            "model must be a keras.Model or the path of a .keras, .h5 or SavedModel; received "
            f"{type(model).__module__}.{type(model).__name__}."
        )


def to_float(
    model: keras.Model, batch_size: int, select_tf_ops: bool, *, integer: bool
) -> tuple[tf.lite.TFLiteConverter, Names]:
    """A TFLiteConverter set up for a model, and its names; `run_converter` gives the float file.

    Args:
        integer: whether integers will be made of the file: mark the ranges of activations, and
            take the forms that have integer kernels.
    """
    flat = model if _is_flat(model) else flatten(model)
    check_shapes(flat)
    exported = _plain_copy(flat, batch_size, integer)
    with run.quiet():
        converter = converter_of(exported, batch_size)
    _allow(converter, select_tf_ops)
    return converter, io_names(flat)


def _allow(converter: tf.lite.TFLiteConverter, select_tf_ops: bool) -> None:
    if select_tf_ops:
        ops = tf.lite.OpsSet
        converter.target_spec.supported_ops = [ops.TFLITE_BUILTINS, ops.SELECT_TF_OPS]


def run_converter(converter) -> bytes:
    """Runs a converter with its chatter kept back; an error says what may be done."""
    try:
        with run.quiet():
            return converter.convert()
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        custom = next((line for line in lines if "Ops:" in line), lines[0] if lines else "")
        raise ValueError(
            f"the TensorFlow Lite converter failed: {custom.strip()[:300]} If operations are "
            "missing in LiteRT, rewrite the layer with others, or allow them with "
            "select_tf_ops=True (the file then needs the Flex delegate, which most devices lack)."
        ) from error


def check_shapes(model: keras.Model) -> None:
    """Raises if an input has a dynamic dimension other than the batch."""
    for tensor in tree.flatten(model._inputs_struct):
        mend = "Rebuild the model with keras.Input of the size it will run at and load the weights "
        _require_fixed(tensor.name, tensor.shape, f"{mend}into it.")


def _require_fixed(name: str, shape: Any, mend: str) -> None:
    if any(size is None for size in shape[1:]):
        raise ValueError(
            f"input '{name}' must have fixed sizes but for the batch; received shape "
            f"{tuple(shape)}. {mend}"
        )


def output_names(model: keras.Model) -> list[str]:
    """The names of a model's outputs: dict keys, or the user's own output layers."""
    struct = model._outputs_struct
    if isinstance(struct, dict) and not any(tree.is_nested(x) for x in struct.values()):
        return [str(key) for key in sorted(struct)]
    names = []
    for tensor in tree.flatten(struct):
        operation = tensor._keras_history.operation
        name = operation.name.removesuffix(OUTPUT_SUFFIX)
        while name in names:
            name = f"{name}_1"
        names.append(name)
    return names


def io_names(model: keras.Model) -> Names:
    """The names of a flat model's inputs and outputs."""
    return [t.name for t in tree.flatten(model._inputs_struct)], output_names(model)


def _is_flat(model) -> bool:
    functional = hasattr(model, "_inputs_struct") and not has_own_call(type(model))
    return functional and not any(isinstance(layer, keras.Model) for layer in model.layers)


def _plain_copy(flat: keras.Model, batch_size: int, integer: bool) -> keras.Model:
    """The flat model with every layer of ours, and what LiteRT has no good form for, exchanged."""
    graph = Graph.of(flat)
    copies: dict[int, Any] = {}
    fill = []
    with _policy("float32"):

        def call(node: Node, *args, **kwargs):
            operation = node.operation
            if node.is_input:
                return args[0]
            if isinstance(operation, FakeQuant) and not integer:
                kwargs = {}  # what only markers take
            special = _canonical(graph, node) if integer else None
            if special is not None:  # not kept: a shared layer may be folded elsewhere
                return special(args[0])
            if id(operation) not in copies:
                twin, source = _plain_layer(operation, integer)
                copies[id(operation)] = twin
                if source is not None:
                    fill.append((source, twin))
            return copies[id(operation)](*args, **kwargs)

        exported = graph.rebuild(call, batch_size)
    # Steps that are not compiled, and other backends, train layers of any name.
    for operation in exported.operations:
        operation.name = scope_name(operation.name)
    exported.name = scope_name(exported.name).lstrip("_->") or "model"
    for source, twin in fill:
        if isinstance(source, Compressed):
            copy_weights([(source.layer, twin)])
            copied = target_variables(twin, source.targets)
            for target, (_, variable) in zip(source.bound, copied, strict=True):
                variable.assign(baked_weight(target))
        else:
            copy_weights([(source, twin)])
    return exported


def _plain_layer(operation, integer: bool):
    """A float32 copy of an operation without our wrappers, and where its weights come from."""
    if isinstance(operation, FakeQuant):
        if integer and operation.symmetric:
            return OnGrid(operation), None
        if integer:
            return Marker(operation, *(float(limit) for limit in operation.limits())), None
        return layers.Activation(operation.activation or "linear", name=operation.name), None
    source = operation.layer if isinstance(operation, FusedBatchNorm) else operation
    twin = copy_operation(source.layer if isinstance(source, Compressed) else source)
    if not isinstance(twin, keras.Layer):
        return twin, None
    twin.dtype_policy = "float32"
    return twin, source


def _canonical(graph: Graph, node: Node):
    """The form with an integer kernel that stands for an operation; None if it is fine itself."""
    operation = node.operation
    if isinstance(operation, FusedBatchNorm):
        operation = operation.layer
    if isinstance(operation, layers.BatchNormalization) and not _folds(graph, node):
        axis = operation.axis % len(node.outputs[0].shape)
        return Affine(*scale_and_offset(operation), axis=axis, name=operation.name)
    if isinstance(operation, layers.Normalization) and _is_by_channel(operation):
        mean, variance = (
            keras.ops.convert_to_numpy(v).reshape(-1) for v in (operation.mean, operation.variance)
        )
        scale = 1.0 / (variance**0.5).clip(min=keras.backend.epsilon())
        if len(scale) in (1, node.outputs[0].shape[-1]):
            return Affine(scale, -mean * scale, name=operation.name)
    if isinstance(operation, layers.Rescaling):
        return Affine(operation.scale, operation.offset, name=operation.name)
    if isinstance(operation, Rsqrt):
        return PlainRsqrt(name=operation.name)
    nearest = getattr(operation, "interpolation", None) == "nearest"
    by_pixel = getattr(operation, "data_format", None) == "channels_last"
    if isinstance(operation, layers.UpSampling2D) and nearest and by_pixel:
        return Nearest(operation.size, name=operation.name)
    return None


def _is_by_channel(layer: layers.Normalization) -> bool:
    """Whether a Normalization subtracts one mean, or one for each place of the last axis."""
    last = len(layer._build_input_shape) - 1
    return not layer.invert and layer._keep_axis in ((), (last,))


def _folds(graph: Graph, node: Node) -> bool:
    """Whether the converter folds a BatchNormalization into what comes before it."""
    tensor = node.inputs[0]
    before = graph.producer(tensor)
    if before is None or graph.only_consumer(tensor) is not node:
        return False
    operation = before.operation
    operation = operation.layer if isinstance(operation, Compressed) else operation
    return kind_of(operation) in FOLDING


def _fake_quant(x, low: float, high: float, bits: int):
    return tf.raw_ops.FakeQuantWithMinMaxVars(inputs=x, min=low, max=high, num_bits=bits)


@contextlib.contextmanager
def _policy(name: str):
    old = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(old)


# Bytes of weights from which memory counts for more than time. Frozen weights take some 25 times
# their size on the way, those in a SavedModel 8 times; a small SavedModel takes 4 times as long.
LARGE = 256 * 2**20


def converter_of(model: keras.Model, batch_size: int) -> tf.lite.TFLiteConverter:
    """A TFLiteConverter for a plain, flat model."""
    inputs = tree.flatten(model._inputs_struct)
    large = sum(4 * math.prod(v.shape) for v in model.variables) >= LARGE

    def serve(*values):
        packed = tree.pack_sequence_as(model._inputs_struct, list(values))
        outputs = tree.flatten(model(packed, training=False))
        return {f"{OUTPUT}{i:04}": y for i, y in enumerate(outputs)} if large else outputs

    specs = [
        tf.TensorSpec((batch_size, *t.shape[1:]), t.dtype, f"{INPUT}{i:04}" if large else t.name)
        for i, t in enumerate(inputs)
    ]
    function = tf.function(serve, input_signature=specs, autograph=False, jit_compile=False)
    if not large:
        return from_constants(function)
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    return _by_saved_model(module, function)


def from_constants(function):
    # from_concrete_functions loses variables, so there must be none.
    frozen = convert_variables_to_constants_v2(
        function.get_concrete_function(), lower_control_flow=False
    )
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen])


def _by_saved_model(module: tf.Module, function) -> tf.lite.TFLiteConverter:
    folder = tempfile.TemporaryDirectory(prefix="tfcompress_")
    tf.saved_model.save(module, folder.name, signatures={"serve": function})
    converter = tf.lite.TFLiteConverter.from_saved_model(folder.name, signature_keys=["serve"])
    converter._tfcompress_folder = folder  # lives as long as the converter
    return converter


def load_signature(path) -> tuple[Any, Any]:
    """A SavedModel, and the function of its first signature."""
    loaded = tf.saved_model.load(str(path))
    key = next((k for k in ("serve", "serving_default") if k in loaded.signatures), None)
    key = key or next(iter(loaded.signatures), None)
    if key is None:
        raise ValueError(
            f"the SavedModel at '{path}' must have a signature; received one without. Save it with "
            "model.export(path) of Keras 3."
        )
    return loaded, loaded.signatures[key]


def from_saved_model(
    path, batch_size: int, select_tf_ops: bool
) -> tuple[tf.lite.TFLiteConverter, Names]:
    """A TFLiteConverter for a SavedModel's first signature at a fixed batch size, and its names."""
    loaded, function = load_signature(path)
    specs = []
    for name, spec in sorted(function.structured_input_signature[1].items()):
        shape = spec.shape.as_list() if spec.shape.rank is not None else [None, None]
        _require_fixed(name, shape, "Export the model with fixed sizes.")
        specs.append(tf.TensorSpec([batch_size, *shape[1:]], spec.dtype, name=name))
    names = [spec.name for spec in specs]

    @tf.function(input_signature=specs)
    def serve(*inputs):
        return function(**dict(zip(names, inputs, strict=True)))

    module = tf.Module()
    module.loaded, module.serve = loaded, serve
    made = _by_saved_model(module, serve)
    _allow(made, select_tf_ops)
    return made, (names, sorted(function.structured_outputs))
