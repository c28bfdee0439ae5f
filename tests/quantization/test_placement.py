"""Where fake-quantization goes: which tensors get one, which share one, which have none."""

import warnings

import keras
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.graph.nodes import Graph
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.quantization.kernels import has_kernel, relu_name


def ranges_of(inputs, outputs, **settings) -> dict[str, FakeQuant]:
    """What quantizes the output of which operation, by the operation's name."""
    graph = Graph.of(tfc.quantize_aware(keras.Model(inputs, outputs), **settings))
    return {
        graph.producer(node.inputs[0]).name: node.operation
        for node in graph.nodes
        if isinstance(node.operation, FakeQuant)
    }


def image(channels: int = 4):
    return keras.Input((8, 8, channels), name="x")


def conv(x, name: str, **kwargs):
    return layers.Conv2D(4, 1, name=name, **kwargs)(x)


def test_one_after_convolution_batch_norm_and_relu():
    for relu, name in ((layers.ReLU(), "relu"), (layers.ReLU(6.0), "relu6")):
        x = image()
        y = relu(layers.BatchNormalization(name="norm")(conv(x, "conv")))
        found = ranges_of(x, y)
        assert set(found) == {"x", "norm"}  # the ReLU is gone
        assert (found["x"].activation, found["norm"].activation) == (None, name)


def test_an_activation_of_the_layer_itself_is_taken_out_of_it():
    x = image()
    found = ranges_of(x, conv(x, "conv", activation="relu"))
    assert set(found) == {"x", "conv"}
    assert found["conv"].activation == "relu"


def test_another_activation_has_a_range_before_and_after():
    x = image()
    found = ranges_of(x, layers.LeakyReLU(name="leaky")(conv(x, "conv")))
    assert set(found) == {"x", "conv", "leaky"}


@pytest.mark.parametrize(
    "function",
    [
        layers.MaxPooling2D(),
        layers.GlobalMaxPooling2D(),
        layers.Reshape((4, 64)),
        layers.Flatten(),
        layers.ZeroPadding2D(),
        layers.Cropping2D(),
        layers.Permute((3, 1, 2)),
        layers.UpSampling2D(),
        layers.Dropout(0.5),
        layers.GaussianNoise(0.1),
        layers.Identity(),
        lambda x: x[:, 1:3],
        lambda x: ops.transpose(x, (0, 2, 1, 3)),
        lambda x: ops.split(x, 2, axis=-1),
        lambda x: ops.tile(x, (1, 2, 1, 1)),
    ],
    ids=lambda f: getattr(f, "name", "operation"),
)
def test_nothing_after_what_keeps_the_scale(function):
    x = image()
    assert set(ranges_of(x, function(conv(x, "conv")))) == {"x", "conv"}


def test_averages_are_rounded_again_by_the_same_range():
    for layer in (
        layers.AveragePooling2D(2, name="mean"),
        layers.UpSampling2D(interpolation="bilinear", name="mean"),
        layers.Resizing(4, 4, name="mean"),
    ):
        x = image()
        found = ranges_of(x, layer(conv(x, "conv")))
        assert set(found) == {"x", "conv", "mean"}
        assert found["conv"] is found["mean"]
        assert found["conv"].sources == 1


def test_add_has_a_range_of_its_own_and_takes_in_its_relu():
    x = image()
    found = ranges_of(x, layers.ReLU()(layers.Add(name="add")([conv(x, "conv"), x])))
    assert set(found) == {"x", "conv", "add"}
    assert len({id(f) for f in found.values()}) == 3
    assert found["add"].activation == "relu"


def test_concatenate_shares_one_range_also_through_pooling():
    x = image()
    pooled = layers.MaxPooling2D()(conv(x, "a", activation="relu"))
    strided = conv(x, "b", strides=2)
    found = ranges_of(x, layers.Concatenate()([pooled, strided]))
    assert set(found) == {"x", "a_activation", "b"}  # the shared range does not start at 0
    assert found["a_activation"] is found["b"]
    assert (found["b"].sources, found["b"].activation) == (2, None)


