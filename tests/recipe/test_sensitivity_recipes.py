"""Recipe.from_sensitivity: against allocations worked out by hand and by brute force."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers
from sensitivity_models import X, compiled, made

import tfcompress as tfc
from tfcompress import schedules
from tfcompress.recipe.allocation import allocate

RANDOM = np.random.default_rng(0)


def finals(recipe):
    """{layer pattern: sparsity at the end} of a recipe's rules."""
    return {
        rule.layers: next((t.schedule.final for t in rule.techniques if type(t) is tfc.Prune), 0.0)
        for rule in recipe.rules
    }


def test_recipe_prunes_exactly_the_overall_sparsity():
    keras.utils.set_random_seed(0)
    sizes = [layers.Dense(n, name=f"d{n}") for n in (40, 30, 20, 10)]
    model = compiled(keras.Sequential([keras.Input((50,)), *sizes]))
    x = np.random.default_rng(0).normal(size=(32, 50)).astype("float32")
    y = model.predict(x, verbose=0)  # so that every zero costs something
    found = tfc.sensitivity(model, (x, y), bits=[], sparsities=[0.3, 0.6, 0.9])
    curve = schedules.polynomial(0.2, 0.5, end=3, frequency=1)
    after = [tfc.Quantize(bits=8)]
    recipe = tfc.Recipe.from_sensitivity(found, 0.75, schedule=curve, techniques_after=after)
    small = compiled(tfc.compress(model, recipe))
    callbacks = [tfc.UpdateCompression()]
    small.fit(x, y, batch_size=8, verbose=0, callbacks=callbacks)
    baked = tfc.finalize(small)
    kernels = [w for w in baked.weights if w.name == "kernel"]
    assert len(kernels) == 4
    zeros = sum(np.count_nonzero(np.array(w) == 0) for w in kernels)
    assert zeros / sum(w.shape[0] * w.shape[1] for w in kernels) == pytest.approx(0.75, abs=1e-3)
    shares = [next(t for t in r.techniques if type(t) is tfc.Prune) for r in recipe.rules[1:]]
    for prune in shares:  # the same curve for all, each with an end of its own
        assert prune.schedule.at(0) / prune.schedule.at(3) == pytest.approx(0.4)
    assert len({prune.schedule.final for prune in shares}) > 1
    assert recipe.rules[0] == tfc.Rule("*", after)


@pytest.mark.slow
def test_insensitive_layers_get_the_most_sparsity():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    useless = layers.Dense(20, name="useless")(inputs) * 0.0
    x = layers.Concatenate()([layers.Dense(20, name="useful")(inputs), useless])
    model = compiled(keras.Model(inputs, layers.Dense(3, name="last")(x)))
    model.get_layer("last").kernel.assign(RANDOM.normal(size=(40, 3)))
    target = model.predict(X, verbose=0)
    found = tfc.sensitivity(model, (X, target), layers="use*", bits=[])
    assert set(found.drops()["useless"].values()) == {0.0}
    assert min(found.drops()["useful"].values()) > 0
    shares = finals(tfc.Recipe.from_sensitivity(found, 0.6))
    assert shares == pytest.approx({"useful": 0.3, "useless": 0.9}, abs=1e-6)


def least_by_brute_force(sizes, curves, budget, steps=20):
    """The least sum of interpolated drops on a grid of sparsities of at least the budget."""
    grid = np.linspace(0, 0.9, steps - 1)
    best = np.inf
    for shares in itertools.product(grid, repeat=len(sizes)):
        used = sum(s * n for s, n in zip(shares, sizes, strict=True))
        if used >= budget - 1e-9:
            drops = [np.interp(s, *c) for s, c in zip(shares, curves, strict=True)]
            best = min(best, sum(drops))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_allocation_against_brute_force(seed):
    random = np.random.default_rng(seed)
    points = np.array([0.0, 0.3, 0.6, 0.9])
    rises = np.sort(random.exponential(size=(3, 3)), axis=1)  # convex
    drops = np.concatenate([np.zeros((3, 1)), np.cumsum(rises, axis=1)], axis=1)
    sizes = dict(zip("abc", random.integers(50, 500, 3).tolist(), strict=True))
    named = {n: dict(zip(points, d, strict=True)) for n, d in zip("abc", drops, strict=True)}
    target = random.uniform(0.2, 0.85)
    found = allocate(sizes, named, target, 0.95)
    total = sum(sizes.values())
    assert sum(found[n] * sizes[n] for n in sizes) / total == pytest.approx(target, abs=2e-6)
    assert all(0 <= share <= 0.9 for share in found.values())
    curves = [(points, d) for d in drops]
    mine = sum(np.interp(found[n], *c) for n, c in zip("abc", curves, strict=True))
    best = least_by_brute_force([*sizes.values()], curves, target * total)
    assert mine <= best + 1e-5
    more = allocate(sizes, named, min(target + 0.04, 0.9), 0.95)
    assert all(more[n] >= found[n] for n in sizes)


