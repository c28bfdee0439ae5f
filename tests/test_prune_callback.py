"""PruneCallback: zeros of a user's own model at every batch, whatever the model and the fit."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc
from tfcompress import GroupLasso, Prune, PruneCallback, schedules

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6, 6, 2)).astype("float32")
Y = RANDOM.integers(0, 3, 64)
GROWING = schedules.linear(0.1, 0.7, begin=2, end=9, frequency=3)


def plain(**conv):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(5, 3, activation="relu", name="conv", **conv),
            layers.Flatten(),
            layers.Dense(3, dtype="float32", name="dense"),
        ]
    )


@keras.saving.register_keras_serializable("test_prune_callback")
class Branching(keras.Model):
    """Python control flow on values: cannot be flattened."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(5, 3, activation="relu", name="conv")
        self.dense = layers.Dense(3, name="dense")
        self.rare = layers.Dense(3, name="rare")

    def call(self, x):
        x = self.conv(x)
        x = ops.reshape(x, (-1, 80))
        if not tf.is_symbolic_tensor(x) and float(ops.sum(x)) < -1e9:
            return self.rare(x)
        return self.dense(x) + 0.01 * self.rare(x)


def compiled(model, optimizer=None, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings = {"jit_compile": False, **kwargs}
    model.compile(optimizer or keras.optimizers.Adam(0.02), loss, **settings)
    return model


def make(optimizer=None, **kwargs):
    return compiled(plain(), optimizer, **kwargs)


def fit(model, steps, *callbacks, batch=4, **kwargs):
    kwargs = {"batch_size": batch, "verbose": 0, "shuffle": False, **kwargs}
    return model.fit(X[: batch * steps], Y[: batch * steps], callbacks=list(callbacks), **kwargs)


def kernels(model):
    return [np.array(v) for v in model.trainable_variables if v.name == "kernel"]


def zeros(model):
    return [int((kernel == 0).sum()) for kernel in kernels(model)]


def wanted(model, sparsity):
    return [k.size - round(k.size * (1 - sparsity)) for k in kernels(model)]


class Watch(keras.callbacks.Callback):
    """Zeros after each batch; what was zero must not come back."""

    def __init__(self):
        super().__init__()
        self.seen, self.gone = [], []

    def on_train_batch_end(self, batch, logs=None):
        masks = [kernel == 0 for kernel in kernels(self.model)]
        for before, now in zip(self.gone, masks, strict=False):
            assert (now | ~before).all()
        assert not any(np.signbit(k[k == 0]).any() for k in kernels(self.model))
        self.gone = masks
        self.seen.append((int(self.model.optimizer.iterations), [int(m.sum()) for m in masks]))


def assert_follows(model, seen, schedule):
    for step, found in seen:
        assert found == wanted(model, schedule.at(step)), step


PRUNES = [
    Prune(GROWING),
    Prune(GROWING, score="random"),
    Prune(GROWING, score="taylor"),
    Prune(GROWING, score="movement"),
    Prune(GROWING, score=np.abs),
]


@pytest.mark.parametrize("prune", PRUNES, ids=lambda p: str(p.score))
def test_zeros_at_every_batch(prune):
    model, watch = make(), Watch()
    fit(model, 14, PruneCallback(prune), watch)
    assert [step for step, _ in watch.seen] == list(range(1, 15))
    assert_follows(model, watch.seen, GROWING)
    assert zeros(model) == wanted(model, 0.7)


def test_constant_sparsity_from_the_start():
    for score in ("magnitude", "taylor", "movement", "random"):
        model, watch = make(run_eagerly=True), Watch()
        sizes = [np.abs(kernel) for kernel in kernels(model)]
        smallest = [size <= np.sort(size.ravel())[size.size // 2 - 1] for size in sizes]
        fit(model, 3, PruneCallback(Prune(0.5, score=score)), watch)
        assert_follows(model, watch.seen, schedules.constant(0.5))
        if score != "random":  # of which nothing is known before the first step
            for small, kernel in zip(smallest, kernels(model), strict=True):
                np.testing.assert_array_equal(kernel == 0, small)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("conv", {"pattern": "filters"}),
        ("conv", {"pattern": "1x4"}),
        ("dense", {"pattern": "2:4"}),
        ("dense", {"pattern": "channels", "score": "taylor"}),
    ],
)
def test_patterns(name, kwargs):
    sparsity = None if kwargs["pattern"] == "2:4" else 0.5
    model, prune = make(), Prune(sparsity, **kwargs)
    fit(model, 6, PruneCallback(prune, layers=name))
    kernel = np.array(model.get_layer(name).kernel)
    if kwargs["pattern"] == "filters":
        assert [(kernel[..., i] == 0).all() for i in range(5)].count(True) == 5 - round(2.5)
    elif kwargs["pattern"] == "channels":
        assert (kernel == 0).all(1).sum() == 40
    elif kwargs["pattern"] == "2:4":
        assert ((kernel != 0).reshape(20, 4, 3).sum(1) == 2).all()
    else:
        blocks = kernel.reshape(18, 5)
        assert (blocks == 0).all() == 0
        pruned = (blocks[:, :4] == 0).all(1).sum() + (blocks[:, 4] == 0).sum()
        assert pruned == 18
    other = model.get_layer({"conv": "dense", "dense": "conv"}[name])
    assert np.count_nonzero(other.kernel) == np.array(other.kernel).size


def test_global_scope():
    model, watch = make(), Watch()
    fit(model, 12, PruneCallback(Prune(GROWING, scope="global")), watch)
    total = sum(k.size for k in kernels(model))
    for step, found in watch.seen:
        assert sum(found) == total - round(total * (1 - GROWING.at(step)))


def test_threshold():
    model = make()
    fit(model, 6, PruneCallback(Prune(threshold=schedules.one_shot(0.1))))
    start = kernels(plain())
    for before, after in zip(start, kernels(model), strict=True):
        np.testing.assert_array_equal(after == 0, np.abs(before) < 0.1)


@pytest.mark.parametrize("settings", [{"steps_per_execution": 4}, {"run_eagerly": True}])
def test_modes_of_compile(settings):
    schedule = schedules.constant(0.6, begin=4, frequency=4)
    model, watch, reference = make(**settings), Watch(), make()
    fit(model, 12, PruneCallback(Prune(schedule)), watch)
    assert_follows(model, watch.seen, schedule)
    fit(reference, 12, PruneCallback(Prune(schedule)))
    for a, b in zip(kernels(model), kernels(reference), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_masks_hold_within_an_execution():
    """Weights that were not held at zero between steps would give other outputs."""
    together, single = make(steps_per_execution=8), make()
    prune = Prune(schedules.one_shot(0.6))
    for model in (together, single):
        fit(model, 8, PruneCallback(prune))
    for a, b in zip(kernels(together), kernels(single), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_jit_compile():
    model, watch = make(jit_compile=True), Watch()
    fit(model, 12, PruneCallback(Prune(GROWING, score="taylor")), watch)
    assert_follows(model, watch.seen, GROWING)


@pytest.mark.parametrize("eager", [False, True])
def test_a_model_that_cannot_be_flattened(eager):
    keras.utils.set_random_seed(0)
    model, watch = Branching(), Watch()
    model(X[:1])
    with pytest.raises(Exception, match=r"flatten|trace|symbolic"):
        tfc.flatten(model, inputs=keras.Input((6, 6, 2)))
    fit(compiled(model, run_eagerly=eager), 12, PruneCallback(Prune(GROWING)), watch)
    assert len(watch.seen[-1][1]) == 3
    assert_follows(model, watch.seen, GROWING)


def test_the_model_is_the_users_own_again():
    constraint, regularizer = keras.constraints.MaxNorm(0.8), keras.regularizers.L2(1e-3)
    model = compiled(plain(kernel_constraint=constraint, kernel_regularizer=regularizer))
    conv, before = model.get_layer("conv"), set(model.optimizer.__dict__)
    variables = [v.path for v in model.variables]

    class Inside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            norms = np.sqrt(np.square(conv.kernel).sum(0))
            assert norms.max() <= 0.8 + 1e-6

    fit(model, 6, PruneCallback(Prune(0.5, score="movement")), Inside())
    assert conv.kernel.constraint is constraint
    assert conv.kernel.regularizer is regularizer
    assert "apply" not in set(model.optimizer.__dict__) - before
    assert [v.path for v in model.variables] == variables
    assert float(model.losses[0]) == pytest.approx(1e-3 * np.square(conv.kernel).sum(), rel=1e-5)
    gone = zeros(model)
    assert gone == wanted(model, 0.5)
    fit(model, 2)  # nothing holds the weights any more
    assert zeros(model) == [0, 0]


def test_the_model_is_given_back_when_fit_is_interrupted():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                raise KeyboardInterrupt

    model, callback = make(), PruneCallback(Prune(0.5, score="taylor"))
    with pytest.raises(KeyboardInterrupt):
        fit(model, 8, callback, Interrupt())
    fit(model, 8, callback)  # once more, without watching twice
    assert zeros(model) == wanted(model, 0.5)
    assert model.get_layer("conv").kernel.constraint is None
    fit(model, 2)
    assert zeros(model) == [0, 0]


def test_saved_model_is_plain(tmp_path):
    model = make()
    fit(model, 6, PruneCallback(Prune(0.5)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(X), model(X))
    assert zeros(loaded) == wanted(model, 0.5)
    assert [type(x) for x in loaded.layers] == [type(x) for x in model.layers]


def test_regularizer_counts_while_pruning():
    model, other = make(keras.optimizers.SGD(0.1)), make(keras.optimizers.SGD(0.1))
    start = kernels(model)
    fit(model, 1, PruneCallback(Prune(0.0), regularizer="l2"))
    fit(other, 1)
    for a, b, kernel in zip(kernels(model), kernels(other), start, strict=True):
        np.testing.assert_allclose(a - b, -0.1 * 2 * 0.01 * kernel, atol=1e-6)
    assert model.losses == []
    fit(model, 2, PruneCallback(Prune(0.0), regularizer=GroupLasso(1e-3)))


def test_own_regularizer_stays_beside_another():
    own, sgd = keras.regularizers.L1(0.05), keras.optimizers.SGD
    model = compiled(plain(kernel_regularizer=own), sgd(0.1))
    other = compiled(plain(kernel_regularizer=own), sgd(0.1))
    start = kernels(model)[0]
    fit(model, 1, PruneCallback(Prune(0.0), layers="conv", regularizer="l2"))
    fit(other, 1)
    difference = kernels(model)[0] - kernels(other)[0]
    np.testing.assert_allclose(difference, -0.1 * 2 * 0.01 * start, atol=1e-6)


def test_second_fit_goes_on():
    model, whole = make(), make()
    callback = PruneCallback(Prune(GROWING))
    fit(model, 5, callback)
    assert zeros(model) == wanted(model, GROWING.at(5))
    model.fit(X[20:48], Y[20:48], batch_size=4, shuffle=False, verbose=0, callbacks=[callback])
    fit(whole, 12, PruneCallback(Prune(GROWING)))
    for a, b in zip(kernels(model), kernels(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("score", ["taylor", pytest.param("movement", marks=pytest.mark.slow)])
def test_learned_scores_in_a_second_fit(score):
    model, watch, schedule = make(), Watch(), schedules.linear(0.2, 0.8, end=12, frequency=2)
    fit(model, 5, PruneCallback(Prune(schedule, score=score)), watch)
    fit(model, 9, PruneCallback(Prune(schedule, score=score)), watch)
    assert_follows(model, watch.seen, schedule)


def test_another_optimizer_goes_on_with_the_same_callback():
    model, callback, watch = make(), PruneCallback(Prune(GROWING)), Watch()
    fit(model, 6, callback, watch)
    compiled(model, keras.optimizers.SGD(0.01))
    fit(model, 6, callback, watch)
    steps = [(6 * (i >= 6) + step, found) for i, (step, found) in enumerate(watch.seen)]
    assert [step for step, _ in steps] == list(range(1, 13))
    assert_follows(model, steps, GROWING)


def test_another_model_begins_anew():
    callback = PruneCallback(Prune(GROWING))
    fit(make(), 8, callback)
    model, watch = make(), Watch()
    fit(model, 5, callback, watch)
    assert_follows(model, watch.seen, GROWING)


@pytest.mark.parametrize("undo", [True, False])
def test_restored_weights_of_an_earlier_epoch_are_pruned_and_told(undo, recwarn):
    """As EarlyStopping(restore_best_weights=True) does, whose best epoch was less sparse."""
    model = make()
    start = model.get_weights()
    restore = keras.callbacks.LambdaCallback(on_train_end=lambda logs: model.set_weights(start))
    fit(model, 12, *([restore] if undo else []), PruneCallback(Prune(GROWING)))
    assert zeros(model) == wanted(model, 0.7)
    told = [str(w.message) for w in recwarn if "put back" in str(w.message)]
    assert len(told) == undo


def test_too_short_training_is_told():
    model, callback = make(), PruneCallback(Prune(schedules.linear(0.0, 0.8, begin=4, end=8)))
    with pytest.warns(UserWarning, match=r"sparsity reached 0 of 0\.8, due at step 8"):
        fit(model, 3, callback)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, 5, callback)


def test_fine_tuning_with_what_was_pruned():
    """A second callback holds the zeros of the first, without more of them."""
    model = make()
    fit(model, 4, PruneCallback(Prune(0.5)))
    gone = [k == 0 for k in kernels(model)]
    compiled(model)
    fit(model, 4, PruneCallback(Prune(0.5)))
    for before, kernel in zip(gone, kernels(model), strict=True):
        np.testing.assert_array_equal(kernel == 0, before)


def test_taylor_and_movement_by_hand():
    x, y = np.array([[1.0, 2.0, -3.0]], "float32"), np.array([[1.0, 1.0]], "float32")
    for score in ("taylor", "movement"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2, use_bias=False)])
        kernel = np.array([[3.0, -2.5], [-1.0, 4.0], [2.0, 1.5]])
        model.layers[0].set_weights([kernel])
        loss = lambda y, p: ops.sum(p * y, -1)  # noqa: E731
        model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
        # One step, whose gradient is the outer product of x and y; then half are pruned.
        prune = Prune(schedules.one_shot(0.5, step=1), score=score)
        model.fit(x, y, verbose=0, callbacks=[PruneCallback(prune)])
        product = np.outer(x, y) * kernel
        scores = np.abs(product) if score == "taylor" else -product
        after = kernel - 0.1 * np.outer(x, y)
        order = np.argsort(scores.ravel(), kind="stable")
        after.ravel()[order[:3]] = 0
        np.testing.assert_allclose(model.layers[0].kernel, after, rtol=1e-6)


def test_use_ema():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    model, watch = make(optimizer), Watch()
    fit(model, 12, PruneCallback(Prune(GROWING)), watch)
    assert_follows(model, watch.seen, GROWING)
    assert zeros(model) == wanted(model, 0.7)
    often = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=5)
    model, watch = make(often), Watch()
    fit(model, 12, PruneCallback(Prune(GROWING)), watch)
    assert_follows(model, watch.seen, GROWING)


@pytest.mark.parametrize(
    ("policy", "score"),
    [
        ("mixed_float16", "taylor"),
        pytest.param("mixed_float16", "movement", marks=pytest.mark.slow),
        pytest.param("mixed_float16", "magnitude", marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", "taylor", marks=pytest.mark.slow),
    ],
)
def test_mixed_precision(policy, score):
    keras.config.set_dtype_policy(policy)
    try:
        model, watch = make(), Watch()
        # The first steps overflow with this loss scale, and are skipped.
        if policy == "mixed_float16":
            inner = keras.optimizers.Adam(0.02)
            optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**22)
            model = compiled(plain(), optimizer)
        callback = PruneCallback(Prune(GROWING, score=score))
        fit(model, 16, callback, watch)
    finally:
        keras.config.set_dtype_policy("float32")
    assert_follows(model, watch.seen, GROWING)
    if score != "magnitude":
        for weight in callback._weights:
            assert np.isfinite(weight.scores).all()
            # Not scaled as the loss is.
            assert 0 < np.abs(weight.scores).max() < 100
    assert all(np.isfinite(kernel).all() for kernel in kernels(model))


@pytest.mark.parametrize("score", [pytest.param("magnitude", marks=pytest.mark.slow), "taylor"])
def test_gradient_accumulation(score):
    optimizer = keras.optimizers.Adam(0.02, gradient_accumulation_steps=2)
    model, watch = make(optimizer), Watch()
    schedule = schedules.linear(0.1, 0.7, end=6, frequency=2)
    fit(model, 16, PruneCallback(Prune(schedule, score=score)), watch)
    assert [step for step, _ in watch.seen] == [i // 2 for i in range(1, 17)]
    assert_follows(model, watch.seen, schedule)


def test_shared_layers_are_pruned_once():
    keras.utils.set_random_seed(0)
    dense, inputs = layers.Dense(4, name="shared"), keras.Input((4,))
    inner = keras.Sequential([dense, layers.ReLU()], name="inner")
    model = keras.Model(inputs, layers.Dense(3)(dense(inner(inputs) + inner(dense(inputs)))))
    watch = Watch()
    compiled(model).fit(
        X[:, 0, 0, :1].repeat(4, 1), Y, verbose=0, batch_size=4,
        callbacks=[PruneCallback(Prune(GROWING, score="taylor")), watch],
    )  # fmt: skip
    assert len(kernels(model)) == 2
    assert_follows(model, watch.seen, GROWING)


@pytest.mark.parametrize("score", [pytest.param("magnitude", marks=pytest.mark.slow), "taylor"])
def test_own_train_step(score):
    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            grads = tape.gradient(loss, self.trainable_weights)
            pairs = zip(grads, self.trainable_weights, strict=True)
            self.optimizer.apply_gradients(pairs)
            return {"loss": loss}

    source = plain()
    model, watch, reference = Own(source.inputs, source.outputs), Watch(), make()
    fit(compiled(model), 12, PruneCallback(Prune(GROWING, score=score)), watch)
    assert_follows(model, watch.seen, GROWING)
    fit(reference, 12, PruneCallback(Prune(GROWING, score=score)))
    for a, b in zip(kernels(model), kernels(reference), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_layers_within_layers():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Embedding(20, 8, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(x)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.SeparableConv1D(6, 3)(x)
    model = compiled(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))))
    x = RANDOM.integers(0, 20, (64, 6))
    model.fit(x, Y, batch_size=8, verbose=0, callbacks=[PruneCallback(Prune(0.5))])
    names = ("kernel", "recurrent_kernel", "pointwise_kernel", "embeddings")
    pruned = [v for v in model.trainable_variables if v.name in names]
    assert len(pruned) == 11
    for variable in pruned:
        kernel = np.array(variable)
        assert (kernel == 0).sum() == kernel.size - round(kernel.size * 0.5), variable.path
    depthwise = next(v for v in model.trainable_variables if v.name == "depthwise_kernel")
    assert np.count_nonzero(depthwise) == np.array(depthwise).size


def test_which_layers():
    for chosen in ("Dense", "d*", lambda layer: layer.name == "dense"):
        model = make(run_eagerly=True)
        fit(model, 1, PruneCallback(Prune(0.5), layers=chosen))
        assert zeros(model) == [0, 120]


@pytest.mark.slow
def test_as_a_compressed_model():
    """The same masks and weights as those of a wrapped model, where masks are never undone."""
    schedule = schedules.one_shot(0.6, step=3)
    model, wrapped = make(), compiled(tfc.compress(plain(), [tfc.Rule("*", [Prune(schedule)])]))
    fit(model, 10, PruneCallback(Prune(schedule)))
    fit(wrapped, 10, tfc.UpdateCompression())
    final = tfc.finalize(wrapped)
    assert zeros(final) == zeros(model)
    for a, b in zip(kernels(final), kernels(model), strict=True):
        np.testing.assert_array_equal(a == 0, b == 0)


def test_errors():
    with pytest.raises(TypeError, match=r"prune must be a tfcompress.Prune; received 0\.5"):
        PruneCallback(0.5)
    with pytest.raises(TypeError, match=r"Other techniques need a model from tfcompress.compress"):
        PruneCallback(tfc.Cluster(4))
    with pytest.raises(ValueError, match=r"finds nothing to prune .*layers='none'"):
        fit(make(), 1, PruneCallback(Prune(0.5), layers="none"))
    unbuilt = compiled(keras.Sequential([layers.Flatten(), layers.Dense(3)]))
    with pytest.raises(ValueError, match="build the model before fit"):
        fit(unbuilt, 1, PruneCallback(Prune(0.5)))
    wrapped = compiled(tfc.compress(plain(), [tfc.Rule("*", [Prune(0.5)])]))
    with pytest.raises(ValueError, match="models that are not wrapped; layer 'conv'"):
        fit(wrapped, 1, PruneCallback(Prune(0.5)))
    callback = PruneCallback(Prune(0.5))
    callback.set_model(plain())
    with pytest.raises(ValueError, match="Compile it"):
        callback.on_train_begin()
    depthwise = keras.Sequential([layers.DepthwiseConv2D(3), layers.GlobalAveragePooling2D()])
    depthwise.build((None, 6, 6, 2))
    with pytest.raises(ValueError, match="depthwise=True"):
        fit(compiled(depthwise), 1, PruneCallback(Prune(0.5)))


def test_a_score_of_a_wrong_shape():
    model = make()
    with pytest.raises(ValueError, match="Return one score for each weight"):
        fit(model, 2, PruneCallback(Prune(0.5, score=lambda weight: weight.sum())))


def lora_model():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, name="d")])
    model.get_layer("d").enable_lora(2)
    model.compile("sgd", "mse", jit_compile=False)
    return model


LORA = r"layer 'd' must have plain weights.*LoRA.*Merge it"


def test_low_rank_weights_must_be_merged():
    with pytest.raises(ValueError, match=LORA):
        tfc.compress(lora_model(), [tfc.Rule("*", [tfc.Prune(0.5)])])
    model, x, callback = lora_model(), np.zeros((4, 6)), tfc.PruneCallback(tfc.Prune(0.5))
    with pytest.raises(ValueError, match=LORA):
        model.fit(x, x[:, :5], verbose=0, callbacks=[callback])
