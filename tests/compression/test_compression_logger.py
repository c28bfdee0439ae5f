"""CompressionLogger: what it tells of a model, in the logs and in TensorBoard's files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from pruning_models import in_layers

import tfcompress as tfc
from tfcompress.compression.logger import measure, weights_of
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.fake_quant import FakeQuant

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(32, 8)).astype("float32")
Y = RANDOM.normal(size=(32, 4)).astype("float32")


def plain():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8,)), layers.Dense(10, name="a"), layers.Dense(4)])


def compressed(*techniques, name="*"):
    return tfc.compress(plain(), [tfc.Rule(name, list(techniques))])


def fit(model, logger, rate=0.01, batches=8, callbacks=(), **kwargs):
    how = kwargs.pop("how", {"run_eagerly": True})
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=False, **how)
    if any(isinstance(x, Compressed) for x in model.layers):
        callbacks = [tfc.UpdateCompression(), *callbacks]
    kwargs = {"verbose": 0, "shuffle": False, "batch_size": 32 // batches, **kwargs}
    return model.fit(X, Y, callbacks=[*callbacks, logger], **kwargs).history


def written(folder):
    """{tag: {step: value}} of the event files, and the plugins that show them."""
    found, plugins = {}, set()
    for path in sorted((folder / "compression").iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                assert event.step not in found.setdefault(value.tag, {})
                found[value.tag][event.step] = number
                plugins.add(value.metadata.plugin_data.plugin_name)
    return found, plugins


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.sparsity = []

    def on_train_batch_end(self, batch, logs=None):
        self.sparsity.append(logs["sparsity"])


def test_scheduled_sparsity_by_steps(tmp_path):
    schedule = tfc.schedules.linear(0.0, 0.8, end=8, frequency=1)
    model = compressed(in_layers(schedule), name="a")
    history = fit(model, tfc.CompressionLogger(tmp_path, frequency=3), epochs=2, batches=4)
    assert history["sparsity"] == pytest.approx([0.4, 0.8])
    found, plugins = written(tmp_path)
    wanted = pytest.approx({1: 0.1, 3: 0.3, 4: 0.4, 6: 0.6, 8: 0.8})
    assert found["sparsity"] == wanted
    assert found["a/kernel/sparsity"] == wanted
    kernel = np.sort(np.abs(model.get_layer("a").layer.kernel).ravel())
    assert found["a/kernel/threshold"][8] == kernel[64]  # of 80 weights 64 are pruned
    assert set(found) == {"sparsity", "a/kernel/sparsity", "a/kernel/threshold"}
    assert plugins == {"scalars"}


def test_threshold_unique_weights_and_overall_numbers(tmp_path):
    weights = plain()
    weights.get_layer("a").kernel.assign(np.arange(-40, 40).reshape(8, 10) / 100)
    weights.layers[-1].kernel.assign(np.arange(1, 41).reshape(10, 4) / 100)
    rules = [tfc.Rule("a", [in_layers(0.75), tfc.Cluster(5)]), tfc.Rule("dense*", [in_layers(0.5)])]
    model = tfc.compress(weights, rules)
    fit(model, tfc.CompressionLogger(tmp_path), rate=0.0)
    found, _ = written(tmp_path)
    # Kept: 20 of -40..39 by |w|, which are -40 to -31 and 30 (or -30) to 39; in 4 clusters.
    effective = np.array(model.get_layer("a").effective(model.get_layer("a").layer.kernel))
    assert found["a/kernel/unique_weights"][8] == len({*effective.ravel()}) == 5
    threshold = np.abs(effective[effective != 0]).min()
    assert found["a/kernel/threshold"][8] == np.float32(threshold)
    assert 0.3 < threshold < 0.36
    name = model.layers[-1].name
    assert found[f"{name}/kernel/threshold"][8] == np.float32(0.21)  # 20 of 0.01..0.40 go
    assert f"{name}/kernel/unique_weights" not in found
    assert found["unique_weights"][8] == 5
    assert found["sparsity"][8] == np.float32((60 + 20) / 120)


def test_unique_weights_of_channels_and_nested_weights():
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.GRU(5, name="rnn")(inputs))
    cluster = tfc.Cluster(3, per_channel=True)
    model = tfc.compress(model, [tfc.Rule("rnn", [in_layers(0.4), cluster])])
    x = RANDOM.normal(size=(8, 4, 3)).astype("float32")
    model.compile("sgd", "mse", run_eagerly=True)
    logger = tfc.CompressionLogger()
    callbacks = [tfc.UpdateCompression(), logger]
    history = model.fit(x, np.ones((8, 5)), verbose=0, callbacks=callbacks).history
    assert history["unique_weights"] == [3.0]  # of each of 15 channels, not of all together
    assert history["sparsity"] == [(18 + 30) / (45 + 75)]


def test_ranges_of_activations(tmp_path):
    model = compressed(tfc.Quantize())
    history = fit(model, tfc.CompressionLogger(tmp_path))
    assert set(history) == {"loss"}  # nothing is pruned or clustered
    found, _ = written(tmp_path)
    observers = [x for x in model.layers if isinstance(x, FakeQuant)]
    assert len(found) == 2 * len(observers) > 0
    for observer in observers:
        (low, high), *_ = np.array(observer.range)
        assert found[f"{observer.name}/range_min"][8] == low
        assert found[f"{observer.name}/range_max"][8] == high > 0


def test_rounding_by_quantize_does_not_count():
    model = compressed(in_layers(0.5), tfc.Quantize(bits=2))
    assert fit(model, tfc.CompressionLogger())["sparsity"] == [0.5]
    kernel = model.get_layer("a").layer.kernel
    assert np.mean(np.array(model.get_layer("a").effective(kernel)) == 0) > 0.5


def test_plain_model_is_measured_as_it_is(tmp_path):
    model = plain()
    model.build((None, 8))
    kernel = np.array(model.get_layer("a").kernel)
    kernel[:4] = 0
    kernel[4:] = np.sign(kernel[4:]) * np.linspace(0.5, 2, 40).reshape(4, 10)
    model.get_layer("a").kernel.assign(kernel)
    history = fit(model, tfc.CompressionLogger(tmp_path), rate=0.0, epochs=2)
    assert history["sparsity"] == [40 / 120, 40 / 120]
    found, _ = written(tmp_path)
    path = model.get_layer("a").kernel.path
    assert found[f"{path}/sparsity"] == {1: 0.5, 8: 0.5, 16: 0.5}
    assert found[f"{path}/threshold"][16] == 0.5


def test_progress_bar_shows_overall_numbers(capsys):
    for verbose in (1, 2):
        fit(compressed(in_layers(0.75)), tfc.CompressionLogger(), verbose=verbose)
        last = capsys.readouterr().out.replace("\b", "").splitlines()[-1]
        assert last.rstrip().endswith("sparsity: 0.7500")


def test_batch_logs_are_kept_until_due():
    schedule = tfc.schedules.linear(0.0, 0.8, end=8, frequency=1)
    seen = {}
    for frequency in ("epoch", 4):
        logger, recorder = tfc.CompressionLogger(frequency=frequency), Recorder()
        model = compressed(in_layers(schedule))
        model.compile("sgd", "mse", run_eagerly=True)
        callbacks = [tfc.UpdateCompression(), logger, recorder]
        model.fit(X, Y, batch_size=4, epochs=1, verbose=0, callbacks=callbacks)
        seen[frequency] = recorder.sparsity
    assert seen["epoch"] == pytest.approx([0.1] * 8)
    assert seen[4] == pytest.approx([0.1] * 3 + [0.4] * 4 + [0.8])


def test_steps_per_execution_and_second_fit(tmp_path):
    model, logger = compressed(in_layers(0.5)), tfc.CompressionLogger(tmp_path, frequency=4)
    fit(model, logger, how={"steps_per_execution": 3}, batches=8)
    assert list(written(tmp_path)[0]["sparsity"]) == [3, 6, 8]
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[tfc.UpdateCompression(), logger])
    assert list(written(tmp_path)[0]["sparsity"]) == [3, 6, 8, 11, 12]


def test_errors(monkeypatch):
    for wrong in (0, -1, 2.5, True, "batch"):
        with pytest.raises(ValueError, match="frequency must be 'epoch' or a number of steps"):
            tfc.CompressionLogger(frequency=wrong)
    empty = keras.Sequential([keras.Input((8,)), layers.LayerNormalization()])
    empty.compile("sgd", "mse")
    with pytest.raises(ValueError, match="found nothing to measure in model 'sequential"):
        empty.fit(X, X, verbose=0, callbacks=[tfc.CompressionLogger()])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match=r"log_dir needs the TensorFlow backend.*on jax"):
        tfc.CompressionLogger("logs")
    tfc.CompressionLogger()


def test_each_weight_of_a_layer_within_layers_has_its_tag():
    inputs = keras.Input((5, 4))
    lstm = layers.LSTM(6, return_sequences=True, name="lstm")
    x = layers.Bidirectional(lstm, name="both")(inputs)
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 3, name="heads")(x, x))
    model = tfc.compress(model, [tfc.Rule("*", [in_layers(0.5)])])
    ways, kinds = ("forward", "backward"), ("kernel", "recurrent_kernel")
    expected = {f"both/{way}_lstm/lstm_cell/{kind}" for way in ways for kind in kinds}
    expected |= {f"heads/{part}/kernel" for part in ("query", "key", "value", "attention_output")}
    _, details = measure(model)
    assert {tag.removesuffix("/sparsity") for tag in details if "sparsity" in tag} == expected
    assert {weight.name for weight in weights_of(model)} == expected
