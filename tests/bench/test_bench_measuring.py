"""What the benchmark measures: quality in Keras and in LiteRT, sizes, counts, latency."""

import dataclasses

import numpy as np
import pytest
from conftest import run_tflite
from refusals import refused

from tfcompress.bench.running import child, latency
from tfcompress.bench.tasks import TASKS, Data, Task, Training
from tfcompress.files import models
from tfcompress.files.processes import Failed
from tfcompress.tflite import machine
from tfcompress.tools import environments


def make_task(x, y):
    data = Data(x[:64], y[:64], x, y, classes=4, source="generated", digest="0")
    steps = Training(1, 1, 0.1)
    task = Task("tiny", "Tiny", None, (4, 0, 0), lambda: data, steps, steps, (steps, steps))
    return task, data


@pytest.fixture(scope="module")
def tflites(tmp_path_factory, float_cnn, qat_cnn):
    import tfcompress as tfc

    folder = tmp_path_factory.mktemp("files")
    tfc.convert(float_cnn, folder / "float32.tflite", precision="float32")
    tfc.convert(qat_cnn, folder / "int8.tflite", precision="int8", io_dtype="int8")
    return folder


def test_quality_is_the_share_of_right_answers(float_cnn, qat_cnn, images, tflites):
    x = images[0]
    y = float_cnn.predict(x, verbose=0).argmax(-1)
    y[::4] = (y[::4] + 1) % 4
    task, data = make_task(x, y)
    assert child.keras_quality(task, data, float_cnn) == 0.75
    for model, name in ((float_cnn, "float32"), (qat_cnn, "int8")):
        right = float(np.mean(model.predict(x, verbose=0).argmax(-1) == y))
        assert child.keras_quality(task, data, model) == pytest.approx(right, abs=1e-9)
        outputs = run_tflite(tflites / f"{name}.tflite", x, reference=False)
        expected = float(np.mean(outputs.argmax(-1) == y))
        assert child.file_quality(task, data, tflites / f"{name}.tflite") == expected
        assert 0.2 < expected < 0.8


def test_how_sure_a_model_gets_in_a_stream_is_what_counts():
    """The largest of five windows: streams 0 and 2 have the word."""
    sure = np.array([[1, 9, 2, 0, 0], [3, 3, 8, 3, 3], [7, 0, 0, 0, 0], [1, 1, 1, 1, 1]]) / 10
    windows = sure.reshape(4, 5, 1).astype("float32")
    steps = Training(1, 1, 0.1)
    data = Data(windows[0], sure, windows, np.array([1, 0, 1, 0], bool), 2, "generated", "0")
    task = Task("tiny", "", None, (2, 0, 0), lambda: data, steps, steps, (steps,) * 2, streams=True)
    assert task.measure == "AUC"
    # One of the four pairs is the wrong way round: 7 of one with it, 8 of one without.
    assert task.score(lambda x: np.concatenate([x, 1 - x], 1), data) == 0.75


def test_counts_are_those_of_the_plain_layers(float_cnn, qat_cnn):
    import tfcompress as tfc

    expected = {"params": float_cnn.count_params(), "macs": tfc.profile(float_cnn).macs}
    assert child.counts(float_cnn, float_cnn) == expected
    assert child.counts(object(), float_cnn) == expected  # Of tf_keras.
    found = child.counts(qat_cnn, float_cnn)
    assert found == expected


def test_sizes_are_those_of_the_file(tflites):
    found = child.sizes(tflites / "int8.tflite")
    assert found["bytes"] == (tflites / "int8.tflite").stat().st_size
    assert 0 < found["zipped"] < found["bytes"]


