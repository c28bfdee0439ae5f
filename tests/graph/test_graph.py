"""Graphs and flat copies: the user's model stays as it is, what cannot be copied is named."""

import os
import sys
import warnings

import graph_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from graph_models import (
    Block,
    difference,
    flat_and_equal,
    names,
    normal,
    register,
    sequential,
    shake,
    subclassed,
)
from keras import layers, ops

import tfcompress as tfc
from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.flatten import flatten
from tfcompress.graph.layers import Parameter
from tfcompress.graph.nodes import Graph
from tfcompress.graph.tracing import trace

# A fixture of all modules about graphs.
_seeded = graph_models.seeded


# The user's model, errors, size


def test_the_model_keeps_its_graph_its_compilation_and_can_be_saved(tmp_path):
    x = keras.Input((8,))
    middle = layers.Dense(4, name="middle")
    model = keras.Model(x, sequential(layers.Dense(3), size=4)(middle(x)))
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(normal(4, 8), normal(4, 3), verbose=0)
    output, config = middle.output, model.get_config()
    first, second = flatten(model), flatten(model)
    assert middle.output is output
    assert model.get_config() == config
    assert model.compiled
    assert int(model.optimizer.iterations) == 1
    assert difference(first(normal(4, 8)), second(normal(4, 8))) == 0.0
    model.evaluate(normal(4, 8), normal(4, 3), verbose=0)
    model.save(os.path.join(tmp_path, "model.keras"))
    first.layers[1].kernel.assign(first.layers[1].kernel * 0)
    assert difference(second(normal(4, 8)), model(normal(4, 8))) == 0.0


def test_not_a_model():
    for wrong, words in (
        ("model.keras", r"received builtins.str.*load_model\('model.keras'\)"),
        (type("Model", (), {"__module__": "tf_keras.src"})(), "tf_keras.*tfcompress migrate"),
        (None, "received builtins.NoneType"),
    ):
        with pytest.raises(TypeError, match=words):
            flatten(wrong)


def test_not_built():
    with pytest.raises(ValueError, match=r"'empty'.*is not built.*Call it once on a batch"):
        flatten(keras.Sequential([layers.Dense(3)], name="empty"))

    class Unbuilt(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match=r"Unbuilt.*is not built"):
        flatten(Unbuilt(), inputs=keras.Input((3,)))


@register
class Raw(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(8)

    def call(self, x):
        return tf.nn.crelu(self.dense(x))


@register
class Branch(Raw):
    def call(self, x):
        x = self.dense(x)
        return x if ops.sum(x) > 0 else -x


def test_an_untraceable_layer_is_named_and_stays_one_node(tmp_path):
    model = subclassed(
        lambda self, x, t: self.top(self.block(x)),
        {"block": sequential(Raw(name="culprit")), "top": layers.Dense(3, name="top")},
        normal(4, 8),
    )
    with pytest.warns(UserWarning, match=r"'culprit'.*cannot be traced.*keras.ops.*one node"):
        flat = flatten(model)
    assert names(flat) == ["culprit", "top"]
    assert difference(model(normal(4, 8)), flat(normal(4, 8))) == 0.0
    assert flat.count_params() == model.count_params()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(flatten(flat)) == ["culprit", "top"]


def test_code_that_cannot_run_on_symbolic_tensors_is_named():
    layer = Branch(name="culprit")
    layer(normal(4, 8))
    model = subclassed(lambda self, x, t: self.layer(x), {"layer": layer}, normal(4, 8))
    with pytest.raises(ValueError, match=r"'culprit'.*cannot be traced.*keras.ops"):
        flatten(model)


def test_keep_leaves_an_untraceable_layer_as_one_node(tmp_path):
    model = sequential(Raw(name="raw"), layers.Dense(3, name="top"))
    wanted = model(normal(4, 8))
    flat = flatten(flatten(model, keep=["raw"]))
    assert names(flat) == ["raw", "top"]
    assert difference(wanted, flat(normal(4, 8))) == 0.0


class Incomplete(layers.Layer):
    def __init__(self, units, factor=1.0, size=8, **kwargs):
        super().__init__(**kwargs)
        self.units, self.factor, self.size = units, factor, size

    def build(self, shape):
        self.w = self.add_weight(shape=(self.size,), name="w")

    def call(self, x):
        return x * self.factor + self.w[:1]

    def get_config(self):
        return {"name": self.name}


class Defaults(Incomplete):
    def __init__(self, factor=1.0, size=8, **kwargs):
        super().__init__(3, factor, size, **kwargs)


class Random(Defaults):
    def __init__(self, factor=1.0, size=8, **kwargs):
        super().__init__(factor, size, **kwargs)
        self.seeds = keras.random.SeedGenerator(0)


@pytest.mark.parametrize(
    "layer", [Incomplete(3), Defaults(factor=3.0), Defaults(size=4)], ids=["args", "value", "size"]
)
def test_layers_that_cannot_be_copied_are_opened(layer, tmp_path):
    x = keras.Input((8,))
    flat = flat_and_equal(shake(keras.Model(x, layer(x))), normal(4, 8), tmp_path)
    assert [type(x) for x in flat.layers[1:]] == [Parameter]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"factor": 3.0}, r"'random\w*' \(Random\) has factor=3.0, but its copy.*1.0"),
        ({"size": 4}, r"has 2 variables of shapes \[\(4,\).*\[\(8,\).*get_config"),
    ],
)
def test_incomplete_get_config_is_named(settings, words):
    x = keras.Input((8,))
    with pytest.raises(ValueError, match=words):
        flatten(keras.Model(x, Random(**settings)(x)))


