"""What TensorFlow's converter is given, and what it says if it fails."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree
from keras.src.backend.tensorflow import numpy as keras_numpy
from tensorflow.python.framework import auto_control_deps_utils
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.ops.signal import dct_ops

from tfcompress.files import temporary
from tfcompress.graph.front_end import types_in
from tfcompress.graph.nodes import Graph
from tfcompress.tflite import flatbuffer, run, signature
from tfcompress.tflite.signature import INPUT, OUTPUT

Names = tuple[list[str], list[str]]  # of inputs and outputs

# Bytes of weights from which memory counts for more than time. Frozen weights take some 25 times
# their size on the way, those in a SavedModel 8 times; a small SavedModel takes 4 times as long.
LARGE = 256 * 2**20


@dataclasses.dataclass
class Lowering:
    """A model on its way to a float file.

    Attributes:
        converter: set up for the model.
        names: of inputs and outputs, in the order of the file.
        key: name of the file's signature.
        model: the Keras model whose layers an error names; None if there is none.
        note: what is to be told of the way that was taken; else empty.
    """

    converter: tf.lite.TFLiteConverter
    names: Names
    key: str = "serve"
    model: keras.Model | None = None
    note: str = ""

    def run(self) -> Any:
        """The file as a `ModelT`, with names of the converter's own."""
        return flatbuffer.read(run_converter(self.converter, self.model))

    def name(self, parsed: Any) -> None:
        """Gives the file its signature, and its inputs and outputs their names."""
        signature.name_inputs_and_outputs(parsed, *self.names, key=self.key)


def allow(converter: tf.lite.TFLiteConverter, select_tf_ops: bool) -> None:
    """Lets a converter take operations of TensorFlow that LiteRT lacks, if so asked."""
    if select_tf_ops:
        ops = tf.lite.OpsSet
        converter.target_spec.supported_ops = [ops.TFLITE_BUILTINS, ops.SELECT_TF_OPS]


@contextlib.contextmanager
def _plain_operations():
    """Lets Keras call operations of TensorFlow as LiteRT has them.

    Before argmax and argmin it tells -0.0 from 0.0 by their bits, for which LiteRT has no operator;
    in a batch of 1 it takes addends for biases, along an axis that may be another than theirs.
    TensorFlow's own cosines of a signal (MFCC) slice complex numbers, which LiteRT cannot.
    """
    own = {name: getattr(keras_numpy, name) for name in ("argmax", "argmin", "add")}
    for name in ("argmax", "argmin"):
        setattr(keras_numpy, name, _extreme(getattr(tf, name)))
    keras_numpy.add = _add(own["add"])
    cosines = dct_ops.dct
    dct_ops.dct = tf.signal.dct = _dct(cosines)
    try:
        yield
    finally:
        dct_ops.dct = tf.signal.dct = cosines
        for name, function in own.items():
            setattr(keras_numpy, name, function)


def _extreme(function: Callable) -> Callable:
    def find(x, axis=None, keepdims=False):
        x = tf.convert_to_tensor(x)
        if axis is None:
            found = function(tf.reshape(x, [-1]), axis=0, output_type="int32")
            return tf.reshape(found, [1] * len(x.shape)) if keepdims else found
        found = function(x, axis=axis, output_type="int32")
        return tf.expand_dims(found, axis) if keepdims else found

    return find


def _dct(own: Callable) -> Callable:
    def transform(input, type=2, n=None, axis=-1, norm=None, name=None):
        size = input.shape[-1]
        if type != 2 or axis != -1 or size is None or (n or size) != size:
            return own(input, type, n, axis, norm, name)
        # A signal of ones and zeros at each place gives the matrix.
        with tf.init_scope():
            waves = own(tf.eye(size, dtype=input.dtype), type, n, axis, norm).numpy()
        return tf.matmul(input, waves) if len(input.shape) > 1 else tf.tensordot(input, waves, 1)

    return transform


def _add(own: Callable) -> Callable:
    def add(x1, x2):
        tensors = tf.is_tensor(x1) and tf.is_tensor(x2) and x1.dtype == x2.dtype
        if tensors and _computed(x2):
            return tf.add(x1, x2)
        return own(x1, x2)

    return add