def test_allocation_by_hand():
    cheap, dear = {0.5: 0.0, 0.9: 0.1}, {0.5: 1.0, 0.9: 9.0}
    sizes = {"a": 100, "b": 300}
    # All of what is free, then 0.0025 a weight, which is less than 0.0067.
    assert allocate(sizes, {"a": cheap, "b": cheap}, 0.5, 0.95) == {"a": 0.5, "b": 0.5}
    assert allocate(sizes, {"a": cheap, "b": dear}, 0.2, 0.95) == {"a": 0.8, "b": 0.0}
    assert allocate(sizes, {"a": cheap, "b": dear}, 0.3, 0.95) == {"a": 0.9, "b": 0.1}
    assert allocate(sizes, {"a": cheap, "b": dear}, 0.3, 0.6) == {"a": 0.6, "b": 0.2}
    # Equal costs are shared, gains count as none, and nothing goes past what is not finite.
    same = {0.5: 1.0}
    assert allocate(sizes, {"a": same, "b": {0.5: 3.0}}, 0.25, 0.95) == {"a": 0.25, "b": 0.25}
    assert allocate(sizes, {"a": {0.5: -1.0, 0.9: -2.0}, "b": same}, 0.225, 0.95)["a"] == 0.9
    lost = {0.2: 0.0, 0.5: float("inf"), 0.9: 0.0}
    assert allocate(sizes, {"a": lost, "b": dear}, 0.2, 0.95) == {"a": 0.2, "b": 0.2}
    # A dent in the curve is passed over: 0.9 costs less a weight than 0.3.
    dent = {0.3: 3.0, 0.9: 3.1}
    assert allocate(sizes, {"a": dent, "b": {0.9: 90.0}}, 0.225, 0.95) == {"a": 0.9, "b": 0.0}


def test_recipe_rules():
    drops = {"a*": {0.8: 0.0}, "b": {0.8: 1.0}}
    assert finals(tfc.Recipe.from_sensitivity(made(drops), 0.4)) == {"a[*]": 0.8, "b": 0.0}
    prune = tfc.Prune(0.5, pattern="1x4", score="l2")
    found = made({"a": {0.8: 1.0}, "b": {0.8: 1.0}}, prune=prune)
    points = schedules.points([(0, 0.2), (10, 0.4)])
    recipe = tfc.Recipe.from_sensitivity(
        found, 0.6, schedule=points, techniques_after=[tfc.Cluster(8)]
    )
    assert [rule.layers for rule in recipe.rules] == ["a", "b"]
    first, second = recipe.rules[0].techniques
    assert (first.pattern, first.score, second) == ("1x4", "l2", tfc.Cluster(8))
    assert [first.schedule.at(0), first.schedule.at(10)] == pytest.approx([0.3, 0.6])


def test_out_of_reach():
    found = made({"a": {0.8: 1.0}, "b": {0.4: 1.0}})
    assert finals(tfc.Recipe.from_sensitivity(found, 0.6)) == {"a": 0.8, "b": 0.4}
    with pytest.raises(ValueError, match=r"0\.61 is out of reach: .* reach 0\.6 with max_sp"):
        tfc.Recipe.from_sensitivity(found, 0.61)
    with pytest.raises(ValueError, match=r"0\.6 is out of reach: .* reach 0\.55"):
        tfc.Recipe.from_sensitivity(found, 0.6, max_sparsity=0.7)
    with pytest.raises(ValueError, match=r"received 80. Did you mean 0\.8\?"):
        tfc.Recipe.from_sensitivity(found, 80)
    with pytest.raises(TypeError, match="found must be what"):
        tfc.Recipe.from_sensitivity({}, 0.5)
    with pytest.raises(TypeError, match="schedule must be one of"):
        tfc.Recipe.from_sensitivity(found, 0.5, schedule=0.5)
