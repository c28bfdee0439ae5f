"""One symbolic run of a model's code, in which the layers made of layers are opened.

Keras calls every layer through `Layer.__call__`, which converts arguments, hands on masks and
`training`, and then notes one `Node`. While a recording lasts, a layer that is to be opened runs
its own `call` there on the symbolic tensors and is noted no more, so that the nodes are those of
the layers and operations inside of it; whatever its `call` takes and returns stays Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, tree

from tfcompress.graph import raw
from tfcompress.graph.copying import NotCopied
from tfcompress.graph.inputs import mask_of
from tfcompress.graph.layers import AddLoss, Constant, Parameter, SetMask
from tfcompress.graph.nodes import KERAS_NODE, correct, functional_of, has_own_call, tensors_in
from tfcompress.kinds import KERNELS, is_kernel


@dataclasses.dataclass(eq=False)
class Part:
    """One call of an opened layer.

    Attributes:
        layer: it.
        around: the opened layers around it and itself, the outermost first.
        children: what was called inside, in order: `Part`s, and the nodes of Keras.
        losses: symbolic losses that its `call` added.
        masks: those of what its `call` returned, before Keras sets that of the layer.
    """

    layer: Any
    around: tuple = ()
    children: list = dataclasses.field(default_factory=list)
    losses: list = dataclasses.field(default_factory=list)
    masks: list = dataclasses.field(default_factory=list)


class Recording:
    """What a symbolic run has noted.

    Args:
        opens: layer -> whether it is to be opened.
        anchor: a symbolic tensor, which weights take their place in the graph from.
        parameters: variable's identity -> its `Parameter`, shared by several runs.

    Attributes:
        root: the call of everything.
        nodes: those of Keras, in the order in which they were noted.
        around, training: id of a node's first output -> the opened layers around it; the
            `training` that its layer was called with.
    """

    def __init__(self, opens: Callable[[Any], bool], anchor, parameters: dict[int, Parameter]):
        self.opens, self.anchor, self.parameters = opens, anchor, parameters
        self.root = Part(None)
        self.nodes: list = []
        self.around: dict[int, tuple] = {}
        self.training: dict[int, bool | None] = {}
        self._stack = [self.root]
        self._closed = False  # inside of a layer that stays whole
        self._told: bool | None = None
        self._thread = threading.get_ident()
        self._counts: dict[int, tuple] = {}

    def is_active(self) -> bool:
        """Whether calls on this thread belong to the graph."""
        return not self._closed and threading.get_ident() == self._thread

    def call(self, original: Callable, layer, args, kwargs):
        """`Layer.__call__`."""
        if not tensors_in((args, kwargs)):
            if not _learns(layer) or not _is_concrete((args, kwargs)):
                return original(layer, *args, **kwargs)
            # A weight that was looked up by constants must not become one.
            args, kwargs, found = self._symbolic(args, kwargs)
            if not found:
                return self._alone(original, layer, args, kwargs)
        if not self.opens(layer):
            return original(layer, *args, **kwargs)
        with self._part(layer) as part:
            if functional_of(layer) is not None and kwargs.get("mask") is not None:
                # It sets the mask on its inputs, where nothing shows it to the graph.
                args = (_masked(args[0], kwargs["mask"]), *args[1:]) if args else args
            return self._finish(part, original(layer, *args, **kwargs))

    def symbolic_call(self, original: Callable, layer, args, kwargs):
        """`Layer.symbolic_call`, which `Layer.__call__` ends in."""
        part = self._stack[-1]
        if part.layer is layer:
            with self._symbolic_weights(layer):
                outputs = layer.call(*args, **kwargs)
            part.masks = [mask_of(x) for x in tree.flatten(outputs)]
            return outputs
        try:
            with self._whole():
                outputs = original(layer, *args, **kwargs)
        except Exception as error:
            if not has_own_call(type(layer)):
                raise
            raise NotCopied(
                layer,
                f"layer '{layer.name}' ({type(layer).__name__}) does not tell the shapes of what "
                f"it returns: {type(error).__name__}: {error}",
            ) from error
        self._told = kwargs.get("training")
        return outputs

    def note(self, original: Callable, node, operation, call_args, call_kwargs, outputs) -> None:
        """`Node.__init__`."""
        if isinstance(operation, keras.Layer) and operation is self._stack[-1].layer:
            return
        for one in (operation, *_makers(call_args, call_kwargs)):
            count = len(one._inbound_nodes), len(one._outbound_nodes)
            self._counts.setdefault(id(one), (one, *count))
        original(node, operation, call_args, call_kwargs, outputs)
        with self._whole():
            correct(operation, call_args, call_kwargs, node.outputs)
        self.nodes.append(node)
        self._stack[-1].children.append(node)
        key = id(node.outputs[0])
        self.around[key] = self._stack[-1].around
        if isinstance(operation, keras.Layer):
            self.training[key] = self._told

    def add_loss(self, original: Callable, layer, loss) -> None:
        """`Layer.add_loss`."""
        losses = tree.flatten(loss)
        if not tensors_in(losses):
            warnings.warn(
                f"call() of '{layer.name}' ({type(layer).__name__}) adds a loss that does not "
                "depend on its inputs, which its flat copy has not. Give the weights that it is "
                "made of a regularizer.",
                stacklevel=2,
            )
            return
        self._stack[-1].losses.extend(losses)

    def forget(self) -> None:
        """Takes the nodes of this run off the user's layers and operations again."""
        for operation, inbound, outbound in self._counts.values():
            del operation._inbound_nodes[inbound:]
            del operation._outbound_nodes[outbound:]

    def parameter(self, variable, owner) -> Any:
        """A symbolic tensor that stands for a weight."""
        if id(variable) not in self.parameters:
            self.parameters[id(variable)] = parameter_of(variable, owner)
        return self.parameters[id(variable)](self.anchor)

    @contextlib.contextmanager
    def _whole(self):
        """What a layer calls that stays whole is not noted."""
        self._closed = True
        try:
            yield
        finally:
            self._closed = False

    @contextlib.contextmanager
    def _part(self, layer):
        outer = self._stack[-1]
        part = Part(layer, (*outer.around, layer))
        outer.children.append(part)
        self._stack.append(part)
        try:
            yield part
        finally:
            self._stack.pop()

    def _symbolic(self, args, kwargs) -> tuple:
        """Arguments with their first array as a symbolic tensor, and whether there is one."""
        leaves = tree.flatten((args, kwargs))
        place = next((i for i, x in enumerate(leaves) if _is_array(x)), None)
        if place is None:
            return args, kwargs, False
        leaves[place] = Constant(np.asarray(leaves[place]))(self.anchor)
        args, kwargs = tree.pack_sequence_as((args, kwargs), leaves)
        return args, kwargs, True

    def _alone(self, original: Callable, layer, args, kwargs):
        """A layer that is called without any tensor: the code of a user's layer runs here."""
        if not has_own_call(type(layer)):
            return original(layer, *args, **kwargs)
        with self._part(layer) as part, self._symbolic_weights(layer):
            outputs = layer.call(*args, **kwargs)
            part.masks = [mask_of(x) for x in tree.flatten(outputs)]
            return self._finish(part, outputs)

    @contextlib.contextmanager
    def _symbolic_weights(self, layer):
        """Puts symbolic tensors in the place of a layer's own weights, while its `call` runs."""
        attributes = vars(layer)
        own = {k: v for k, v in attributes.items() if isinstance(v, keras.Variable)}
        made: dict[int, Any] = {}
        for variable in own.values():
            if id(variable) not in made:
                tensor = self.parameter(variable, layer)
                tensor.value = tensor  # `self.weight.value` is the weight
                made[id(variable)] = tensor
        attributes.update({name: made[id(variable)] for name, variable in own.items()})
        try:
            yield
        finally:
            attributes.update(own)

    def _finish(self, part: Part, outputs):
        """What Keras does with the outputs of the layer as a whole, as layers of their own."""
        layer, flat = part.layer, tree.flatten(outputs)
        given = {"dtype": layer.dtype_policy}
        masks = [mask_of(x) for x in flat]
        for i, x in enumerate(flat):
            if not isinstance(x, KerasTensor):
                continue
            regularizer = layer.activity_regularizer
            if part.losses or regularizer is not None:
                losses, part.losses = part.losses, []
                name = f"{layer.name}_loss"
                x = AddLoss(name=name, activity_regularizer=regularizer, **given)(x, losses)
            if masks[i] is not None and masks[i] is not part.masks[i]:
                x = SetMask(name=f"{layer.name}_mask", **given)(x, mask=masks[i])
            flat[i] = x
        self._stack[-2].losses.extend(part.losses)  # of one that gives no tensor
        return tree.pack_sequence_as(outputs, flat) if tree.is_nested(outputs) else flat[0]