def _computed(x) -> bool:
    """Whether a tensor depends on what a function is called with, as no bias does."""
    seen: set[int] = set()
    stack = [x]
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen or not tf.is_symbolic_tensor(tensor):
            continue
        seen.add(id(tensor))
        if tensor.op.type == "Placeholder":
            # The body of a loop is called with what it takes from around it, too.
            around = {id(inside): outside for outside, inside in tensor.graph.captures}
            if id(tensor) not in around:
                return True
            stack.append(around[id(tensor)])
        stack.extend(tensor.op.inputs)
    return False


def converter_of(call: Callable, specs: Sequence[tf.TensorSpec], large: bool, holder: Any = None):
    """A TFLiteConverter for a function of tensors in inference.

    What it only reads becomes constants; what it assigns, if outputs depend on it, stays a variable
    of the file, which keeps its value from one run to the next.

    Args:
        call: takes tensors as `specs` tells them, returns a structure of outputs.
        holder: what holds the look-up tables of the function.
    """

    def serve(*values):
        with _Assignments() as assignments, _plain_operations():
            outputs = tree.flatten(call(*values))
        assignments.keep_what_is_read(outputs)
        return {f"{OUTPUT}{i:04}": y for i, y in enumerate(outputs)}

    # Names that tell the order, which a SavedModel does not keep.
    named = [tf.TensorSpec(s.shape, s.dtype, f"{INPUT}{i:04}") for i, s in enumerate(specs)]
    function = tf.function(serve, input_signature=named, autograph=False, jit_compile=False)
    graph = function.get_concrete_function().graph
    if not large and _only_reads_variables(graph):
        return from_constants(function)
    module = tf.Module()
    module.variables_of_it, module.holder = list(graph.variables), holder
    return by_saved_model(module, {"serve": function})


class _Assignments(keras.StatelessScope):
    """Keeps what Keras variables are assigned from becoming a part of the graph."""

    def __init__(self):
        super().__init__()
        self.variables: dict[int, keras.Variable] = {}

    def add_update(self, update):
        super().add_update(update)
        self.variables[id(update[0])] = update[0]

    def keep_what_is_read(self, outputs: list) -> None:
        """Assigns the variables that outputs depend on, now or by the next run's state.

        Seeds of dropout, statistics of training and the like fall away.
        """
        pending = {key: (v, self.state_mapping[key]) for key, v in self.variables.items()}
        needed = list(outputs)
        while needed:
            read = _captured(needed)
            live = [key for key, (v, _) in pending.items() if id(v.value.handle) in read]
            needed = [pending[key][1] for key in live]
            for key in live:
                variable, value = pending.pop(key)
                variable.value.assign(value)


def _captured(tensors: Iterable[Any]) -> set[int]:
    """The identities of what tensors of a function depend on outside of it."""
    seen: set[Any] = set()
    stack = [t.op for t in tensors if tf.is_symbolic_tensor(t)]
    while stack:
        op = stack.pop()
        if op.name not in seen:
            seen.add(op.name)
            stack.extend(t.op for t in op.inputs)
    captures = tf.compat.v1.get_default_graph().captures
    return {id(outside) for outside, inside in captures if inside.op.name in seen}


def _only_reads_variables(graph) -> bool:
    """Whether a function has no state but variables that it never writes."""
    read_only = auto_control_deps_utils.get_read_only_resource_input_indices_graph(graph)
    resources = [i for i, tensor in enumerate(graph.inputs) if tensor.dtype == tf.resource]
    return set(resources) <= set(read_only)


def from_constants(function):
    # from_concrete_functions loses variables, so there must be none.
    frozen = convert_variables_to_constants_v2(
        function.get_concrete_function(), lower_control_flow=False
    )
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen])


def by_saved_model(module: tf.Module, signatures: dict[str, Any]) -> tf.lite.TFLiteConverter:
    """A TFLiteConverter for functions of a module that hold variables or tables."""
    folder = temporary.folder()
    tf.saved_model.save(module, folder.name, signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder.name, signature_keys=list(signatures)
    )
    converter._tfcompress_folder = folder  # lives as long as the converter
    return converter


