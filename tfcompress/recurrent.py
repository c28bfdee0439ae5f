"""Unrolled LSTM and GRU layers opened into Dense layers and gates."""

import keras
from keras import layers, ops

from tfcompress.parts import fill


def is_plain_rnn(layer) -> bool:
    """Whether an unrolled LSTM or GRU has the gates that `open_lstm`, `open_gru` know."""
    known = type(layer) is layers.LSTM or (type(layer) is layers.GRU and layer.reset_after)
    return (
        known
        and layer.unroll
        and not (layer.stateful or layer.return_state)
        and not (layer.dropout or layer.recurrent_dropout)
        and layer.activation is keras.activations.tanh
        and layer.recurrent_activation is keras.activations.sigmoid
    )


def open_lstm(layer, x, initial_state=None, mask=None, **kwargs):
    """An unrolled LSTM -> Dense layers shared by all time steps, and gates."""
    if not _is_plain_call(x, initial_state, mask):
        return layer(x, initial_state=initial_state, mask=mask, **kwargs)
    cell = layer.cell
    inputs = _dense(layer, "inputs", cell.kernel, cell.bias)
    recurrent = _dense(layer, "recurrent", cell.recurrent_kernel, None)
    h = c = None
    outputs = []
    for step in _time_steps(layer, x):
        z = inputs(step) if h is None else ops.add(inputs(step), recurrent(h))
        i, f, g, o = ops.split(z, 4, axis=-1)
        c_new = ops.multiply(ops.sigmoid(i), ops.tanh(g))
        c = c_new if c is None else ops.add(ops.multiply(ops.sigmoid(f), c), c_new)
        h = ops.multiply(ops.sigmoid(o), ops.tanh(c))
        outputs.append(h)
    return _sequence(layer, outputs)


def open_gru(layer, x, initial_state=None, mask=None, **kwargs):
    """An unrolled GRU (reset_after) -> Dense layers shared by all time steps, and gates."""
    if not _is_plain_call(x, initial_state, mask):
        return layer(x, initial_state=initial_state, mask=mask, **kwargs)
    cell = layer.cell
    biases = (cell.bias[0], cell.bias[1]) if cell.use_bias else (None, None)
    inputs = _dense(layer, "inputs", cell.kernel, biases[0])
    recurrent = _dense(layer, "recurrent", cell.recurrent_kernel, biases[1])
    if cell.use_bias:  # an indexed variable does not hand on whether it trains
        inputs.bias.trainable = recurrent.bias.trainable = bool(cell.bias.trainable)
    h = ops.multiply(x[:, 0, :1], ops.zeros((1, layer.units), x.dtype))
    outputs = []
    for step in _time_steps(layer, x):
        z_x, r_x, n_x = ops.split(inputs(step), 3, axis=-1)
        z_h, r_h, n_h = ops.split(recurrent(h), 3, axis=-1)
        z, r = ops.sigmoid(ops.add(z_x, z_h)), ops.sigmoid(ops.add(r_x, r_h))
        n = ops.tanh(ops.add(n_x, ops.multiply(r, n_h)))
        h = ops.add(n, ops.multiply(z, ops.subtract(h, n)))
        outputs.append(h)
    return _sequence(layer, outputs)


def _is_plain_call(x, initial_state, mask) -> bool:
    masked = mask is not None or getattr(x, "_keras_mask", None) is not None
    return not masked and initial_state is None and None not in x.shape[1:]


def _dense(layer, name: str, kernel, bias):
    """The input or the recurrent projection of an RNN cell, as a built Dense layer."""
    dense = layers.Dense(
        kernel.shape[1],
        use_bias=bias is not None,
        name=f"{layer.name}_{name}",
        trainable=layer.trainable,
        dtype=layer.dtype_policy,
    )
    dense.build((None, kernel.shape[0]))
    fill(dense.kernel, kernel)
    if bias is not None:
        fill(dense.bias, bias)
    return dense


def _time_steps(layer, x) -> list:
    steps = [x[:, t] for t in range(x.shape[1])]
    return steps[::-1] if layer.go_backwards else steps


def _sequence(layer, outputs: list):
    return ops.stack(outputs, axis=1) if layer.return_sequences else outputs[-1]