def test_chains_of_concatenate_share_one_range_as_in_densenet():
    x = image()
    y = conv(x, "stem")
    for number in range(3):
        y = layers.Concatenate()([y, conv(y, f"conv{number}")])
    found = ranges_of(x, y)
    shared = {id(found[name]) for name in ("stem", "conv0", "conv1", "conv2")}
    assert len(shared) == 1
    assert found["stem"].sources == 4


def test_a_tensor_read_twice_keeps_its_relu_apart():
    x = image()
    y = conv(x, "conv")
    found = ranges_of(x, layers.Add(name="add")([y, layers.ReLU(name="relu")(y)]))
    assert set(found) == {"x", "conv", "relu", "add"}
    assert found["conv"].activation is None


def test_an_output_of_the_model_is_not_fused_away():
    x = image()
    y = conv(x, "conv")
    found = ranges_of(x, [y, layers.ReLU(name="relu")(y)])
    assert {f.activation for f in found.values()} == {None}
    assert len(found) == 3


def test_fixed_ranges():
    x = keras.Input((6,), name="x")
    dense = layers.Dense(4)(x)
    outputs = [
        layers.Softmax(name="softmax")(dense),
        layers.Activation("sigmoid", name="sigmoid")(dense),
        layers.Activation("tanh", name="tanh")(dense),
    ]
    expected = {8: [(0, 255 / 256), (0, 255 / 256), (-1, 127 / 128)], 16: [(-1, 32767 / 32768)] * 3}
    for bits, limits in expected.items():
        found = [f.fixed for f in ranges_of(x, outputs, activation_bits=bits).values() if f.fixed]
        assert found == limits


def test_a_fixed_range_is_shared_only_by_its_own_kind():
    x = keras.Input((6,), name="x")
    gates = [layers.Dense(4, activation="sigmoid")(x) for _ in range(2)]
    linear = layers.Dense(4, name="linear")(x)
    alike = ranges_of(x, layers.Concatenate()(gates))
    assert (0.0, 255 / 256) in {f.fixed for f in alike.values()}
    mixed = ranges_of(x, layers.Concatenate()([gates[0], linear]))
    assert {f.fixed for f in mixed.values()} == {None}


def test_constants_among_the_values_take_part_in_the_range():
    x = keras.Input((4, 4), name="x")
    for name, y in (
        ("maximum", ops.maximum(x, 10.0)),
        ("minimum", ops.minimum(x, -10.0)),
        ("pad", ops.pad(x, [[0, 0], [1, 1], [0, 0]], constant_values=10.0)),
        ("concatenate", ops.concatenate([x, ops.ones((1, 4, 4))], axis=0)),
    ):
        found = ranges_of(x, y)
        assert len(found) == 2, name
        assert len({id(f) for f in found.values()}) == 1
        assert found["x"].sources == 2


def test_a_batch_norm_alone_has_a_range():
    x = image()
    y = layers.MaxPooling2D()(conv(x, "conv"))
    found = ranges_of(x, layers.BatchNormalization(name="norm")(y))
    assert set(found) == {"x", "conv", "norm"}


def test_a_batch_norm_over_another_axis_is_not_folded():
    x = image()
    found = ranges_of(x, layers.BatchNormalization(axis=1, name="norm")(conv(x, "conv")))
    assert set(found) == {"x", "conv", "norm"}


def test_dense_before_batch_norm_has_a_scale_per_channel():
    x = keras.Input((6,))
    y = layers.Dense(4, name="alone")(layers.BatchNormalization()(layers.Dense(5, name="first")(x)))
    qat = tfc.quantize_aware(keras.Model(x, y))
    axes = {name: qat.get_layer(name).bound[0].techniques[0].axes for name in ("first", "alone")}
    assert axes == {"first": (1,), "alone": ()}


def test_an_unsupported_operation_stays_float_and_says_so():
    x = image()
    sin = ops.sin(conv(x, "before"))
    with pytest.warns(UserWarning, match=r"stay float.*'sin.* \(Sin\)"):
        found = ranges_of(x, conv(sin, "after"))
    named = sin._keras_history.operation.name  # numbered if other tests made one before
    assert {name: bool(f.float_source) for name, f in found.items()} == {
        "x": False, "before": False, named: True, "after": False,
    }  # fmt: skip


