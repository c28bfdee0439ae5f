"""Training with learned steps: what moves, what is saved, and what is baked."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import layers
from pruning_models import in_layers

import tfcompress as tfc
from tfcompress import Cluster, Quantize, Rule, schedules

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(32, 6)).astype("float32")
Y = X[:, :1] * 2.0


def model():
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    y = layers.Dense(8, activation="relu")(x)
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()([y, x])))


def trained(recipe, epochs=3):
    small = tfc.compress(model(), recipe)
    small.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
    small.fit(X, Y, epochs=epochs, batch_size=8, verbose=0, callbacks=[tfc.UpdateCompression()])
    return small


def states(small, name):
    return [np.array(v) for v in small.variables if v.path.endswith(name)]


def test_steps_and_limits_train_and_are_saved_and_baked(tmp_path):
    learned = Quantize(bits=4, step="learned", activation_step="learned")
    small = trained([Rule("*", [learned])])
    factors = states(small, "factor") + states(small, "factors")
    assert len(factors) == 2 + 2  # kernels; what is concatenated, and the output
    assert all(np.any(factor != 1.0) for factor in factors)
    expected = small.predict(X, verbose=0)
    small.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), expected)
    np.testing.assert_array_equal(tfc.finalize(small).predict(X, verbose=0), expected)


@pytest.mark.slow
def test_limits_stay_as_they_are_once_frozen():
    technique = Quantize(bits=8, activation_step="learned", freeze=8)
    small = trained([Rule("*", [technique])])
    quantizers = [x for x in small.layers if hasattr(x, "factors")]
    before = [[float(limit) for limit in x.limits()] for x in quantizers]
    small.fit(X, Y, epochs=2, verbose=0, callbacks=[tfc.UpdateCompression()])
    after = [[float(limit) for limit in x.limits()] for x in quantizers]
    assert before == after


def test_zeros_of_pruning_and_few_values_of_clustering_stay():
    techniques = [in_layers(0.5), Cluster(4), Quantize(bits=4, step="learned")]
    small = tfc.finalize(trained([Rule("*", [Quantize()]), Rule("dense*", techniques)]))
    for layer in small.layers:
        for target in getattr(layer, "bound", ()):
            kernel = np.array(layer.effective(target.variable))
            assert (kernel == 0).mean() >= 0.5
            assert np.unique(kernel).size <= 4


@pytest.mark.slow
def test_widths_fall_while_it_trains(tmp_path):
    widths = schedules.points([(0, 8), (4, 4), (8, 2)])
    technique = Quantize(2, step="learned", bits_schedule=widths)
    small = trained([Rule("*", [technique])])
    for layer in (x for x in small.layers if hasattr(x, "bound")):
        kernel = np.array(layer.effective(layer.bound[0].variable))
        assert np.unique(np.abs(kernel)).size <= 2
    early = trained([Rule("*", [technique])], epochs=1)
    with pytest.raises(ValueError, match="begins at step 8; received a model trained for 4 steps"):
        tfc.convert(early, tmp_path / "m.tflite")


@pytest.mark.slow
def test_jax_gives_the_gradients_of_the_papers():
    code = """

        import jax, keras, numpy as np, tfcompress as tfc
        from tfcompress.techniques.learned import quantize_between, quantize_learned

        random = np.random.default_rng(0)
        w, upstream = random.normal(size=(2, 4, 5)).astype("float32")
        base, factor = np.full((1, 5), 0.3, "float32"), np.full((1, 5), 1.1, "float32")
        def loss(w, factor):
            return (quantize_learned(w, base, factor, 7, damping=0.1) * upstream).sum()
        of_weight, of_factor = jax.jit(jax.grad(loss, (0, 1)))(w, factor)
        position = w / (base * factor)
        inside, codes = np.abs(position) <= 7, np.clip(np.round(position), -7, 7)
        damped = upstream + 0.2 * (w - codes * base * factor)
        np.testing.assert_allclose(of_weight, np.where(inside, damped, 0), atol=1e-5)
        slope = np.where(inside, codes - position, codes)
        of_step = (upstream * slope).sum(0, keepdims=True) / np.sqrt(4 * 7)
        np.testing.assert_allclose(of_factor, of_step / base, rtol=1e-3, atol=1e-4)

        def sums(factors):
            x = np.array([[-3.0, 0.5, 9.0]], "float32")
            return quantize_between(x, -1.0, 6.0, factors).sum()
        found = jax.grad(sums)(np.ones(2, "float32"))
        step = 7 / 255
        rounding = (np.round(1.5 / step) - 1.5 / step) / 255
        share = 255 / np.sqrt(3 * 255) / step
        np.testing.assert_allclose(found, np.array([1 - rounding, 1 + rounding]) * share, rtol=0.02)

        x = random.normal(size=(32, 6)).astype("float32")
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(8, activation="relu")(inputs)
        model = tfc.quantize_aware(
            keras.Model(inputs, keras.layers.Dense(1)(hidden)),
            bits=4, delay=3, freeze=9, step="learned", activation_step="learned",
        )
        model.compile("adam", "mse")
        update = tfc.UpdateCompression()
        model.fit(x, x[:, 0], epochs=3, batch_size=8, verbose=0, callbacks=[update])
        factors = [v for v in model.variables if v.path.endswith("factor")]
        assert len(factors) == 2 and all(np.any(np.array(v) != 1) for v in factors)
        assert np.isfinite(model.predict(x, verbose=0)).all()
    """
    env = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, check=True, timeout=300)
