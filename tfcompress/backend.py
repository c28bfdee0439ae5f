"""What differs between the backends of Keras."""

import keras
from keras import ops


def as_tensor(value):
    """A backend tensor; `ops.convert_to_tensor` leaves a variable a variable on TensorFlow."""
    value = ops.convert_to_tensor(value)
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    return tf.convert_to_tensor(value)