def parameter_of(variable, owner: keras.Layer) -> Parameter:
    """A `Parameter` layer that holds a copy of a weight."""
    casts = owner.autocast and keras.backend.is_float_dtype(variable.dtype)
    # Its own class is known no more.
    kernel = variable.name not in KERNELS and is_kernel(owner, variable)
    parameter = Parameter(
        tuple(variable.shape),
        weight="kernel" if kernel else variable.name,
        regularizer=variable.regularizer,
        constraint=variable.constraint,
        dtype=owner.dtype_policy if casts else variable.dtype,
        name=f"{owner.name}_{variable.name}",
        trainable=bool(variable.trainable),
    )
    parameter.build(None)
    parameter.value.assign(variable)
    parameter.__dict__["source"] = variable  # not tracked: it stays the user's
    return parameter


@contextlib.contextmanager
def recorded(recording: Recording):
    """Hands the calls of Keras to a recording, and takes its nodes off the layers at the end."""
    layer, node = keras.layers.Layer, KERAS_NODE
    originals = [
        (owner, name, getattr(owner, name))
        for owner, name in (
            (layer, "__call__"),
            (layer, "symbolic_call"),
            (layer, "add_loss"),
            (node, "__init__"),
            (KerasTensor, "__getitem__"),
        )
    ]
    on_call, on_symbolic_call, on_loss, on_node, on_item = (
        original for _, _, original in originals
    )

    def call(self, *args, **kwargs):
        if recording.is_active():
            return recording.call(on_call, self, args, kwargs)
        return on_call(self, *args, **kwargs)

    def symbolic_call(self, *args, **kwargs):
        if recording.is_active():
            return recording.symbolic_call(on_symbolic_call, self, args, kwargs)
        return on_symbolic_call(self, *args, **kwargs)

    def add_loss(self, loss):
        if recording.is_active():
            return recording.add_loss(on_loss, self, loss)
        return on_loss(self, loss)

    def note(self, operation, call_args=None, call_kwargs=None, outputs=None):
        if recording.is_active():
            return recording.note(on_node, self, operation, call_args, call_kwargs, outputs)
        return on_node(self, operation, call_args, call_kwargs, outputs)

    def get_item(self, key):
        """Keras takes a single slice of a symbolic tensor in a tuple only."""
        return on_item(self, (key,) if isinstance(key, slice | type(None) | type(...)) else key)

    for (owner, name, _), new in zip(
        originals, (call, symbolic_call, add_loss, note, get_item), strict=True
    ):
        setattr(owner, name, new)
    filtering = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()  # which makes errors of others of ours
    try:
        with raw.taken(recording.is_active):
            yield recording
    finally:
        if filtering:
            keras.config.enable_traceback_filtering()
        for owner, name, original in originals:
            setattr(owner, name, original)
        recording.forget()


def _learns(layer) -> bool:
    """Whether a layer has weights that are made to train."""
    return any(x._trainable_variables for x in layer._flatten_layers())


def _makers(args, kwargs) -> list:
    """The operations that tensors come from."""
    histories = [getattr(x, "_keras_history", None) for x in tensors_in((args, kwargs))]
    return [h.operation for h in histories if h is not None and h.operation is not None]


def _masked(inputs, mask):
    """Tensors with the masks that a Functional model is called with."""
    masks = tree.flatten(mask)
    flat = [
        x if m is None or m is mask_of(x) else SetMask(name="mask")(x, mask=m)
        for x, m in zip(tree.flatten(inputs), masks, strict=True)
    ]
    return tree.pack_sequence_as(inputs, flat) if tree.is_nested(inputs) else flat[0]


def _is_array(x) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, keras.Variable)


def is_concrete_array(x) -> bool:
    """Whether something is an array that has values, and no weight."""
    return _is_array(x) and _is_concrete(x)


def _is_concrete(structure) -> bool:
    """Whether all arrays of a structure have values, as tensors of a tf.function have not."""
    try:
        for x in filter(_is_array, tree.flatten(structure)):
            np.asarray(x)
    except Exception:
        return False
    return True