def test_a_layer_that_keras_writes_no_configuration_of():
    x = keras.Input((8,))
    policy = keras.DTypePolicy("float32")
    model = keras.Model(x, layers.Identity(dtype=policy)(layers.Dense(3)(x)))
    flat_and_equal(model, normal(4, 8))


@pytest.mark.slow
def test_deep_models_do_not_reach_the_recursion_limit():
    blocks = [
        sequential(*(layers.Rescaling(1.0, 0.5) for _ in range(125)), name=f"part_{i}")
        for i in range(8)
    ]
    limit = sys.getrecursionlimit()
    flat = flatten(sequential(*blocks))
    assert len(flat.layers) == 1 + 8 * 125
    assert sys.getrecursionlimit() == limit
    assert difference(flat(normal(1, 8)), normal(1, 8) + 500.0) < 1e-3


# The parts


def test_neighbours_and_rebuild():
    x = keras.Input((8,), name="x")
    a = layers.Dense(8, name="a")(x)
    b = layers.ReLU(name="b")(a)
    model = keras.Model(x, [layers.Add(name="c")([a, b]), b])
    graph = Graph.of(model)
    by_name = {node.name: node for node in graph.nodes}
    assert [node.name for node in graph.nodes] == ["x", "a", "b", "c"]
    out = {name: node.outputs[0] for name, node in by_name.items()}
    assert graph.producer(out["b"]) is by_name["b"]
    assert graph.consumers(out["a"]) == [by_name["b"], by_name["c"]]
    assert graph.only_consumer(out["x"]) is by_name["a"]
    assert graph.only_consumer(out["a"]) is None
    assert graph.only_consumer(out["b"]) is None
    assert graph.is_output(out["b"])

    def negated(node, *args, **kwargs):
        y = args[0] if node.is_input else node.operation(*args, **kwargs)
        return -y if node.name == "a" else y

    new = Graph.of(model).rebuild(negated, batch_size=4)
    assert new.input_shape == (4, 8)
    h = -model.get_layer("a")(normal(4, 8))
    assert difference(new(normal(4, 8)), [h + ops.relu(h), ops.relu(h)]) == 0.0


