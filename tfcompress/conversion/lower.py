"""A Keras model as a float .tflite: fixed batch, stable names, activation ranges marked in it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers, tree

from tfcompress.conversion import lstm
from tfcompress.conversion.converters import LARGE, Lowering, Names, allow, converter_of
from tfcompress.conversion.scopes import Scopes
from tfcompress.conversion.stand_ins import (
    Affine,
    Comparison,
    Marker,
    Nearest,
    OnGrid,
    OnTable,
    PlainRsqrt,
    Rows,
)
from tfcompress.files import models
from tfcompress.files.models import reason_of
from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.flatten import as_flat
from tfcompress.graph.folding import scale_and_offset
from tfcompress.graph.inputs import inputs_of
from tfcompress.graph.nodes import Graph, Node, scope_name
from tfcompress.kinds import FOLDING
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import (
    Compressed,
    baked_weight,
    is_compressed,
    target_variables,
)
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.layers.integer_lstm import IntegerLSTM
from tfcompress.layers.kernel_rounding import table_step
from tfcompress.quantization import transforms
from tfcompress.quantization.kernels import kind_of, looks_up
from tfcompress.quantization.openers import Rsqrt
from tfcompress.quantization.opening import EVERYWHERE, opened_by, output_names
from tfcompress.quantization.unrolling import in_steps
from tfcompress.techniques.rules import Rules
from tfcompress.tflite import run

# As many as take minutes to convert.
_MANY_STEPS = 150


def require_convertible(model: Any) -> None:
    """Raises a TypeError unless this is a Keras model or a SavedModel."""
    if not isinstance(model, keras.Model | models.SavedModel):
        raise TypeError(
            "model must be a keras.Model or the path of a .keras, .h5 or SavedModel; received "
            f"{type(model).__module__}.{type(model).__name__}."
        )


def to_float(
    model: keras.Model,
    batch_size: int,
    select_tf_ops: bool,
    *,
    integer: bool,
    rules: Rules = EVERYWHERE,
    prepared: tuple[keras.Model, dict[int, str]] | None = None,
    spectral: bool = False,
) -> Lowering:
    """A model on its way to a float file.

    One that cannot be flattened, as its layers call functions of TensorFlow, goes as it is.

    Args:
        integer: whether integers will be made of the file: mark the ranges of activations, and
            take the forms that have integer kernels.
        rules: that quantize the activations of what is to have such forms.
        prepared: what `opened_by` made of the model, and was done more to.
        spectral: make products of spectra, for which the target has no operator.
    """
    structure, call = _as_it_is(model)
    _require_all_fixed(structure)
    note, exported, opened, origins = "", model, model, dict[int, str]()
    try:
        # A compressed model was opened into what has integer kernels when it was wrapped.
        if integer and not is_compressed(model):
            opened, origins = prepared or opened_by(model, rules)
        flat = as_flat(opened)
        names = io_names(flat)
        flat, sources = in_steps(flat)
        origins = {**origins, **{key: source.name for key, source in sources.items()}}
        note = _long_loops(flat)
        exported = _plain_copy(flat, batch_size, integer, spectral, Scopes(origins))
        structure, call = exported._inputs_struct, functools.partial(exported, training=False)
    except Exception as error:  # What users' layers raise is of any kind.
        if is_compressed(model):
            raise
        names = _own_names(model)
        if integer:
            note = f"its layers were not opened into what has integer kernels: {reason_of(error)}"
    with run.quiet():
        converter = _converter_of(exported, structure, call, batch_size)
    allow(converter, select_tf_ops)
    converter.allow_custom_ops = lstm.is_in(exported)
    return Lowering(converter, names, model=exported, note=note)


def _long_loops(flat: keras.Model) -> str:
    """What is to be told of loops that were written out in many steps."""
    every = (x for x in flat.operations if isinstance(x, keras.Layer))
    calls = [len(x._inbound_nodes) for x in every if not isinstance(x, FakeQuant)]
    if max(calls, default=0) <= _MANY_STEPS:
        return ""
    return (
        f"a recurrent layer is written out in {max(calls)} steps: tfcompress.streaming makes a "
        "step model, whose file has one"
    )


def _require_all_fixed(structure: Any) -> None:
    """Raises if an input has a dynamic dimension other than the batch."""
    mend = (
        "Give it the size that it will run at: x = keras.Input(shape) of that size (a dict or list "
        "of such where there are several inputs), then keras.Model(x, model(x)), or pass "
        "calibration= (--calibration), whose first sample tells it."
    )
    for tensor in tree.flatten(structure):
        _require_fixed(tensor.name, tensor.shape, mend)


def _require_fixed(name: str, shape: Any, mend: str) -> None:
    if any(size is None for size in shape[1:]):
        raise ValueError(
            f"input '{name}' must have fixed sizes but for the batch; received shape "
            f"{tuple(shape)}. {mend}"
        )


def io_names(model: keras.Model) -> Names:
    """The names of a flat model's inputs and outputs."""
    return [t.name for t in tree.flatten(model._inputs_struct)], output_names(model)


