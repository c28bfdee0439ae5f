"""One training for all: masked parts compute what the smaller networks do, and train."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.search.architecture.search_architecture import search_architecture
from tfcompress.search.architecture.space import ArchitectureSpace
from tfcompress.search.architecture.supernet import DIMENSIONS, Masks, train_supernet
from tfcompress.search.architecture.training import Training
from tfcompress.search.choices import of_picks

RANDOM = np.random.default_rng(0)
Y = RANDOM.integers(0, 2, 96)
X = (RANDOM.normal(size=(96, 6, 6, 1)) + np.where(Y, 1, -1)[:, None, None, None]).astype("float32")
HOW = {
    "optimizer": keras.optimizers.Adam(0.01),
    "loss": "sparse_categorical_crossentropy",
    "metrics": ["accuracy"],
}


def normalized(x, filters, kernel, name):
    x = layers.Conv2D(filters, kernel, padding="same", name=name)(x)
    return layers.BatchNormalization(momentum=0.9)(x)


def network():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 1))
    x = layers.ReLU()(normalized(inputs, 8, 3, "stem"))
    y = normalized(layers.ReLU()(normalized(x, 8, 3, "first")), 8, 3, "second")
    x = layers.ReLU()(layers.Add(name="add")([x, y]))
    x = layers.ReLU()(normalized(x, 8, 5, "third"))
    outputs = layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    model.compile(**HOW)
    for weight in model.weights:
        if weight.name in ("beta", "bias", "gamma", "moving_mean"):
            weight.assign(RANDOM.normal(size=weight.shape, loc=0.5))
    return model


def training(model, epochs=1):
    how = dict(model._compile_config.config)
    return dataclasses.replace(Training.of((X, Y), 0.25, how, None, 1, 16, 0), epochs=epochs)


def test_a_masked_part_computes_what_the_smaller_network_does():
    space = ArchitectureSpace.of(network(), dimensions=DIMENSIONS)
    masks = Masks.of(space)
    assert "depth:add" in masks.choices
    assert {n for n in space.choices() if n.startswith("depth:")} - masks.choices.keys()
    for picks in masks.sandwich(np.random.default_rng(1)):
        small = masks.parts()(masks.without_fixed(of_picks(picks)))
        twin = masks.model
        values = [
            np.asarray(w) * mask
            for w, mask in zip(twin.trainable_variables, masks.of_part(picks), strict=True)
        ]
        fixed = [v.value for v in twin.non_trainable_variables]
        found, _ = twin.stateless_call(values, fixed, X, training=False)
        assert np.allclose(found, small(X), atol=1e-5)


def test_one_training_teaches_parts_of_all_sizes():
    model = network()
    before = [w.copy() for w in model.get_weights()]
    build = train_supernet(model, training(model), 8)
    held_out = training(model).held_out
    asked = {}

    def smallest(name, options):
        asked[name] = options
        return options[0]

    for choose in (smallest, lambda name, options: options[-1]):
        score, part = training(model, epochs=0).train(build(choose))
        accuracy = np.mean(np.argmax(part.predict(held_out[0], verbose=0), -1) == held_out[1])
        assert score == pytest.approx(accuracy)
        assert score > 0.9
    assert all(map(np.array_equal, model.get_weights(), before))
    assert "depth:third" not in asked


@pytest.mark.slow
def test_the_engine_trains_no_candidate():
    model = network()
    found = search_architecture(
        model, (X, Y), engine="supernet", supernet_epochs=4, trials=5, budget={"macs": 20_000}
    )
    assert found.engine == "supernet"
    assert found.best.costs.macs <= 20_000
    assert found.best.score > 0.8
    assert found.model.optimizer.iterations == 0


def test_what_cannot_be_is_refused():
    with pytest.raises(TypeError, match=r"'supernet' needs a keras.Model"):
        search_architecture(lambda choose: network(), (X, Y), engine="supernet", trials=1)
    model = network()
    with pytest.raises(ValueError, match="supernet_epochs"):
        search_architecture(model, (X, Y), engine="supernet", supernet_epochs=0)
