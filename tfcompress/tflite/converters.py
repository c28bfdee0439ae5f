"""Two ways from a plain Keras model to a TFLiteConverter: a quick one, and one of little memory."""

import math
import tempfile

import keras
import tensorflow as tf
from keras import tree
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from tfcompress.tflite.signature import INPUT, OUTPUT

# Bytes of weights from which memory counts for more than time. Frozen weights take some 25 times
# their size on the way, those in a SavedModel 8 times; a small SavedModel takes 4 times as long.
LARGE = 256 * 2**20


def converter_of(model: keras.Model, batch_size: int) -> "tf.lite.TFLiteConverter":
    """A TFLiteConverter for a plain, flat model.

    Args:
        model: a Functional model without layers of ours.
        batch_size: fixed batch size.

    Returns:
        The converter. The inputs and outputs of its file are in the order of the model's, or have
        a signature that tells it, see `signature.in_order`.
    """
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
    return _from_saved_model(model, function) if large else from_constants(function)


def from_constants(function):
    # from_concrete_functions loses variables, so there must be none.
    frozen = convert_variables_to_constants_v2(
        function.get_concrete_function(), lower_control_flow=False
    )
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen])


def _from_saved_model(model, function):
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    folder = tempfile.TemporaryDirectory(prefix="tfcompress_")
    tf.saved_model.save(module, folder.name, signatures={"serve": function})
    converter = tf.lite.TFLiteConverter.from_saved_model(folder.name, signature_keys=["serve"])
    converter._tfcompress_folder = folder  # lives as long as the converter
    return converter