def interface(model: keras.Model) -> tuple[Names, Any, Callable]:
    """The names that a model's file uses, the structure of its inputs, and a function of that."""
    structure, call = _as_it_is(model)
    try:
        return io_names(as_flat(model)), structure, call
    except Exception:  # As above.
        return _own_names(model), structure, call


def _as_it_is(model: keras.Model) -> tuple[Any, Callable]:
    """The structure of a model's inputs, and the model as a function of that."""
    source = getattr(model, "_functional", None) or model
    structure, args, kwargs = inputs_of(source)
    inputs = tree.flatten(structure)

    def call(packed):
        values = dict(zip(map(id, inputs), tree.flatten(packed), strict=True))
        given = tree.map_structure(lambda x: values.get(id(x), x), (args, kwargs))
        return source(*given[0], training=False, **given[1])

    return structure, call


def _own_names(model: keras.Model) -> Names:
    """The names of the inputs and outputs of a model that cannot be flattened."""
    source = getattr(model, "_functional", None) or model
    structure, args, kwargs = inputs_of(source)
    inputs = [tensor.name for tensor in tree.flatten(structure)]
    if hasattr(source, "_outputs_struct"):
        return inputs, output_names(source)
    made = source.compute_output_spec(*args, **kwargs)
    if isinstance(made, dict) and not any(tree.is_nested(part) for part in made.values()):
        return inputs, sorted(map(str, made))
    return inputs, [f"output_{i}" for i, _ in enumerate(tree.flatten(made))]


def _plain_copy(
    flat: keras.Model, batch_size: int, integer: bool, spectral: bool, scopes: Scopes
) -> keras.Model:
    """The flat model with every layer of ours, and what LiteRT has no good form for, exchanged."""
    graph = Graph.of(flat)
    numbers = {id(node): number for number, node in enumerate(graph.nodes)}
    copies: dict[int, Any] = {}
    fill = []
    # Steps of a loop have one quantizer, whose range takes long to tell.
    told = {id(x): _is_told(x) for x in flat.operations if isinstance(x, FakeQuant) and integer}
    with _policy("float32"):

        def call(node: Node, *args, **kwargs):
            operation = node.operation
            if node.is_input:
                return args[0]
            if isinstance(operation, FakeQuant) and not told.get(id(operation)):
                kwargs = {}  # what only markers take
            special = _canonical(graph, node) if integer else None
            if special is not None:  # not kept: a shared layer may be folded elsewhere
                return special(args[0])
            lacking = transforms.opener_of(operation, spectral)
            if lacking is not None:
                return lacking(operation, *args, **kwargs)
            if id(operation) not in copies:
                twin, source = _plain_layer(operation, integer)
                copies[id(operation)] = twin
                if source is not None:
                    fill.append((source, twin))
            if isinstance(copies[id(operation)], Marker):
                kwargs = {**kwargs, "node": numbers[id(node)]}
            made = copies[id(operation)](*args, **kwargs)
            step = _table_step(graph, node) if integer else None
            return made if step is None else OnTable(step, name=f"{operation.name}_rows")(made)

        exported = graph.rebuild(scopes.around(call), batch_size)
    # Steps that are not compiled, and other backends, train layers of any name.
    for operation in exported.operations:
        operation.name = scope_name(operation.name)
    exported.name = scope_name(exported.name).lstrip("_->") or "model"
    scopes.give(exported)
    for source, twin in fill:
        if isinstance(source, Compressed):
            copy_weights([(source.layer, twin)])
            copied = target_variables(twin, source.targets)
            for target, (_, variable) in zip(source.bound, copied, strict=True):
                variable.assign(baked_weight(target))
        else:
            copy_weights([(source, twin)])
    return exported


def _is_told(quantizer: FakeQuant) -> bool:
    """Whether a file is told of a range: not of divisors that integers would round to 0."""
    return bool(quantizer.is_far(*quantizer.limits()))


