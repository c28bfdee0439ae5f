"""Channels and bits learned together: relaxed weights and costs, budgets, what the task needs."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.post_training.kernels import kernels_of, on_grid
from tfcompress.search import choose_channels_and_bits as module
from tfcompress.search.choose_channels_and_bits import choose_channels_and_bits
from tfcompress.search.gates import Gates, Options
from tfcompress.surgery.base import opened
from tfcompress.surgery.macs import count
from tfcompress.surgery.pruning.groups import Structure
from tfcompress.surgery.pruning.resizing import resized
from tfcompress.techniques.scales import weight_scale

RANDOM = np.random.default_rng(0)
Y = RANDOM.integers(0, 2, 96)
X = (RANDOM.normal(size=(96, 6, 6, 1)) + np.where(Y, 1, -1)[:, None, None, None]).astype("float32")


def network():
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((6, 6, 1))
    y = layers.Conv2D(16, 3, padding="same", use_bias=False, name="first")(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    z = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    z = layers.Conv2D(16, 1, name="second")(z)
    x = layers.ReLU()(layers.Add()([y, z]))
    x = layers.Conv2D(24, 3, strides=2, activation="relu", name="third")(x)
    x = layers.Dense(2, activation="softmax", name="head")(layers.Flatten()(x))
    model = keras.Model(inputs, x, name="net")
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy",
                  metrics=["accuracy"], jit_compile=False)  # fmt: skip
    return model


@pytest.fixture(scope="module")
def trained():
    model = network()
    model.fit(X, Y, epochs=3, verbose=0)
    return model


def gates_of(model, bits=(8, 4)):
    structure = Structure(opened(model))
    table = {"bytes": [1.0, 0.5], "macs": [30.0, 10.0], "ms": [2.0, 1.0]}
    costs = {name: np.array(each, "float32") for name, each in table.items()}
    every = [Options(kernel, bits, costs) for kernel in kernels_of(structure.graph)]
    return Gates(structure, every, {n: RANDOM.normal(size=g.size)
                                    for n, g in structure.prunable().items()})  # fmt: skip


CHOICE = {"first": np.array([1, 2, 5, 11]), "third": np.arange(3, 20)}
BITS = {"first": 8, "depthwise": 4, "second": 4, "third": 8, "head": 4}


def test_a_chosen_network_computes_what_the_smaller_one_does_on_its_grids(trained):
    gates = gates_of(trained)
    assert gates.stay.keys() == CHOICE.keys()
    flat, odds = gates.structure.model, gates.chosen(CHOICE, BITS)
    flat.get_layer("second").trainable = False
    values = (flat.trainable_variables, flat.non_trainable_variables)
    found, _ = flat.stateless_call(*(gates.weights(odds, each) for each in values), X[:9])
    for kernel in kernels_of(gates.structure.graph):
        bits = BITS[kernel.name]
        scale = weight_scale(kernel.value, kernel.reduced, bits, "max")
        kernel.variable.assign(on_grid(kernel.value, scale, bits))
    expected = resized(gates.structure, CHOICE)(X[:9])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_costs_of_a_chosen_network_are_those_of_its_kernels(trained):
    gates = gates_of(trained)
    odds = gates.chosen(CHOICE, BITS)
    weights = {"first": 9 * 4, "depthwise": 9 * 4, "second": 4 * 4, "third": 9 * 4 * 17,
               "head": 4 * 17 * 2}  # fmt: skip
    made = 4 + 4 + 4 + 17 + 2
    expected = sum(n * BITS[name] / 8 for name, n in weights.items()) + 24 * made
    assert float(gates.cost("bytes", odds)) == pytest.approx(expected)
    whole = {"first": 9 * 16, "depthwise": 9 * 16, "second": 256, "third": 9 * 16 * 24,
             "head": 4 * 24 * 2}  # fmt: skip
    macs = sum({8: 30, 4: 10}[BITS[n]] * weights[n] / whole[n] for n in weights)
    assert float(gates.cost("macs", odds)) == pytest.approx(macs)
    assert gates.shape_left(gates.layers["head"].kernel, odds) == (4 * 17, 2)


def test_expected_costs_and_weights_are_means_by_odds(trained):
    gates = gates_of(trained)
    stay = {name: np.full(v.shape, 0.25, "float32") for name, v in gates.stay.items()}
    bits = dict.fromkeys(gates.layers, np.array([0.5, 0.5], "float32"))
    ms = sum(1.5 * share for share in (0.25, 0.25, 0.25**2, 0.25**2, 0.25))
    assert float(gates.cost("ms", (stay, bits))) == pytest.approx(ms)
    second = gates.layers["second"].kernel
    each = [on_grid(second.value, weight_scale(second.value, second.reduced, b, "max"), b)
            for b in (8, 4)]  # fmt: skip
    (found,) = gates.weights((stay, bits), [second.variable])
    np.testing.assert_allclose(found, 0.25 * np.mean(each, axis=0), atol=1e-6)


def test_draws_follow_the_odds(trained):
    gates = gates_of(trained)
    keras.utils.set_random_seed(0)
    for logits in gates.variables:
        logits.assign(np.linspace(2, -2, logits.shape[0]))
    drawn = [gates.drawn(0.01) for _ in range(120)]
    stay, bits = gates.odds()
    for expected, place, name in ((stay["third"], 0, "third"), (bits["head"], 1, "head")):
        found = np.mean([each[place][name] for each in drawn], axis=0)
        np.testing.assert_allclose(found, expected, atol=0.15)


@pytest.fixture(scope="module")
def found(trained):
    told = []
    found = choose_channels_and_bits(
        trained, (X, Y), flash=5_400, epochs=3, round_to=2, target="microcontroller",
        progress=lambda *each: told.append(each),
    )  # fmt: skip
    return found, told


def test_the_file_is_within_its_budget_to_the_byte(found, trained, tmp_path):
    found, told = found
    path = tmp_path / "small.tflite"
    tfc.convert(found.model, path, precision=found.precisions, calibration=X,
                target="microcontroller")  # fmt: skip
    assert path.stat().st_size == found.file["bytes"]
    assert 4_900 < found.file["bytes"] <= 5_400 < found.int8["bytes"]
    assert found.file["macs"] == count(found.model)[0]
    assert found.int8["macs"] == count(trained)[0]
    assert [each for each in told if each[0] == "learn odds"][-1] == ("learn odds", 3, 3)


def test_the_result_tells_layers_and_makes_a_recipe(found):
    found, _ = found
    for row in found.layers:
        kernel = found.model.get_layer(row.layer).kernel
        assert row.weights == np.prod(kernel.shape)
        assert row.bytes == -(-row.weights * row.bits // 8)
    widths = {row.layer: row.channels for row in found.layers}
    assert widths["first"] == widths["second"] == (16, found.model.get_layer("first").filters)
    assert all(now % 2 == 0 for _, now in widths.values())
    techniques = {row.layer: row.bits for row in found.layers}
    for name, bits in techniques.items():
        (technique,) = found.recipe.techniques_of(found.model.get_layer(name))
        assert technique.bits == bits
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["precisions"] == {n: f"int{bits}" for n, bits in techniques.items()}
    assert "channels and bits for flash 5,400" in str(found)
    assert f"chosen: {found.file['bytes']:,.0f} bytes" in str(found)


@pytest.mark.slow
def test_the_given_model_stays_as_it_is_and_a_seed_repeats(trained):
    before = [np.array(w) for w in trained.weights]
    each = [choose_channels_and_bits(trained, (X, Y), macs=0.5, epochs=1, seed=4) for _ in range(2)]
    assert each[0].layers == each[1].layers
    for one, other in zip(each[0].model.weights, each[1].model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    for old, new in zip(before, trained.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert 0.35 < each[0].file["macs"] / each[0].int8["macs"] <= 0.5


def test_bits_go_where_the_task_needs_them():
    """The weights of one layer are on a grid of 4 bits, those of the other are not."""
    coarse = RANDOM.integers(-7, 8, (128, 64)) / 7.0
    coarse[0] = 1.0
    fine = RANDOM.normal(size=(128, 64))
    x = RANDOM.normal(size=(512, 256)).astype("float32")
    y = x[:, :128] @ coarse + x[:, 128:] @ fine
    inputs = keras.Input((256,))
    parts = [
        layers.Dense(64, name=name)(layers.Lambda(cut, output_shape=(128,))(inputs))
        for name, cut in (("coarse", lambda x: x[:, :128]), ("fine", lambda x: x[:, 128:]))
    ]
    model = keras.Model(inputs, layers.Add()(parts))
    model.get_layer("coarse").kernel.assign(coarse)
    model.get_layer("fine").kernel.assign(fine)
    model.compile(keras.optimizers.Adam(1e-4), "mse", jit_compile=False)
    both = choose_channels_and_bits(model, (x, y), flash=10**6, bits=(4, 8), epochs=1)
    assert set(both.precisions.values()) == {"int8"}  # Within the budget bits cost nothing.
    found = choose_channels_and_bits(
        model, (x, y), flash=int(both.int8["bytes"]) - 2000, bits=(8, 4), epochs=12
    )
    assert found.precisions == {"coarse": "int4", "fine": "int8"}


def test_latency_is_measured_and_the_cut_corrected(trained, monkeypatch):
    class Timed:
        def __init__(self, threads, accelerator):
            assert (threads, accelerator) == (2, None)

        def compared(self, base, others):
            compared.append(len(others))
            return 1.0, dict.fromkeys(others, 0.5 if len(compared) > 1 else np.inf)

        def measured(self, folder, contents, whole):
            assert whole
            ratios.append(0.9 if not ratios else 0.58)
            return 1.0, ratios[-1:]

    ratios, compared = [], []
    monkeypatch.setattr(module, "Clock", Timed)
    found = choose_channels_and_bits(
        trained, (X, Y), latency=0.6, bits=(0, 4, 8), epochs=1, threads=2
    )
    assert (ratios, compared) == ([0.9, 0.58], [1] * 5)
    assert found.precisions["first"] == "int8"  # It does not run in 4 bits.
    assert found.file["latency"] == 0.58
    assert "0.58 of int8's latency" in str(found)


@pytest.mark.parametrize(("given", "message"), [
    ({}, "needs a budget; received none"),
    ({"flash": 0}, r"flash must be a number above 0 \(bytes\); received 0"),
    ({"macs": 1.5}, r"macs must be a number in \(0, 1\] \(the share .*\); received 1.5"),
    ({"macs": 0.5, "bits": (0, 4)}, r"bits must be a list with 8 and some of 0, 2, 4; received"),
    ({"macs": 0.5, "bits": (3, 8)}, r"bits must be a list with 8 and some of 0, 2, 4; received"),
    ({"macs": 0.5, "epochs": 0}, "epochs must be a whole number, 1 or more; received 0"),
    ({"macs": 0.5, "learning_rate": 0}, "learning_rate must be above 0; received 0"),
    ({"macs": 0.5, "compile": {"los": "mse"}}, "compile must have a loss; received {'los'"),
    ({"macs": 0.5, "keep": "frist"}, "keep must name layers of the model; received 'frist'"),
    ({"macs": 0.5, "layers": "frist"}, "'frist' must match a layer of model"),
    ({"flash": 1000}, r"cannot meet flash=1,000: .* it takes about [45],\d\d\d\. Raise"),
    ({"macs": 0.0001}, r"cannot meet macs=0.0001: .* it takes about 0\.\d+\. Raise"),
    ({"flash": 9000, "bits": (2, 8), "layers": "first"}, "has none for bits"),
])  # fmt: skip
def test_bad_input_is_told_before_the_training(given, message, trained, monkeypatch):
    monkeypatch.setattr(module, "_train", None)
    with pytest.raises(ValueError, match=message):
        choose_channels_and_bits(trained, (X, Y), **given)


def test_models_that_are_not_compiled_are_refused(trained):
    plain = keras.Model(trained.inputs, trained.outputs)
    with pytest.raises(ValueError, match="must be compiled"):
        choose_channels_and_bits(plain, (X, Y), macs=0.5)