def run_converter(converter, model: keras.Model | None = None) -> bytes:
    """Runs a converter with its chatter kept back; an error names layers and what may be done."""
    try:
        with run.quiet():
            return converter.convert()
    except Exception as error:
        raise ValueError(_explain(error, model)) from error


def _explain(error: Exception, model: keras.Model | None) -> str:
    refused = _refused(error)
    if not refused:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (
            f"the TensorFlow Lite converter failed: {lines[0][:300] if lines else ''}. Expected "
            "layers that LiteRT has operations for: convert parts of the model alone to find the "
            "layer, and rewrite it."
        )
    of_type = {} if model is None else _layers_by_type(model, set(refused))
    named = []
    for kind, places in refused.items():
        layers = _layers_at(model, places) or of_type.get(kind, [])
        where = ", ".join(f"'{name}'" for name in dict.fromkeys(layers)) or places[0]
        named.append(f"{kind} in {where}" if where else kind)
    mend = ". Compute these outside of the model, or rewrite them with other operations"
    # What Flex lacks, too, is told as a custom operation.
    if "Select ops:" in str(error) and "Custom ops:" not in str(error):
        mend += (
            "; or allow them with select_tf_ops=True (the file then needs the Flex delegate, which "
            "most devices lack)"
        )
    split = [] if model is None else _preparing(model, {n for p in named for n in p.split("'")})
    if split:
        mend = (
            f". '{split[0]}' prepares data, which the app is to do: convert what follows, "
            f"keras.Model(model.get_layer('{split[0]}').output, model.output)"
        )
    if any("/dct/" in place for place in refused.get("StridedSlice", ())):
        mend = (
            ". tf.signal's cosine transform slices complex numbers: multiply by its matrix, made "
            "once outside of the function that is saved, cosines = tf.signal."
            "mfccs_from_log_mel_spectrograms(tf.eye(bands)), as tf.matmul(log_mel, cosines)"
        )
    told = f"the TensorFlow Lite converter failed: LiteRT has no operator for {'; '.join(named)}"
    return f"{told[:600]}{mend}."


_MISSING = re.compile(r"^\s*tf\.(\w+)\(", re.MULTILINE)


def _refused(error: Exception) -> dict[str, list[str]]:
    """The types of operations that LiteRT lacks, and the names that TensorFlow gave them."""
    found: dict[str, list[str]] = {kind: [] for kind in _MISSING.findall(str(error))}
    for entry in getattr(error, "errors", ()):
        kind = entry.operator.name.removeprefix("tf.")
        if kind and "failed" not in entry.error_message.split(":", 1)[0]:
            names = [call.name for call in entry.location.call if call.name]
            found.setdefault(kind, []).extend(names[:1])
    return found


def _layers_at(model: keras.Model | None, places: list[str]) -> list[str]:
    """The layers in whose scopes operations lie, the innermost that the model knows."""
    known = set() if model is None else {layer.name for layer in model._flatten_layers()}
    known -= {getattr(model, "name", "")}
    found = []
    for place in places:
        scopes = place.split("@")[0].split("/")[:-1]
        names = [n for scope in scopes for n in (scope, re.sub(r"_\d+$", "", scope))]
        found += [name for name in names if name in known][-1:]
    return found


def _preparing(model: keras.Model, names: set[str]) -> list[str]:
    """Which of some layers make numbers of texts or codes, before the model itself."""
    kinds = keras.layers
    preparing = kinds.TextVectorization | kinds.StringLookup | kinds.IntegerLookup | kinds.Hashing
    preparing |= kinds.HashedCrossing
    found = [x.name for x in model._flatten_layers() if isinstance(x, preparing)]
    return [name for name in found if name in names]


def _layers_by_type(model: keras.Model, kinds: set[str]) -> dict[str, list[str]]:
    """The operations of a flat model that make operations of TensorFlow of some types."""
    found: dict[str, list[str]] = {}
    if not hasattr(model, "_inputs_struct"):
        return found
    for node in Graph.of(model).nodes:
        if node.is_input:
            continue
        for kind in kinds & types_in(node):
            found.setdefault(kind, []).append(node.name)
    return found
