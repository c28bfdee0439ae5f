"""Recurrent layers that would stay loops, which LiteRT runs in float alone, and why."""

from __future__ import annotations

from keras import layers, ops, tree

from tfcompress.kinds import is_exactly
from tfcompress.quantization.traced import is_plain_code
from tfcompress.quantization.views import is_by_value

_RECURRENT = ("SimpleRNN", "LSTM", "GRU", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
_CELLS = ("SimpleRNNCell", "LSTMCell", "GRUCell", "ConvLSTMCell")
_OWN = (
    "is a loop over a cell that is random or no graph of keras.ops: write its call() with those, "
    "in a keras.layers.Layer"
)


def is_recurrent(layer) -> bool:
    """Whether a layer is a loop over a cell."""
    return is_exactly(layer, _RECURRENT)


def is_loop(layer) -> bool:
    """Whether a layer is a loop over a cell, or two, be it of a class of the user's own."""
    return isinstance(layer, layers.RNN | layers.Bidirectional)


def loop_reason(layer) -> str | None:
    """Why a recurrent layer stays a loop, as "it ..." goes on; None if it need not."""
    if type(layer) is layers.Bidirectional:
        pair = (layer.forward_layer, layer.backward_layer)
        return next((reason for each in pair if (reason := loop_reason(each))), None)
    if not is_recurrent(layer):
        return "is a loop of a class of its own: use keras.layers.RNN over a cell of your own"
    if layer.stateful:
        return (
            "is a loop that keeps states from batch to batch: build it with stateful=False, and "
            "pass its states as inputs (initial_state=) and outputs (return_state=True)"
        )
    return why_not(layer.cell)


def why_not(cell) -> str | None:
    """Why a cell cannot be opened, as "it ..." goes on; None if it can, as far as is known."""
    if isinstance(cell, layers.StackedRNNCells):
        return next((reason for c in cell.cells if (reason := why_not(c))), None)
    if not is_from_keras(cell):
        if not is_plain_code(cell):
            return _OWN
        begin = getattr(cell, "get_initial_state", None)
        states = tree.flatten(begin(batch_size=1)) if begin else []
        if any(ops.any(state != 0) for state in states):
            return "is a loop that begins with other states than zeros: pass them as initial_state="
        return None
    if type(cell).__name__ not in _CELLS:
        return f"is a loop over a {type(cell).__name__}, whose steps are not known"
    convolves = type(cell).__name__ == "ConvLSTMCell"
    if convolves and (cell.rank > 2 or cell.data_format == "channels_first"):
        return (
            "is a loop of convolutions that LiteRT has no integer kernel for: take ConvLSTM1D or "
            "ConvLSTM2D with data_format='channels_last'"
        )
    if type(cell) is layers.GRUCell and not is_partable(cell):
        return (
            "is a loop over weights whose regularizer or constraint looks at all gates at once: "
            "take one of each value, such as L2 or NonNeg"
        )
    return None


def is_from_keras(cell) -> bool:
    """Whether a cell's class is Keras's own."""
    return type(cell).__module__.startswith("keras.")


def is_partable(gru) -> bool:
    """Whether what a GRU's weights are parted into can train as these do."""
    parted = [gru.bias] if gru.reset_after else [gru.recurrent_kernel]
    return all(v is None or (v.constraint is None and is_by_value(v.regularizer)) for v in parted)