def test_rebuilding_numbers_new_operations_whose_names_are_taken():
    x = keras.Input((8,))
    model = keras.Model(x, layers.ReLU(name="multiply")(x))
    keras.backend.clear_session()  # as in a new process: names are given from the start

    def scaled(node, *args):
        return args[0] if node.is_input else ops.multiply(node.operation(*args) * 2.0, 3.0)

    new = Graph.of(model).rebuild(scaled)
    assert names(new) == ["multiply", "multiply_2", "multiply_1"]
    assert difference(new(normal(4, 8)), 6.0 * np.maximum(normal(4, 8), 0.0)) == 0.0


def test_a_graph_between_inner_tensors_starts_there():
    x = keras.Input((8,))
    a = layers.Dense(8, name="a")(x)
    b = layers.Dense(8, name="b")(a)
    piece = Graph([a], ops.relu(b) + a)
    assert next(node.name for node in piece.nodes) == "b"
    other = layers.Dense(8)(x)
    again = piece.run([other], lambda node, *args, **kwargs: node.operation(*args, **kwargs))
    assert again.shape == (None, 8)


def test_trace_and_copies():
    block = Block(8, name="block")
    block(normal(4, 8))
    graph = trace(block, (keras.Input((8,)),), {})
    kinds = [type(node.operation).__name__ for node in graph.nodes if not node.is_input]
    assert kinds == [
        "Parameter",
        "Dense",
        "BatchNormalization",
        "Add",
        "Relu",
        "Multiply",
        "Subtract",
        "Dropout",
    ]
    dense = layers.Dense(3, name="head")
    dense.build((None, 8))
    twin = copy_operation(dense)
    twin.build((None, 8))
    copy_weights([(dense, twin)])
    assert twin.name == "head"
    assert difference(twin.kernel, dense.kernel) == 0.0
    twin.kernel.assign(twin.kernel + 1.0)
    assert difference(twin.kernel, dense.kernel) > 0.5
    with pytest.raises(ValueError, match=r"'head'.*variables of shapes"):
        copy_weights([(dense, layers.Dense(3))])


def test_copies_of_operations_that_keras_cannot_write():
    operation = ops.image.resize(keras.Input((4, 4, 2)), np.array([3, 5]))._keras_history.operation
    with pytest.raises(NotImplementedError):
        operation.get_config()
    twin = copy_operation(operation)
    assert twin(np.ones((1, 4, 4, 2), "float32")).shape == (1, 3, 5, 2)
    assert operation._inbound_nodes
    assert not twin._inbound_nodes


def application(name, size):
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=7)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("MobileNetV3Small", 32, marks=pytest.mark.slow),
        pytest.param("EfficientNetB0", 32, marks=pytest.mark.slow),
        pytest.param("ConvNeXtTiny", 32, marks=pytest.mark.slow),
        pytest.param("NASNetMobile", 32, marks=pytest.mark.slow),
    ],
)
def test_applications(name, size, tmp_path):
    flat_and_equal(application(name, size), 100 * normal(1, size, size, 3), tmp_path)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_models_that_keras_quantized_are_refused_at_once(mode, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(2)])
    before = keras.models.clone_model(model)
    before.set_weights(model.get_weights())  # the way out that is told
    nested = keras.Sequential([keras.Input((4,)), model])
    model.quantize(mode)
    rules = [tfc.Rule("*", [tfc.Prune(0.5)])]
    uses = {
        "flatten": tfc.flatten,
        "compress": lambda model: tfc.compress(model, rules),
        "quantize_aware": tfc.quantize_aware,
        "convert": lambda model: tfc.convert(model, tmp_path / "model.tflite"),
        "finalize": tfc.finalize,
        "profile": tfc.profile,
        "prune_channels": lambda model: tfc.prune_channels(model, macs=0.5, round_to=1),
        "factorize": lambda model: tfc.factorize(model, rank=1),
        "fold": tfc.fold_batch_norm,
        "student": lambda model: tfc.Distiller(model, before),
    }
    for use in uses.values():
        for each in (model, nested):
            with pytest.raises(
                ValueError, match=rf"quantized: layer .* is {mode}.*before model\.quantize\(\)"
            ):
                use(each)
    assert tfc.Distiller(before, model).student is not None
    for name in ("compress", "flatten", "profile"):
        uses[name](before)
