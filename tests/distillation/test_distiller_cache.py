"""Distiller with a cache: the same training, without running the teacher again."""

import keras
import numpy as np
import pytest
from distillation_models import (
    IMAGES,
    X,
    Y,
    assert_same,
    compiled,
    convnet,
    counting,
    fit,
    mlp,
    pair,
    two_headed,
    weights_of,
)
from keras import layers

import tfcompress as tfc
from tfcompress import distillation as kd

LOSSES = [kd.SoftLabels(2.0), kd.Features("hidden", "hidden", projection=False)]


def make(cache=None, losses=LOSSES, teacher=None, **settings):
    student = mlp(8, "small", 1)
    distiller = tfc.Distiller(student, teacher or mlp(8, "large", 2), losses, cache=cache)
    return compiled(distiller, optimizer=keras.optimizers.Adam(0.01), **settings)


@pytest.fixture(scope="module")
def trained():
    """Three epochs without a cache."""
    distiller = make()
    history = fit(distiller, X, Y, epochs=3)
    return distiller, history


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_same_training(tmp_path, trained, kind):
    teacher, counter = counting(8, "large", 2)
    counter.counts.clear()
    path = "memory" if kind == "memory" else tmp_path / "cache.h5"
    distiller = make(path, teacher=teacher, run_eagerly=False)
    history = fit(distiller, X, Y, epochs=3)
    for name, values in trained[1].items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5)
    assert_same(distiller.student, trained[0].student, 1e-6)
    assert counter.counts == [8] * 4  # the first epoch alone
    fit(distiller, X, Y)
    assert counter.counts == [8] * 4
    # Validation data are other data; they are not kept.
    distiller.evaluate(X, Y, verbose=0, batch_size=16)
    assert counter.counts == [8] * 4 + [16] * 2


@pytest.mark.slow
def test_file_of_an_earlier_training(tmp_path, trained):
    path = tmp_path / "cache.h5"
    runs = []
    for _ in range(2):  # the second is made later, with other names
        teacher, counter = counting(8, "large", 2)
        counter.counts.clear()
        distiller = make(path, teacher=teacher)
        fit(distiller, X, Y, epochs=3)
        assert_same(distiller.student, trained[0].student, 1e-6)
        runs.append(len(counter.counts))
        mlp(3, "another")
    assert runs == [4, 0]


@pytest.mark.slow
def test_shuffled_batches_of_other_sizes(trained):
    teacher, counter = counting(8, "large", 2)
    distiller = make("memory", teacher=teacher)
    plain = make()
    counter.counts.clear()
    for model in (distiller, plain):
        keras.utils.set_random_seed(5)
        fit(model, X, Y, epochs=3, batch_size=7, shuffle=True)
    assert_same(distiller.student, plain.student, 1e-6)
    assert sum(counter.counts) == 32
    fit(distiller, X, Y, batch_size=32)
    assert sum(counter.counts) == 32


@pytest.mark.parametrize("kind", ["steps_per_execution", "run_eagerly", "tf.data"])
def test_ways_to_run(trained, kind):
    import tensorflow as tf

    steps = {"steps_per_execution": 2} if kind == "steps_per_execution" else {}
    distiller = make("memory", run_eagerly=kind == "run_eagerly", **steps)
    if kind == "tf.data":
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        history = fit(distiller, data, epochs=3, batch_size=None)
    else:
        history = fit(distiller, X, Y, epochs=3)
    np.testing.assert_allclose(history["loss"], trained[1]["loss"], rtol=1e-5)


@pytest.mark.slow
def test_several_teachers_outputs_and_inputs_by_name():
    def both(width, seed):
        keras.utils.set_random_seed(seed)
        given = {name: keras.Input((3,), name=name) for name in ("left", "right")}
        x = layers.Dense(width, "tanh")(layers.Concatenate()(list(given.values())))
        outputs = [layers.Dense(3, name="kind")(x), layers.Dense(2, name="size")(x)]
        return keras.Model(given, outputs)

    x = {"left": X[:, :3], "right": X[:, 3:]}
    histories = []
    for cache in ("memory", None):
        student, teachers = both(4, 1), [both(5, 2), both(6, 3)]
        distiller = tfc.Distiller(
            student, teachers, {"kind": kd.SoftLabels(), "size": "mse"}, alpha=0, cache=cache
        )
        histories.append(fit(compiled(distiller, None), x, epochs=3))
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-5)


