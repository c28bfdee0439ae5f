"""Regularizers and constraints of weights that are kept in other shapes, or in parts."""

import keras
from keras import ops

_register = keras.saving.register_keras_serializable("tfcompress")

# Rules that look at each value by itself, whatever the shape of the weight.
_BY_VALUE = (
    keras.regularizers.L1,
    keras.regularizers.L2,
    keras.regularizers.L1L2,
    keras.constraints.NonNeg,
)


@_register
class ViewRegularizer(keras.regularizers.Regularizer):
    """A regularizer of a weight that is kept in another shape than the one it is meant for."""

    def __init__(self, regularizer, shape):
        self.regularizer = keras.regularizers.get(regularizer)
        self.shape = tuple(shape)

    def __call__(self, x):
        return self.regularizer(ops.reshape(x, self.shape))

    def get_config(self):
        regularizer = keras.regularizers.serialize(self.regularizer)
        return {"regularizer": regularizer, "shape": self.shape}


@_register
class ViewConstraint(keras.constraints.Constraint):
    """A constraint of a weight that is kept in another shape than the one it is meant for."""

    def __init__(self, constraint, shape):
        self.constraint = keras.constraints.get(constraint)
        self.shape = tuple(shape)

    def __call__(self, w):
        return ops.reshape(self.constraint(ops.reshape(w, self.shape)), w.shape)

    def get_config(self):
        return {"constraint": keras.constraints.serialize(self.constraint), "shape": self.shape}


def is_by_value(rule) -> bool:
    """Whether a regularizer or constraint stays what it is for parts of a weight."""
    return rule is None or type(rule) in _BY_VALUE