def _plain_layer(operation, integer: bool):
    """A float32 copy of an operation without our wrappers, and where its weights come from."""
    if isinstance(operation, FakeQuant):
        if integer and operation.symmetric:
            return OnGrid(operation), None
        if integer and _is_told(operation):
            return Marker(operation, *(float(limit) for limit in operation.limits())), None
        return layers.Activation(operation.activation or "linear", name=operation.name), None
    source = operation.layer if isinstance(operation, FusedBatchNorm) else operation
    plain = source.layer if isinstance(source, Compressed) else source
    if isinstance(plain, IntegerLSTM):
        return lstm.plain_layer(plain, integer), source
    twin = copy_operation(plain)
    if not isinstance(twin, keras.Layer):
        return twin, None
    for layer in twin._flatten_layers():
        if "float" in (layer.compute_dtype or ""):
            layer.dtype_policy = "float32"  # indices stay what they are
    if type(twin) is layers.Embedding:
        twin = Rows.from_config(twin.get_config())
    if isinstance(twin, layers.IntegerLookup):
        twin.lookup_table = Comparison(source.lookup_table)
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


def _table_step(graph: Graph, node: Node) -> float | None:
    """The step of the 8-bit grid that rows of a table lie on which nothing rounds again."""
    if not isinstance(node.operation, Compressed) or not looks_up(node):
        return None
    if any(isinstance(n.operation, FakeQuant) for n in graph.consumers(node.outputs[0])):
        return None
    step = table_step(node.operation)
    return None if step is None else float(step)


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


@contextlib.contextmanager
def _policy(name: str):
    old = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(old)


@contextlib.contextmanager
def _in_float32(model: keras.Model):
    """LiteRT computes in float32 what Keras computes in half precision."""
    layers = [x for x in model._flatten_layers() if x.compute_dtype in ("float16", "bfloat16")]
    old = [layer._dtype_policy for layer in layers]
    for layer in layers:
        layer._dtype_policy = keras.DTypePolicy("float32")
    try:
        yield
    finally:
        for layer, policy in zip(layers, old, strict=True):
            layer._dtype_policy = policy


def _converter_of(
    model: keras.Model, structure: Any, call: Callable, batch_size: int
) -> tf.lite.TFLiteConverter:
    large = sum(4 * math.prod(v.shape) for v in model.variables) >= LARGE
    large = large or lstm.is_in(model)  # of which only a SavedModel keeps the stand-ins
    inputs = tree.flatten(structure)
    specs = [tf.TensorSpec((batch_size, *t.shape[1:]), t.dtype) for t in inputs]

    def serve(*values):
        return call(tree.pack_sequence_as(structure, list(values)))

    made_for = next((t.shape[0] for t in inputs if t.shape[0] not in (None, batch_size)), None)
    try:
        with _in_float32(model):
            return converter_of(serve, specs, large, holder=model)
    except (TypeError, ValueError) as error:
        if made_for is None:
            raise
        raise ValueError(
            f"model '{model.name}' is made for a batch of {made_for}, which its layers ask for; "
            f"received batch_size={batch_size}. Pass batch_size={made_for} (--batch-size)."
        ) from error


def load_signature(path, key: str | None = None, *, strict: bool = True) -> tuple[Any, str]:
    """A SavedModel, and the name of its signature: the one asked for, or the usual one.

    Args:
        strict: raise if it has not the one asked for, instead of taking the usual one.
    """
    loaded = tf.saved_model.load(str(path))
    known = list(loaded.signatures)
    if not known:
        raise ValueError(
            f"the SavedModel at '{path}' must have a signature; received one without. Save it with "
            "model.export(path) of Keras 3."
        )
    if key is None or (key not in known and not strict):
        usual = [k for k in ("serve", "serving_default") if k in known]
        key = usual[0] if usual else known[0] if len(known) == 1 else None
    if key is None or key not in known:
        received = "none" if key is None else repr(key)
        raise ValueError(
            f"signature must be one of {', '.join(map(repr, known))}, which the SavedModel at "
            f"'{path}' has; received {received}. Name one with signature= (--signature)."
        )
    return loaded, key


def from_saved_model(model: models.SavedModel, batch_size: int, select_tf_ops: bool) -> Lowering:
    """A SavedModel's signature at a fixed batch size on its way to a float file."""
    loaded, key = load_signature(model.path, model.signature)
    function = loaded.signatures[key]
    specs, names = [], []
    for name, spec in sorted(function.structured_input_signature[1].items()):
        shape = spec.shape.as_list() if spec.shape.rank is not None else [None, None]
        _require_fixed(name, shape, "Export the model with fixed sizes.")
        specs.append(tf.TensorSpec([batch_size, *shape[1:]], spec.dtype))
        names.append(name)

    def call(*values):
        return function(**dict(zip(names, values, strict=True)))

    converter = converter_of(call, specs, large=True, holder=loaded)
    allow(converter, select_tf_ops)
    others = [k for k in loaded.signatures if k not in (key, "serving_default")]
    note = f"of the signatures, '{key}' was converted; left out: {', '.join(others)}"
    outputs = sorted(function.structured_outputs)
    return Lowering(converter, (names, outputs), key, note=note if others else "")
