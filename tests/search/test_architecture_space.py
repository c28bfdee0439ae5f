"""The smaller architectures that a network holds, and the weights that they start with."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.graph.nodes import Graph
from tfcompress.search.architecture.blocks import stages_of
from tfcompress.search.architecture.kernels import cut_kernel, kernel_sizes
from tfcompress.search.architecture.space import ArchitectureSpace
from tfcompress.search.choices import of_picks

X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")


def conv(x, filters, kernel, name, strides=1):
    x = layers.Conv2D(filters, kernel, strides=strides, padding="same", name=name)(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def residual(x, number):
    y = conv(x, 8, 3, f"first{number}")
    y = layers.Conv2D(8, 3, padding="same", name=f"second{number}")(y)
    return layers.ReLU(name=f"relu{number}")(layers.Add(name=f"add{number}")([x, y]))


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = conv(inputs, 8, 3, "stem")
    x = residual(residual(x, 1), 2)
    x = conv(x, 16, 5, "down", strides=2)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = conv(x, 16, 1, "pointwise")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


@pytest.fixture(scope="module")
def space(network):
    return ArchitectureSpace.of(network)


def picks_of(space, **options):
    """The picks of the network as it is, but for some options."""
    picks = {}
    for name, known in space.choices().items():
        whole = 0 if name.startswith("separable:") else len(known) - 1
        picks[name] = known.index(options[name]) if name in options else whole
    return picks


def names_of(model):
    return {layer.name for layer in model.layers}


def test_blocks_that_follow_one_another_are_one_stage(network):
    stages = stages_of(Graph.of(network))
    assert [[(b.start, b.end) for b in stage] for stage in stages] == [
        [("stem_relu", "add1"), ("relu1", "add2")],
        [("down_relu", "pointwise_relu")],
    ]
    assert stages[0][0].inside == {"first1", "first1_relu", "second1", "add1"}


def test_what_can_be_chosen(space):
    assert space.choices() == {
        "depth:add1": (0, 1, 2),
        "depth:pointwise_relu": (0, 1),
        "width:stem": (4, 8),
        "width:first1": (4, 8),
        "width:first2": (4, 8),
        "width:down": (4, 8, 12, 16),
        "width:pointwise": (4, 8, 12, 16),
        "kernel:stem": (1, 3),
        "kernel:first1": (1, 3),
        "kernel:second1": (1, 3),
        "kernel:first2": (1, 3),
        "kernel:second2": (1, 3),
        "kernel:down": (3, 5),
        "separable:stem": (False, True),
        "separable:first1": (False, True),
        "separable:second1": (False, True),
        "separable:first2": (False, True),
        "separable:second2": (False, True),
        "separable:down": (False, True),
        "resolution": (4, 6, 8),
    }
    assert "width:head" in {change.layer for change in space.kept}
    assert "depth:add1" in str(space)


def test_the_largest_is_the_network_itself(network, space):
    before = [w.copy() for w in network.get_weights()]
    same = space(of_picks(picks_of(space)))
    assert np.array_equal(same(X), network(X))
    space(of_picks(dict.fromkeys(space.choices(), 0)))
    assert all(map(np.array_equal, network.get_weights(), before))


def test_fewer_blocks_are_the_first_ones(network, space):
    model = space(of_picks(picks_of(space, **{"depth:add1": 1})))
    assert "first1" in names_of(model)
    assert "first2" not in names_of(model)
    with_zero = keras.models.clone_model(network)
    with_zero.set_weights(network.get_weights())
    # relu(x + 0) = x, as x comes from a ReLU: the second block is left out.
    with_zero.get_layer("second2").set_weights([np.zeros((3, 3, 8, 8)), np.zeros(8)])
    assert np.allclose(model(X), with_zero(X), atol=1e-6)


def test_widths_keep_the_strongest_channels_of_all_that_are_added(network, space):
    model = space(of_picks(picks_of(space, **{"width:down": 4, "width:stem": 4})))
    assert model.get_layer("down").filters == 4
    assert {model.get_layer(n).filters for n in ("stem", "second1", "second2")} == {4}
    assert model.get_layer("first1").filters == 8
    kernel = np.asarray(network.get_layer("down").kernel)
    kept = np.asarray(model.get_layer("down").kernel)
    columns = [kernel[..., i] for i in range(16)]
    assert all(any(np.isin(kept[..., j], c).all() for c in columns) for j in range(4))


def test_kernels_are_cut_from_the_middle(network, space):
    picks = picks_of(space, **{"kernel:down": 3, "kernel:stem": 1})
    model = space(of_picks(picks))
    for name, middle in (("down", slice(1, 4)), ("stem", slice(1, 2))):
        whole = np.asarray(network.get_layer(name).kernel)
        assert np.array_equal(model.get_layer(name).kernel, whole[middle, middle])
        assert np.array_equal(model.get_layer(name).bias, network.get_layer(name).bias)


def test_a_small_kernel_is_the_large_one_with_an_empty_edge():
    given = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 5, strides=2, padding="same", name="c")(given)
    model = keras.Model(given, layers.GlobalAveragePooling2D()(x))
    kernel = np.asarray(model.get_layer("c").kernel)
    edge = np.zeros_like(kernel)
    edge[1:4, 1:4] = kernel[1:4, 1:4]
    model.get_layer("c").kernel.assign(edge)
    space = ArchitectureSpace.of(model, dimensions="kernel")
    assert np.allclose(space(of_picks({"kernel:c": 0}))(X), model(X), atol=1e-6)
    assert np.array_equal(cut_kernel(kernel, 2, 1), kernel[2:3, 2:3])


def test_separable_and_resolution(space):
    picks = picks_of(space, **{"separable:down": True, "resolution": 4})
    model = space(of_picks(picks))
    assert isinstance(model.get_layer("down_depthwise"), layers.DepthwiseConv2D)
    assert model.get_layer("resolution").output.shape == (None, 4, 4, 3)
    assert model(X).shape == (2, 4)


def test_of_what_is_left_out_nothing_is_asked(space):
    asked = []

    def choose(name, options):
        asked.append(name)
        return options[0]

    space(choose)
    assert not {name for name in asked if "first" in name or "second" in name}
    assert "separable:stem" not in asked  # its kernel is of one place


def test_which_kernels_can_be_cut():
    one = layers.Conv2D(4, 7, padding="same")
    assert kernel_sizes(one) == (1, 3, 5, 7)
    assert kernel_sizes(layers.Conv2D(4, 7, strides=2, padding="same")) == (3, 5, 7)
    assert kernel_sizes(layers.DepthwiseConv2D(5, padding="same")) == (3, 5)
    for other in (
        layers.Conv2D(4, 4, padding="same"),
        layers.Conv2D(4, 3),
        layers.Conv2D(4, (1, 3), padding="same"),
        layers.Conv2D(4, 3, padding="same", dilation_rate=2),
        layers.Dense(4),
    ):
        assert kernel_sizes(other) == ()


def test_sequential_networks_and_what_they_do_not_allow():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, name="c"),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    space = ArchitectureSpace.of(model)
    assert list(space.choices()) == ["width:c", "separable:c"]
    kept = {change.layer: change.detail for change in space.kept}
    assert "fit its own resolution" in kept["resolution"]
    assert "no block" in kept["depth"]
    assert "'same' padding" in kept["kernel"]
    small = space(of_picks({"width:c": 0, "separable:c": 0}))
    assert small(X).shape == (2, 4)


def test_what_cannot_be_is_refused(network):
    with pytest.raises(ValueError, match=r"'widht'.*Did you mean 'width'"):
        ArchitectureSpace.of(network, dimensions=["widht"])
    with pytest.raises(ValueError, match=r"widths must be fractions"):
        ArchitectureSpace.of(network, widths=(50,))
    tiny = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"build\(choose\)"):
        ArchitectureSpace.of(tiny)
