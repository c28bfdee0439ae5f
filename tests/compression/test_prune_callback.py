"""PruneCallback: which weights of a user's own model are zero, at every batch."""

import keras
import numpy as np
import pytest
from callback_models import (
    GROWING,
    RANDOM,
    Watch,
    X,
    Y,
    assert_follows,
    compiled,
    fit,
    kernels,
    make,
    plain,
    wanted,
    zeros,
)
from keras import layers, ops
from pruning_models import in_layers

import tfcompress as tfc
from tfcompress import PruneCallback, schedules

PRUNES = [
    in_layers(GROWING),
    in_layers(GROWING, score="random"),
    in_layers(GROWING, score="taylor"),
    in_layers(GROWING, score="movement"),
    in_layers(GROWING, score=np.abs),
]


@pytest.mark.parametrize("prune", PRUNES, ids=lambda p: str(p.score))
def test_zeros_at_every_batch(prune):
    # Of scores that are not learned, a compiled step sees no more than the masks.
    eager = prune.score not in ("magnitude", "taylor", "movement")
    model, watch = make(run_eagerly=eager), Watch()
    fit(model, 14, PruneCallback(prune), watch)
    assert [step for step, _ in watch.seen] == list(range(1, 15))
    assert_follows(model, watch.seen, GROWING)
    assert zeros(model) == wanted(model, 0.7)


def test_constant_sparsity_from_the_start():
    for score in ("magnitude", "taylor", "movement", "random"):
        model, watch = make(run_eagerly=True), Watch()
        sizes = [np.abs(kernel) for kernel in kernels(model)]
        smallest = [size <= np.sort(size.ravel())[size.size // 2 - 1] for size in sizes]
        fit(model, 3, PruneCallback(in_layers(0.5, score=score)), watch)
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
    model, prune = make(run_eagerly=True), in_layers(sparsity, **kwargs)
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
    model, watch = make(run_eagerly=True), Watch()
    fit(model, 12, PruneCallback(in_layers(GROWING, scope="global")), watch)
    total = sum(k.size for k in kernels(model))
    for step, found in watch.seen:
        assert sum(found) == total - round(total * (1 - GROWING.at(step)))


def test_threshold():
    model = make(run_eagerly=True)
    fit(model, 6, PruneCallback(in_layers(threshold=schedules.one_shot(0.1))))
    start = kernels(plain())
    for before, after in zip(start, kernels(model), strict=True):
        np.testing.assert_array_equal(after == 0, np.abs(before) < 0.1)


def test_taylor_and_movement_by_hand():
    x, y = np.array([[1.0, 2.0, -3.0]], "float32"), np.array([[1.0, 1.0]], "float32")
    for score in ("taylor", "movement"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2, use_bias=False)])
        kernel = np.array([[3.0, -2.5], [-1.0, 4.0], [2.0, 1.5]])
        model.layers[0].set_weights([kernel])
        loss = lambda y, p: ops.sum(p * y, -1)  # noqa: E731
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
        # One step, whose gradient is the outer product of x and y; then half are pruned.
        prune = in_layers(schedules.one_shot(0.5, step=1), score=score)
        model.fit(x, y, verbose=0, callbacks=[PruneCallback(prune)])
        product = np.outer(x, y) * kernel
        scores = np.abs(product) if score == "taylor" else -product
        after = kernel - 0.1 * np.outer(x, y)
        order = np.argsort(scores.ravel(), kind="stable")
        after.ravel()[order[:3]] = 0
        np.testing.assert_allclose(model.layers[0].kernel, after, rtol=1e-6)


def test_shared_layers_are_pruned_once():
    keras.utils.set_random_seed(0)
    dense, inputs = layers.Dense(4, name="shared"), keras.Input((4,))
    inner = keras.Sequential([dense, layers.ReLU()], name="inner")
    model = keras.Model(inputs, layers.Dense(3)(dense(inner(inputs) + inner(dense(inputs)))))
    watch = Watch()
    compiled(model).fit(
        X[:, 0, 0, :1].repeat(4, 1), Y, verbose=0, batch_size=4,
        callbacks=[PruneCallback(in_layers(GROWING, score="taylor")), watch],
    )  # fmt: skip
    assert len(kernels(model)) == 2
    assert_follows(model, watch.seen, GROWING)


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
    model.fit(x, Y, batch_size=8, verbose=0, callbacks=[PruneCallback(in_layers(0.5))])
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
        fit(model, 1, PruneCallback(in_layers(0.5), layers=chosen))
        assert zeros(model) == [0, 120]


