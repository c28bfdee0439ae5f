"""walk: what nodes get and give, batch by batch."""

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.nodes import Graph, call_node
from tfcompress.post_training.kernels import kernels_of, on_grid
from tfcompress.post_training.walk import run, walk


def branched():
    x = keras.Input((6, 6, 2), name="image")
    y = layers.Conv2D(3, 3, name="conv")(x)
    z = layers.ReLU(name="relu")(y)
    z = layers.DepthwiseConv2D(3, name="dw")(z)
    return keras.Model(x, {"a": layers.Dense(2, name="head")(layers.Flatten()(z)), "b": y})


def test_outputs_are_those_of_the_model_and_changes_go_on():
    model = branched()
    graph = Graph.of(model)
    x = np.random.default_rng(0).normal(size=(6, 6, 6, 2)).astype("float32")
    batches = [[x[:4]], [x[4:]]]
    found, wanted = walk(graph, batches), model.predict(x, verbose=0)
    for key in wanted:
        got = np.concatenate([ops.convert_to_numpy(each[key]) for each in found])
        np.testing.assert_allclose(got, wanted[key], rtol=1e-5, atol=1e-6)

    def doubled(node, calls):
        made = run(node, calls)
        return [2.0 * each for each in made] if node.name == "relu" else made

    changed = walk(graph, batches, doubled)
    other = graph.run(
        [x], lambda n, *a, **k: call_node(n, *a, **k) * (2.0 if n.name == "relu" else 1.0)
    )
    got = np.concatenate([ops.convert_to_numpy(each["a"]) for each in changed])
    np.testing.assert_allclose(got, other["a"], rtol=1e-5, atol=1e-6)


def test_kernels_have_the_axes_that_litert_scales():
    graph = Graph.of(branched())
    found = {kernel.name: kernel.axes for kernel in kernels_of(graph)}
    assert found == {"conv": (3,), "dw": (2, 3), "head": (1,)}
    found = {k.name: k.axes for k in kernels_of(graph, convolution="per_tensor")}
    assert found == {"conv": (), "dw": (), "head": (1,)}
    grid = on_grid(np.array([[0.3, -2.0], [0.9, 0.1]]), np.array([[0.25, 0.0]]), bits=2)
    np.testing.assert_array_equal(grid, np.array([[0.25, 0.0], [0.25, 0.0]], np.float32))