def test_padded_sequences():
    tokens = np.random.default_rng(0).integers(0, 4, (32, 5))

    def text(width):
        keras.utils.set_random_seed(width)
        inputs = keras.Input((5,), dtype="int32")
        x = layers.Embedding(4, width, mask_zero=True)(inputs)
        return keras.Model(inputs, layers.Dense(3, name="top")(x))

    histories = [
        fit(compiled(tfc.Distiller(text(4), text(8), alpha=0, cache=c), None), tokens, epochs=2)
        for c in ("memory", None)
    ]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "cache.h5"
    distiller = make(path)
    fit(distiller, X, Y)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert fit(loaded, X, Y) == fit(distiller, X, Y)
    in_memory = make("memory")
    assert tfc.Distiller.from_config(in_memory.get_config()).get_config()["cache"] == "memory"


def test_cache_of_another_teacher(tmp_path):
    path = tmp_path / "cache.h5"
    fit(make(path), X, Y)
    with pytest.raises(ValueError, match=r"cache\.h5.*teacher"):
        fit(make(path, teacher=mlp(8, "large", 3)), X, Y)
    changed = make(path)
    changed.teachers[0].get_layer("top").bias.assign([0.0, 0.0, 1e-3])
    with pytest.raises(ValueError, match=r"cache\.h5.*teacher"):
        fit(changed, X, Y)
    with pytest.raises(ValueError, match=r"cache\.h5"):
        fit(make(path, losses=[kd.SoftLabels()]), X, Y)


def test_cache_of_a_teacher_that_computes_otherwise(tmp_path):
    """The same layers and weights, another factor between them."""

    def scaled(factor):
        plain = mlp(8, "plain", 2)
        inputs = keras.Input((6,))
        return keras.Model(inputs, plain(inputs * factor))

    path = tmp_path / "cache.h5"
    fit(make(path, kd.SoftLabels(), scaled(2.0)), X, Y)
    with pytest.raises(ValueError, match=r"cache\.h5.*teacher"):
        fit(make(path, kd.SoftLabels(), scaled(3.0)), X, Y)


def test_activation_of_the_teacher_is_part_of_it(tmp_path):
    def activated(name):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = layers.Activation(name)(layers.Dense(4)(inputs))
        return keras.Model(inputs, layers.Dense(3)(x))

    path = tmp_path / "cache.h5"
    fit(make(path, kd.SoftLabels(), activated("relu")), X, Y)
    fit(make(path, kd.SoftLabels(), activated("relu")), X, Y)
    with pytest.raises(ValueError, match=r"cache\.h5.*teacher"):
        fit(make(path, kd.SoftLabels(), activated("tanh")), X, Y)


@pytest.mark.slow
def test_other_data(tmp_path):
    path = tmp_path / "cache.h5"
    fit(make(path), X, Y)
    with pytest.raises(ValueError, match=r"expected samples that are in.*For other data, name"):
        fit(make(path, run_eagerly=False), X + 1, Y)


class Noisy(keras.utils.PyDataset):
    """Other noise in each epoch."""

    random = np.random.default_rng(0)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        noise = self.random.normal(size=(8, 6)).astype("float32")
        return X[8 * index : 8 * index + 8] + noise, Y[8 * index : 8 * index + 8]


def test_random_augmentation():
    with pytest.raises(ValueError, match=r"augmented at random.*leave out the cache"):
        fit(make("memory", run_eagerly=False), Noisy(), epochs=2, batch_size=None)


@pytest.mark.slow
def test_teacher_trained_on_between_two_fits():
    distiller = make("memory")
    fit(distiller, X, Y)
    teacher = distiller.teachers[0]
    teacher.set_weights([w * 2 for w in teacher.get_weights()])
    plain = make(teacher=teacher)
    plain.student.set_weights(distiller.student.get_weights())
    plain.optimizer.build(plain.trainable_variables)
    assert [v.shape for v in plain.optimizer.variables] == [
        v.shape for v in distiller.optimizer.variables
    ]
    for ours, theirs in zip(plain.optimizer.variables, distiller.optimizer.variables, strict=True):
        ours.assign(theirs)
    histories = [fit(d, X, Y, epochs=2) for d in (distiller, plain)]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)


