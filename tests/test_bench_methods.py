"""Methods of the benchmark on small trainings: what is in their files, and what a step costs."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from conftest import run_tflite

import tfcompress as tfc
from tfcompress.bench.methods import METHODS, cost, ours, tfmot
from tfcompress.bench.methods.method import OURS
from tfcompress.bench.methods.run import Run, train_float
from tfcompress.bench.tasks import TASKS
from tfcompress.bench.tasks.task import Data, Task, Training
from tfcompress.legacy import import_tf_keras

DIGITS = TASKS["digits"]
# Training is not what these methods are about, or takes ours only a moment.
QUICK = [
    "float32",
    "float16",
    "float16_converter",
    "dynamic_int8",
    "dynamic_int8_converter",
    "ptq_int8",
    "ptq_int8_converter",
    "ptq_int8_aeq",
    "ptq_int4",
    "ptq_int4_aeq",
    "qat_int8",
    "distill_int8",
]
# What has a test of its own, which looks at the file as well.
PRUNED = ["prune80_int8", "prune80_int8_tfmot"]
STAGED = ["pcqat_int8", "pcqat_int8_tfmot"]
WEIGHTS = {"float32": "float32", "float16": "float16", "float16_converter": "float16"}


def dropping(kit, classes):
    """A small model with BatchNormalization and Dropout, which draw and remember."""
    layers = kit.layers
    inputs = layers.Input((8,))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(16)(inputs)))
    x = layers.Dropout(0.3)(x)
    return kit.Model(inputs, layers.Softmax()(layers.Dense(classes)(x)))


def rebuilding(kit, classes):
    inputs = kit.layers.Input((8,))
    x = kit.layers.BatchNormalization()(kit.layers.Dense(5, activation="relu")(inputs))
    return kit.Model(inputs, kit.layers.Dense(8)(x))


def task_of(build, loss="sparse_categorical_crossentropy") -> tuple[Task, Data]:
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 8)).astype("float32")
    y = None if loss == "mse" else (x[:, 0] > 0).astype("int64")
    tested = x[:64].reshape(16, 4, 8) if y is None else x[:64]
    data = Data(x, y, tested, np.arange(len(tested)) % 2 > 0, 2 if y is not None else 0, "", "")
    training = Training(40, 16, 1e-2)
    task = Task("small", "", build, (2, 0, 0), lambda: data, training, training, (training,) * 2)
    return dataclasses.replace(task, loss=loss), data


def run_of(task, data, folder, checkpoint=None, steps=12, seed=0) -> Run:
    if checkpoint is None:
        checkpoint = folder / "float.keras"
        train_float(task, data, dataclasses.replace(task.training, steps=5), seed).save(checkpoint)
    tuning = dataclasses.replace(task.tuning, steps=steps)
    return Run(task=task, data=data, seed=seed, tuning=tuning, checkpoint=checkpoint, folder=folder)


@pytest.fixture(scope="module")
def digits() -> Data:
    return DIGITS.generate()


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "float.keras"
    train_float(DIGITS, digits, Training(150, 32, 5e-3), seed=0).save(path)
    return path


@pytest.fixture
def make(digits, checkpoint, tmp_path):
    """Carries out a method on the digits with few steps."""

    def run(name, steps=12):
        run = run_of(DIGITS, digits, tmp_path, checkpoint, steps)
        METHODS[name].make(run)
        return run

    return run


def weights_of(path):
    """The kernels that are pruned and clustered: not the depthwise one."""
    tensors = [t for t in tfc.inspect(path).tensors if t.is_weight]
    return [t for t in tensors if t.shape[0] != 1 or t.shape[-1] != 24 or len(t.shape) != 4]


def test_methods_of_a_family_are_ours_and_peers():
    assert list(METHODS) == [method.name for method in METHODS.values()]
    families = {method.family for method in METHODS.values()}
    for family in families:
        who = [method.who for method in METHODS.values() if method.family == family]
        assert who.count(OURS) == 1
        assert len(set(who)) == len(who)
    peers = [name for name in METHODS if METHODS[name].who != OURS]
    assert len(peers) == 11
    assert "ptq_int8" in families
    # The short form compares ours with each peer.
    assert len({method.who for method in METHODS.values() if method.short}) == 4


def check_file(run, name):
    found = tfc.inspect(run.path)
    kind = "int4" if "int4" in name else WEIGHTS.get(name, "int8")
    dynamic = name.startswith("dynamic")
    integer = "int8" if "_int" in name and not dynamic else "float32"
    assert {t.dtype for t in (*found.inputs, *found.outputs)} == {integer}
    # LiteRT leaves small weights as they are where activations are quantized as they come.
    small = 1024 if dynamic else 0
    kinds = {t.dtype for t in weights_of(run.path) if math.prod(t.shape) >= small}
    assert kinds == {kind}
    if integer == "int8":
        assert found.float_ops == ()
    assert run.convert_seconds > 0
    # The file gives what the model gives that was kept.
    x = run.data.test_inputs(0, 64)
    kept = np.asarray(run.kept.predict(x, verbose=0)).argmax(-1)
    apart = np.mean(kept != run_tflite(run.path, x).argmax(-1))
    assert apart <= (0.15 if name.startswith("ptq_int4") else 0.05)


def check_cost(run, name):
    trains = name == "tuned_ptq_int8" or not name.startswith(("float", "dynamic", "ptq"))
    assert (run.cost is not None) == trains
    if trains:
        assert run.cost["steps"] == run.tuning.steps
        assert min(run.cost.values()) > 0


@pytest.mark.parametrize("name", QUICK)
def test_a_method_gives_a_file_of_its_precision(make, name):
    run = make(name)
    check_file(run, name)
    check_cost(run, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [m for m in METHODS if m not in (*QUICK, *PRUNED, *STAGED)])
def test_every_other_method_does_too(make, name):
    run = make(name)
    check_file(run, name)
    check_cost(run, name)


@pytest.mark.parametrize("name", PRUNED)
def test_80_percent_of_the_weights_in_the_file_are_zeros(make, name):
    run = make(name)
    check_file(run, name)
    check_cost(run, name)
    weights = weights_of(run.path)
    sizes = [np.prod(t.shape) for t in weights]
    zeros = sum(t.sparsity * size for t, size in zip(weights, sizes, strict=True)) / sum(sizes)
    # Rounding to int8 makes a few more.
    assert 0.8 - 1e-3 <= zeros < 0.84


def test_clusters_in_the_file_are_as_many_as_asked_for(make):
    assert all(t.unique <= 16 for t in weights_of(make("cluster16_int8").path))


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGED)
def test_zeros_and_clusters_are_both_in_the_file(make, name):
    run = make(name, steps=30)
    check_file(run, name)
    check_cost(run, name)
    weights = weights_of(run.path)
    sizes = [np.prod(t.shape) for t in weights]
    zeros = sum(t.sparsity * size for t, size in zip(weights, sizes, strict=True)) / sum(sizes)
    assert zeros >= 0.8 - 1e-3
    if METHODS[name].who == OURS:
        assert all(t.unique <= 16 for t in weights)
    else:  # per channel: of different scales
        assert all(t.unique_per_channel <= 16 for t in weights if len(t.shape) == 4)


@pytest.mark.slow
def test_half_of_the_macs_are_gone(make):
    run = make("channels50_int8")
    ratio = tfc.profile(tfc.finalize(run.kept)).macs / tfc.profile(run.model).macs
    assert 0.4 < ratio <= 0.5


def test_the_twin_gives_equal_outputs(digits, checkpoint, tmp_path):
    run = run_of(DIGITS, digits, tmp_path, checkpoint)
    x = digits.test_inputs(0, 64)
    ours_, theirs = (each.predict(x, verbose=0) for each in (run.model, run.twin))
    np.testing.assert_allclose(theirs, ours_, atol=1e-5)
    assert run.twin is not run.twin
    assert run.model is not run.model


def test_a_twin_that_computes_something_else_is_refused(tmp_path):
    def build(kit, classes):
        inputs = kit.layers.Input((8,))
        x = kit.layers.Dense(4, activation="relu" if kit is keras else "tanh")(inputs)
        return kit.Model(inputs, kit.layers.Dense(classes, activation="softmax")(x))

    run = run_of(*task_of(build), tmp_path)
    with pytest.raises(ValueError, match=r"differ by up to .*Mend the task's `build`"):
        _ = run.twin


def trained(run, kit):
    model = run.model if kit == "keras" else run.twin
    run.fit(model)
    return model.get_weights()


@pytest.mark.parametrize("kit", ["keras", "tf_keras"])
def test_turns_of_the_plain_model_leave_the_training_as_it_is(tmp_path, monkeypatch, kit):
    task, data = task_of(dropping)
    run = run_of(task, data, tmp_path, steps=30)
    interrupted = trained(run, kit)
    assert run.cost["steps"] == 30
    monkeypatch.setattr(cost.Plain, "turn", lambda self, steps: 1.0)
    alone = trained(run_of(task, data, tmp_path, tmp_path / "float.keras", 30), kit)
    for a, b in zip(interrupted, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    other = trained(run_of(task, data, tmp_path, tmp_path / "float.keras", 30, seed=1), kit)
    assert any((a != b).any() for a, b in zip(alone, other, strict=True))


def test_the_cost_of_a_step_is_the_mean_over_those_that_count(tmp_path, monkeypatch):
    """With a clock by hand: a plain step takes 2 ms, one of the model 3 ms, a few 30 ms."""
    clock, asked = [0.0], []
    monkeypatch.setattr(cost.time, "process_time", lambda: clock[0])
    task, data = task_of(dropping)
    run = run_of(task, data, tmp_path, steps=100)
    # Turns of 10 steps, of which the first 3 do not count; a mask update in step 16 does.
    slow = {1: 9.0, 10: 1.0, 11: 1.0, 12: 1.0, 15: 0.030}

    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock[0] += slow.get(batch, 0.003)

    def turn(self, steps):
        clock[0] += 5.0
        asked.append(steps)
        return 0.002

    monkeypatch.setattr(cost.Plain, "turn", turn)
    monkeypatch.setattr(cost, "TURNS", 10)
    run.fit(run.model, [Slow()])
    step = (69 * 3.0 + 30.0) / 70
    assert run.cost == {
        "steps": 100,
        "step_cpu_ms": pytest.approx(step),
        "plain_step_cpu_ms": pytest.approx(2.0),
        "step_cpu_ratio": pytest.approx(step / 2),
        "keras_step_cpu_ratio": pytest.approx(step / 2),
    }
    assert len(asked) == 1 + 10


def test_plain_steps_are_timed_alone(monkeypatch, tmp_path):
    """With a clock that each step moves: 1 ms of the plain model, which halts between turns."""
    clock = [0.0]
    monkeypatch.setattr(cost.time, "process_time", lambda: clock[0])
    task, data = task_of(dropping)
    run = run_of(task, data, tmp_path)
    for plain in [*run._plains(keras).values(), *run._plains(import_tf_keras()).values()]:
        step = plain._after_step

        def ticking(step=step):
            clock[0] += 0.001
            step()

        plain._after_step = ticking
        for count in (1, 5):
            before = clock[0]
            assert plain.turn(count) == pytest.approx(0.001)
            assert clock[0] - before == pytest.approx(0.001 * (cost.SKIPPED + count))
        clock[0] += 7.0
        assert plain.turn(4) == pytest.approx(0.001)
        plain.close()
        assert not plain._thread.is_alive()


def test_a_plain_model_that_cannot_be_trained_is_told(tmp_path):
    run = run_of(*task_of(dropping), tmp_path)
    model = run.model
    plain = cost.Plain(keras, model, run.data.batches(16, 0))
    with pytest.raises(ValueError, match="compile"):
        plain.turn(2)
    plain.close()


@pytest.mark.slow
@pytest.mark.parametrize("kit", ["keras", "tf_keras"])
def test_a_plain_training_costs_what_a_plain_training_costs(tmp_path, digits, checkpoint, kit):
    ratios = []
    for _ in range(3):
        run = run_of(DIGITS, digits, tmp_path, checkpoint, steps=240)
        run.fit(run.model if kit == "keras" else run.twin)
        ratios.append(run.cost["step_cpu_ratio"])
        if kit == "keras":
            assert run.cost["keras_step_cpu_ratio"] == run.cost["step_cpu_ratio"]
    assert 0.9 < np.median(ratios) < 1.1, ratios


def test_stages_count_by_their_steps(tmp_path):
    run = run_of(*task_of(dropping), tmp_path, steps=40)
    model = run.model
    run.fit(model, steps=30)
    run.fit(model, steps=10)
    assert run.cost["steps"] == 40
    a, b = ({"steps": n, "step_cpu_ratio": r} for n, r in ((30, 1.0), (10, 2.0)))
    assert cost.together([a, b]) == {"steps": 40, "step_cpu_ratio": 1.25}
    assert cost.together([]) is None
    with pytest.raises(ValueError, match="1 step or more; received 0"):
        run.fit(model, steps=0)


def test_too_short_a_training_has_no_cost(tmp_path):
    run = run_of(*task_of(dropping), tmp_path, steps=1)
    run.fit(run.model)
    assert run.cost is None


def test_the_float_training_follows_its_seed():
    task, data = task_of(dropping)
    training = Training(5, 16, 1e-2)
    a, b, c = (train_float(task, data, training, seed).get_weights() for seed in (0, 0, 1))
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert any((x != y).any() for x, y in zip(a, c, strict=True))


def test_a_reconstruction_is_distilled_as_numbers(tmp_path):
    run = run_of(*task_of(rebuilding, "mse"), tmp_path)
    ours.distill_int8(run)
    assert tfc.inspect(run.path).outputs[0].dtype == "int8"
    assert run.cost["steps"] == 12


def test_ranges_of_tfmot_start_where_the_float_model_has_them(digits, checkpoint, tmp_path):
    run = run_of(DIGITS, digits, tmp_path, checkpoint)
    import tensorflow_model_optimization as tfmot_
    import tf_keras

    twin = run.twin
    tfmot_.quantization.keras.quantize_model(run.twin)  # Later ones have other names.
    qat = tfmot_.quantization.keras.quantize_model(twin)
    before = {v.name: v.numpy() for v in qat.variables}
    tfmot.start_ranges(qat, run.calibration, 32)
    after = {v.name.split(":")[0]: v.numpy() for v in qat.variables}
    inner = tf_keras.Model(twin.input, twin.get_layer("logits").output)
    # In training BatchNormalization takes the statistics of batches, not the averages.
    rows = range(0, 192, 32)
    batches = [inner(run.calibration[i : i + 32], training=True).numpy() for i in rows]
    low, high = (np.mean([f(b) for b in batches]) for f in (np.min, np.max))
    assert after["quant_logits/post_activation_max"] == pytest.approx(high, rel=0.3)
    assert after["quant_logits/post_activation_min"] == pytest.approx(low, rel=0.3)
    inputs = {n.split("_")[-1]: v for n, v in after.items() if n.startswith("quantize_layer")}
    assert inputs["max"] == run.calibration.max()
    assert inputs["min"] == 0
    changed = [n for n, v in before.items() if (v != after[n.split(":")[0]]).any()]
    assert all(n.split("/")[-1].startswith(("quantize_layer", "output_", "post_")) for n in changed)
