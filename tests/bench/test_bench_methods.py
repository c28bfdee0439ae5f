"""Methods of the benchmark on small trainings: what is in their files."""

import math

import keras
import numpy as np
import pytest
from bench_runs import DIGITS, dropping, rebuilding, run_of, separable, streams_of, task_of
from conftest import run_tflite

import tfcompress as tfc
from tfcompress.bench.methods import METHODS, ours, peers
from tfcompress.bench.methods.run import OURS, train_float
from tfcompress.bench.running import child
from tfcompress.bench.tasks.task import Data, Training
from tfcompress.tflite import flatbuffer

# Training is not what these methods are about, or takes ours only a moment.
QUICK = [
    "float32",
    "float16",
    "dynamic_int8",
    "ptq_int8",
    "ptq_int4",
    "qat_int8",
]
# What has a test of its own, which looks at the file as well.
PRUNED = ["prune80_int8", "prune80_int8_tfmot"]
STAGED = ["pcqat_int8", "pcqat_int8_tfmot"]
# What weights are stored in, where a name does not tell.
WEIGHTS = {
    "float32": {"float32"},
    "float16": {"float16"},
    "float16_converter": {"float16"},
    "mixed": {"int4", "int8"},
    "codebook4_int8": {"int4", "int8"},
    "ternary_int8": {"int2", "int4", "int8"},
    "qat_learned_int3": {"int4"},
    "qat_learned_int2_dense": {"int2", "int4"},
}


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
    peers = [name for name in METHODS if METHODS[name].who != OURS]
    assert len(peers) == 15
    assert "ptq_int8" in families
    # The short form compares ours with each peer.
    assert len({method.who for method in METHODS.values() if method.short}) == 4


def check_file(run, name):
    found = tfc.inspect(run.path)
    expected = WEIGHTS.get(name, {"int4" if "int4" in name else "int8"})
    dynamic = name.startswith("dynamic")
    integer = "int8" if name == "mixed" or ("_int" in name and not dynamic) else "float32"
    assert {t.dtype for t in (*found.inputs, *found.outputs)} == {integer}
    # LiteRT leaves small weights as they are where activations are quantized as they come.
    small = 1024 if dynamic else 0
    kinds = {t.dtype for t in weights_of(run.path) if math.prod(t.shape) >= small}
    assert kinds == expected
    if integer == "int8":
        assert found.float_ops == ()
    assert run.convert_seconds > 0
    # The file gives what the model gives that was kept.
    x = run.data.test_inputs(0, 64)
    kept = np.asarray(run.kept.predict(x, verbose=0)).argmax(-1)
    apart = np.mean(kept != run_tflite(run.path, x).argmax(-1))
    assert apart <= (0.15 if name.startswith("ptq_int4") else 0.05)


def check_cost(run, name):
    trains = name == "tuned_ptq_int8" or not name.startswith(("float", "dynamic", "ptq", "mixed"))
    assert (run.cost is not None) == trains
    if trains:
        assert run.cost["steps"] == run.tuning.steps
        assert min(run.cost.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_method_gives_a_file_of_its_precision(make, name):
    run = make(name)
    check_file(run, name)
    check_cost(run, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [m for m in METHODS if m not in (*QUICK, *PRUNED, *STAGED) and METHODS[m].suits(DIGITS)],
)
def test_every_other_method_does_too(make, name):
    run = make(name)
    check_file(run, name)
    check_cost(run, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream_ptq_int8", "stream_qat_int8"])
def test_a_file_over_the_next_frame_gives_what_windows_give(name, tmp_path):
    task, data = streams_of(separable)
    run = run_of(task, data, tmp_path)
    METHODS[name].make(run)
    found = tfc.inspect(run.path)
    assert found.float_ops == ()
    assert sorted(t.shape[1] for t in found.inputs) == [1, 2]  # a frame, and what was before
    macs = [tfc.profile(tfc.finalize(x)).macs for x in (run.kept, run.model)]
    assert macs == [64 + 48 + 32, 3 * 64 + 48 + 32]
    windows = data.test_inputs()
    job = child.Job("small", name, 0, "full", None, tmp_path, tmp_path / "a.keras", layers=True)
    extras = child._extras(job, run, data)
    assert extras["notes"] == []
    assert len([row for row in extras["layers"] if row["sqnr_db"]]) >= 3
    step = child.streamed(run.kept, data)(windows)
    model = run.model
    if name == "stream_qat_int8":
        plain = run_of(task, data, tmp_path, run.checkpoint)
        of_step = child.file_quality(task, data, run.path)
        METHODS["qat_int8"].make(plain)
        model = plain.kept
        assert child.file_quality(task, data, plain.path) == of_step
    np.testing.assert_allclose(step, model(windows, training=False), atol=1e-6)
    quality = child.keras_quality(task, data, run.kept)
    assert quality == pytest.approx(child.keras_quality(task, data, model), abs=1e-6)


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_zeros_come_before_training_where_that_changes_little(digits, checkpoint, tmp_path):
    run = run_of(DIGITS, digits, tmp_path, checkpoint)
    for sparsity, before in ((0.4, True), (0.98, False)):
        model, prune, rate = ours._pruned(run, sparsity)
        assert prune.preserve == before
        kernels = [x.kernel for x in model.layers if x.name in ("stem", "pointwise", "wide")]
        assert any(np.any(np.asarray(kernel) == 0) for kernel in kernels) == before
        assert rate == (1.0 if before else run.task.training.rate / run.tuning.rate)


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


@pytest.mark.slow
def test_the_float_training_follows_its_seed():
    task, data = task_of(dropping)
    training = Training(5, 16, 1e-2)
    a, b, c = (train_float(task, data, training, seed).get_weights() for seed in (0, 0, 1))
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert any((x != y).any() for x, y in zip(a, c, strict=True))


@pytest.mark.slow
def test_a_reconstruction_is_distilled_as_numbers(tmp_path):
    run = run_of(*task_of(rebuilding, "mse"), tmp_path)
    ours.distill_int8(run)
    assert tfc.inspect(run.path).outputs[0].dtype == "int8"
    assert run.cost["steps"] == 12


@pytest.mark.slow
def test_given_values_are_in_the_file_but_at_its_ends(digits, checkpoint, tmp_path):
    run = run_of(DIGITS, digits, tmp_path, checkpoint)
    ours.codebook_int8("4")(run)
    model = flatbuffer.read(run.path)
    codes = [flatbuffer.tensor_values(model, t) for t in model.subgraphs[0].tensors]
    counts = {c.size: len(np.unique(c)) for c in codes if c is not None and c.ndim > 1}
    assert counts[24 * 24] <= 4  # pointwise
    assert counts[9 * 24 * 48] <= 4  # wide
    assert counts[9 * 24] > 4  # stem, or depthwise


@pytest.mark.slow
def test_ranges_of_tfmot_start_where_the_float_model_has_them(digits, checkpoint, tmp_path):
    run = run_of(DIGITS, digits, tmp_path, checkpoint)
    import tensorflow_model_optimization as tfmot_
    import tf_keras

    twin = run.twin
    tfmot_.quantization.keras.quantize_model(run.twin)  # Later ones have other names.
    qat = tfmot_.quantization.keras.quantize_model(twin)
    before = {v.name: v.numpy() for v in qat.variables}
    peers.start_ranges(qat, run.calibration, 32)
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
