"""The float file that integer ones are made from, and what its markers say of ranges."""

from tfcompress.conversion import constants, forms, lower, lstm, markers
from tfcompress.conversion.converters import Lowering


def float_file(model, *, batch_size: int = 1, select_tf_ops: bool = False, integer: bool = True):
    """The float .tflite of a model in the form that `int8` is made from, and its known ranges.

    Returns (a `ModelT` without markers, ranges by tensor index, indices of tensors of float ops).
    """
    return marked(lower.to_float(model, batch_size, select_tf_ops, integer=integer))[:3]


def marked(lowering: Lowering):
    """What a converter writes: the named file without its markers, and what they said."""
    parsed = lowering.run()
    if lstm.unknown_operators(parsed):  # which were let pass with the stand-ins
        lowering.converter.allow_custom_ops = False
        lowering.run()
    known, floats = markers.take_markers(parsed)
    constants.fold(parsed, known, floats)
    forms.rewrite(parsed, known, floats)
    constants.part(parsed, known)
    told = lstm.write_floats(parsed)
    lowering.name(parsed)
    return parsed, known, floats, told