@pytest.mark.slow
def test_as_a_compressed_model():
    """The same masks and weights as those of a wrapped model, where masks are never undone."""
    schedule = schedules.one_shot(0.6, step=3)
    model, wrapped = make(), compiled(tfc.compress(plain(), [tfc.Rule("*", [in_layers(schedule)])]))
    fit(model, 10, PruneCallback(in_layers(schedule)))
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
        fit(make(), 1, PruneCallback(in_layers(0.5), layers="none"))
    unbuilt = compiled(keras.Sequential([layers.Flatten(), layers.Dense(3)]))
    with pytest.raises(ValueError, match="build the model before fit"):
        fit(unbuilt, 1, PruneCallback(in_layers(0.5)))
    wrapped = compiled(tfc.compress(plain(), [tfc.Rule("*", [in_layers(0.5)])]))
    with pytest.raises(ValueError, match="models that are not wrapped; layer 'conv'"):
        fit(wrapped, 1, PruneCallback(in_layers(0.5)))
    callback = PruneCallback(in_layers(0.5))
    callback.set_model(plain())
    with pytest.raises(ValueError, match="Compile it"):
        callback.on_train_begin()
    depthwise = keras.Sequential([layers.DepthwiseConv2D(3), layers.GlobalAveragePooling2D()])
    depthwise.build((None, 6, 6, 2))
    with pytest.raises(ValueError, match="depthwise=True"):
        fit(compiled(depthwise), 1, PruneCallback(in_layers(0.5)))


def test_a_score_of_a_wrong_shape():
    model = make()
    with pytest.raises(ValueError, match="Return one score for each weight"):
        fit(model, 2, PruneCallback(in_layers(0.5, score=lambda weight: weight.sum())))


def lora_model():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, name="d")])
    model.get_layer("d").enable_lora(2)
    model.compile("sgd", "mse", jit_compile=False)
    return model


LORA = r"layer 'd' must have plain weights.*LoRA.*Merge it"


def test_low_rank_weights_must_be_merged():
    with pytest.raises(ValueError, match=LORA):
        tfc.compress(lora_model(), [tfc.Rule("*", [in_layers(0.5)])])
    model, x, callback = lora_model(), np.zeros((4, 6)), tfc.PruneCallback(in_layers(0.5))
    with pytest.raises(ValueError, match=LORA):
        model.fit(x, x[:, :5], verbose=0, callbacks=[callback])


def test_the_way_out_of_low_rank_weights(tmp_path):
    def make():
        return keras.Sequential(
            [
                keras.Input((6,), dtype="int32"),
                keras.layers.Embedding(9, 8, name="embedding"),
                keras.layers.EinsumDense("abc,cd->abd", (None, 5), name="einsum"),
                keras.layers.Dense(4, name="d"),
            ]
        )

    model, path = make(), tmp_path / "merged.weights.h5"
    for layer in model.layers:
        layer.enable_lora(2)
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    model.save_weights(path)
    merged, x = make(), np.arange(12).reshape(2, 6) % 9
    merged.load_weights(path)
    np.testing.assert_allclose(merged(x), model(x), rtol=1e-4, atol=1e-4)
    assert tfc.compress(merged, [tfc.Rule("*", [in_layers(0.5)])]).count_params() > 0


@pytest.mark.parametrize("wrapped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_averages_of_weights_are_as_sparse(wrapped, tmp_path):
    """A checkpoint of what SwapEMAWeights puts in, whatever comes first in the list."""
    model = make()
    optimizer = keras.optimizers.Adam(0.01, use_ema=True)
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse", jit_compile=False)
    path = tmp_path / "model.keras"
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    save = keras.callbacks.ModelCheckpoint(path)
    x = np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])).astype("float32")
    y = np.zeros((32, *model.output_shape[1:]), "float32")
    prune = PruneCallback(in_layers(schedules.polynomial(0.0, 0.75, end=6)))
    model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[swap, save, prune])
    for each in (model, keras.saving.load_model(path)):
        kernels = [np.array(v) for v in each.trainable_variables if v.name == "kernel"]
        assert [round(float(np.mean(k == 0)), 1) for k in kernels] == [0.8] * len(kernels)