@pytest.mark.slow
def test_latency_is_paired_to_the_first_file(tmp_path, tflites):
    import keras

    import tfcompress as tfc

    inputs = keras.Input((64, 64, 3))
    wide = keras.Model(inputs, keras.layers.Conv2D(64, 3)(inputs))
    tfc.convert(wide, tmp_path / "wide.tflite", precision="float32")
    small = tflites / "float32.tflite"
    first, second, third = latency.latencies([small, tmp_path / "wide.tflite", small])
    assert first["ratio"] == first["threads"]["ratio"] == 1.0
    assert 0.4 < third["ratio"] < 2.5
    assert second["ratio"] > 5
    assert second["ms"] / first["ms"] > 5
    assert first["threads"]["count"] == machine.cores()
    assert (first["no_amx"] is not None) == machine.has_amx()


def test_latency_without_amx_may_fail_alone(monkeypatch):
    """What a machine without AMX, or a kernel that does not refuse it, shall not cost."""

    def measured(paths, threads, *options):
        if options:
            raise Failed("latency was not measured within 900 s")
        return [[(2.0, 1.0), (1.0, 0.5)], [(1.5, 1.0), (0.6, 0.4)]]

    monkeypatch.setattr(latency, "_measured", measured)
    monkeypatch.setattr(machine, "has_amx", lambda: True)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    with pytest.warns(UserWarning, match="^without AMX latency was not measured within 900 s; "):
        found = latency.latencies(["first.tflite", "second.tflite"])
    many = [
        {"count": 2, "ms": 1.5, "ratio": 1.0},
        {"count": 2, "ms": 0.6, "ratio": 0.4},
    ]
    assert found == [
        {"ms": 2.0, "ratio": 1.0, "threads": many[0], "no_amx": None},
        {"ms": 1.0, "ratio": 0.5, "threads": many[1], "no_amx": None},
    ]


def test_latency_of_a_damaged_file_is_told(tmp_path, tflites):
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    paths = [tflites / "float32.tflite", tmp_path / "bad.tflite"]
    refused("latency cannot be measured: .*bad.tflite'", lambda: latency.latencies(paths), Failed)


def test_vela_is_told_to_be_missing_without_installing_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path))
    assert not latency.is_ready()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(environments, "run_tool", lambda *arguments, **settings: "")
    latency.install()
    assert latency.is_ready()


def test_vela_counts_where_it_is_installed(tflites):
    if not latency.is_ready():
        pytest.skip("Vela is not installed")
    found, of_float = latency.vela_figures([tflites / "int8.tflite", tflites / "float32.tflite"])
    assert set(found) == {"cycles", "sram_kib", "flash_kib", "cpu_ops"}
    assert found["cycles"] > 100
    assert found["cpu_ops"] == 0
    assert of_float is None


def test_a_damaged_float_model_is_trained_anew(monkeypatch, tmp_path, float_cnn):
    trained = []

    def train(task, data, training, seed):
        trained.append(seed)
        return float_cnn

    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(child, "train_float", train)
    # New models of one process have layers of other names, and their files, too.
    same = dataclasses.replace(TASKS["digits"], build=lambda kit, classes: float_cnn)
    monkeypatch.setitem(TASKS, "digits", same)
    for _ in range(2):
        path = child.train("digits", 0, True, None)
    assert trained == [0]
    path.write_bytes(path.read_bytes()[:1000])
    assert child.train("digits", 0, True, None) == path
    assert trained == [0, 0]
    loaded = models.load_model(path).get_weights()
    for a, b in zip(loaded, float_cnn.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("form", "seed", "metered"),
    [("full", 0, True), ("full", 1, False), ("short", 0, True), ("long", 0, False)],
)
def test_steps_are_metered_with_the_first_seed(monkeypatch, tmp_path, form, seed, metered):
    seen = []

    class Method:
        def make(self, run):
            seen.append(run.metered)
            raise InterruptedError

    task, _ = make_task(np.zeros((80, 4)), np.zeros(80))
    monkeypatch.setitem(child.TASKS, "tiny", task)
    monkeypatch.setitem(child.METHODS, "seen", Method())
    job = child.Job("tiny", "seen", seed, form, None, tmp_path / "run", tmp_path / "a.keras")
    with pytest.raises(InterruptedError):
        child.measure(job)
    assert seen == [metered]