def test_a_skipped_layer_stays_float_without_a_warning():
    x = image()
    y = conv(conv(x, "skipped", activation="tanh"), "after")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ranges_of(x, y, skip=["skipped"])
    assert set(found) == {"x", "skipped", "after"}
    assert found["skipped"].float_source
    assert found["skipped"].fixed is None


def test_a_skipped_layer_does_not_take_its_neighbours_along():
    x = image()
    both = layers.Concatenate()([conv(x, "skipped"), conv(x, "other")])
    found = ranges_of(x, both, skip=["skipped"])
    assert found["skipped"] is found["other"]
    assert found["other"].float_source == [0]


def test_a_skipped_last_layer_gives_plain_floats():
    x = image()
    found = ranges_of(x, conv(conv(x, "first"), "last"), skip=["last"])
    assert set(found) == {"x", "first"}


def test_an_input_that_only_floats_read_is_observed_but_not_rounded():
    x = image()
    found = ranges_of(x, conv(layers.Identity()(conv(x, "skipped")), "after"), skip=["skipped"])
    assert {name: f.observes for name, f in found.items()} == {
        "x": True, "skipped": False, "after": False,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:these operations stay float")
def test_floats_read_what_floats_give_before_it_is_rounded():
    x = image()
    y = ops.sin(x)
    qat = tfc.quantize_aware(keras.Model(x, [conv(x, "a"), conv(y, "b"), conv(ops.cos(y), "c")]))
    graph = Graph.of(qat)
    nodes = [n for n in graph.nodes if not n.is_input and not isinstance(n.operation, FakeQuant)]
    before = [type(graph.producer(n.inputs[0]).operation).__name__ for n in nodes]
    read = dict(zip([n.name.split("_")[0] for n in nodes], before, strict=True))
    assert read == dict.fromkeys("abc", "FakeQuant") | {"sin": "InputLayer", "cos": "Sin"}


def test_integer_inputs_have_none_and_embeddings_their_own_grid():
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    x = keras.Input((5, 4), name="x")
    rows = layers.Embedding(20, 4, name="rows")(tokens)
    assert ranges_of(tokens, rows) == {}
    found = ranges_of([tokens, x], layers.Concatenate()([rows, x]))
    assert found["rows"] is found["x"]
    found = ranges_of(tokens, layers.AveragePooling1D(2, name="mean")(rows))
    assert found["rows"] is found["mean"]


def test_two_inputs_have_ranges_of_their_own():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    found = ranges_of([a, b], layers.Multiply(name="product")([a, b]))
    assert set(found) == {"a", "b", "product"}
    assert len({id(f) for f in found.values()}) == 3


def test_a_layer_called_twice_has_a_range_for_each_call():
    x = keras.Input((4,), name="x")
    dense = layers.Dense(4, name="dense")
    graph = Graph.of(tfc.quantize_aware(keras.Model(x, dense(dense(x)))))
    names = [n.name for n in graph.nodes if isinstance(n.operation, FakeQuant)]
    assert names == ["x_range", "dense_range", "dense__output"]


def test_weights_only():
    x = image()
    assert ranges_of(x, conv(x, "conv"), activation_bits=None) == {}


@pytest.mark.parametrize(
    ("layer", "name", "kernel"),
    [
        (layers.ReLU(), "relu", True),
        (layers.ReLU(6.0), "relu6", True),
        (layers.Activation("relu6"), "relu6", True),
        (layers.ReLU(negative_slope=0.1), None, True),
        (layers.ReLU(4.0), None, False),
        (layers.ReLU(threshold=1.0), None, False),
        (layers.ReLU(6.0, negative_slope=0.1), None, False),
        (layers.Activation("selu"), None, False),
        (layers.Activation("gelu"), None, True),
    ],
)
def test_kinds_of_activations(layer, name, kernel):
    assert relu_name(layer) == name
    assert has_kernel(layer) is kernel