def test_epoch_cut_short_does_not_count_as_whole(tmp_path, trained):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                self.model.stop_training = True

    path = tmp_path / "cache.h5"
    fit(make(path), X, Y, callbacks=[Stop()])
    history = fit(make(path), X, Y, epochs=3)
    np.testing.assert_allclose(history["loss"], trained[1]["loss"], rtol=1e-5)


@pytest.mark.slow
def test_interrupted_training(tmp_path, trained):
    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    path = tmp_path / "cache.h5"
    distiller = make(path)
    with pytest.raises(KeyboardInterrupt):
        fit(distiller, X, Y, callbacks=[Break()])
    assert list(tmp_path.iterdir()) == []
    history = fit(make(path), X, Y, epochs=3)
    np.testing.assert_allclose(history["loss"], trained[1]["loss"], rtol=1e-5)
    # Out of fit, teachers run: a custom loop may see anything.
    found = distiller.train_on_batch(X + 5, Y, return_dict=True)
    assert np.isfinite(found["loss"])


@pytest.mark.slow
def test_normalization_of_the_student_still_learns():
    histories, students = [], []
    for cache in ("memory", None):
        student = convnet(3, "small", 1)
        distiller = tfc.Distiller(
            student, convnet(5, "large", 2), kd.AttentionTransfer("conv", "conv"), cache=cache
        )
        histories.append(fit(compiled(distiller), IMAGES, Y, epochs=2))
        students.append(student)
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)
    assert_same(weights_of(students[0]), weights_of(students[1]), 1e-5)


def test_refused_at_construction(tmp_path):
    inputs = keras.Input((None, 2))

    def sequences(width):
        x = layers.Conv1D(width, 3, padding="same", name="conv")(inputs)
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling1D()(x)), name="free")

    with pytest.raises(ValueError, match=r"cache needs outputs of the same shape.*'conv'.*None"):
        tfc.Distiller(sequences(4), sequences(4), kd.Features("conv", "conv"), cache="memory")
    tfc.Distiller(sequences(4), sequences(4), cache="memory")
    with pytest.raises(TypeError, match="cache"):
        tfc.Distiller(*pair(), cache=3)
    with pytest.raises((ValueError, OSError), match="missing"):
        fit(make(tmp_path / "missing" / "cache.h5"), X, Y)


@pytest.mark.filterwarnings("ignore:Model doesn't support `jit_compile=True`")
@pytest.mark.parametrize("jit_compile", ["auto", pytest.param(True, marks=pytest.mark.slow)])
def test_jit_compile_is_off(trained, jit_compile):
    """XLA cannot call the host."""
    distiller = make("memory")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.01), loss, jit_compile=jit_compile)
    history = fit(distiller, X, Y, epochs=3)
    np.testing.assert_allclose(history["loss"], trained[1]["loss"], rtol=1e-5)


def test_two_outputs_of_one_teacher_are_not_mixed_up(tmp_path):
    path = tmp_path / "cache.h5"
    teacher = two_headed(8, "large", 2, ("a", "b"))
    swapped = keras.Model(teacher.input, teacher.outputs[::-1])
    student = two_headed(4, "small", 1, ("a", "b"))
    other = keras.Model(student.input, student.outputs[::-1])
    fit(compiled(tfc.Distiller(student, teacher, "mse", alpha=0, cache=path), None), X)
    with pytest.raises(ValueError, match=r"cache\.h5"):
        fit(compiled(tfc.Distiller(other, swapped, "mse", alpha=0, cache=path), None), X)


@pytest.mark.slow
def test_cache_on_two_devices():
    from pruning_models import run_python

    run_python("""
        import numpy as np, tensorflow as tf
        cpus = tf.config.list_physical_devices("CPU")
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpus[0], halves)
        import keras, tfcompress as tfc
        from distillation_models import X, Y, compiled, fit, mlp

        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

        def run(cache):
            with mirrored.scope():
                student = mlp(4, "small", 1)
                distiller = compiled(tfc.Distiller(student, mlp(8, "large", 2), cache=cache),
                                     run_eagerly=False)
            # Each epoch leaves out 7 samples, others each time.
            data = tf.data.Dataset.from_tensor_slices((X[:31], Y[:31])).shuffle(31, seed=1)
            return fit(distiller, data.batch(8, drop_remainder=True), batch_size=None, epochs=6)

        np.testing.assert_allclose(run("memory")["loss"], run(None)["loss"], rtol=1e-4)
    """)
