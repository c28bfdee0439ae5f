"""prune_channels: targets are met, the right channels go, and errors come before work."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops
from surgery_models import relative_error, samples_of, shaken

import tfcompress as tfc
from tfcompress.surgery.base import opened
from tfcompress.surgery.pruning.groups import Structure
from tfcompress.surgery.pruning.limits import Target
from tfcompress.surgery.pruning.ranking import choose, kept_channels


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def plain(widths=(16, 32, 16)):
    x = inputs = keras.Input((8, 8, 3), name="image")
    for i, width in enumerate(widths):
        x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv{i}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x))


def widths_of(model):
    return [model.get_layer(f"conv{i}").filters for i in range(3)]


def filters_of(kernel):
    return np.sqrt(np.sum(np.square(kernel), axis=(0, 1, 2)))


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("name", ["macs", "params"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_a_share_of_the_cost_is_just_undercut(scope, name, share):
    small = tfc.prune_channels(plain(), scope=scope, round_to=1, **{name: share})
    before, after = getattr(small.surgery_report, name)
    profile = tfc.profile(small)
    assert after == (profile.macs if name == "macs" else profile.params)
    assert 0.9 * share < after / before <= share


def test_what_rounding_takes_too_much_is_given_back():
    """Of the layers that have room for 8 more channels, that with the best ones gets them."""
    structure = Structure(opened(plain((16, 16, 16))))
    scores = {f"conv{i}": np.linspace(1, 2 + i, 16) for i in range(3)}
    choice = choose(structure, scores, Target(macs=0.62), round_to=8)
    sizes = {name: len(choice.get(name, range(16))) for name in scores}
    assert structure.cost(structure.sizes(choice))[0] <= 0.62 * structure.cost({})[0]
    for name, size in sizes.items():
        more = {structure.numbers[n]: k for n, k in {**sizes, name: 16}.items()}
        assert size == 16 or structure.cost(more)[0] > 0.62 * structure.cost({})[0]


def test_local_pruning_takes_the_same_fraction_everywhere():
    small = tfc.prune_channels(plain(), sparsity=0.5, scope="local", round_to=1)
    assert widths_of(small) == [8, 16, 8]
    assert "conv1  32 -> 16 channels" in str(small.surgery_report)


@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_what_stays_is_a_multiple(round_to):
    small = tfc.prune_channels(plain((20, 30, 16)), sparsity=0.4, round_to=round_to)
    for width, whole in zip(widths_of(small), (20, 30, 16), strict=True):
        assert width % round_to == 0 or width == whole


def test_the_smallest_filters_go():
    model = plain()
    kernel = np.array(model.get_layer("conv1").kernel.value)
    kernel[..., [3, 7, 20]] *= 0.01
    model.get_layer("conv1").kernel.assign(kernel)
    small = tfc.prune_channels(model, per_layer={"conv1": 3 / 32}, score="l1", round_to=1)
    left = np.delete(np.arange(32), [3, 7, 20])
    assert widths_of(small) == [16, 29, 16]
    assert np.array_equal(small.get_layer("conv1").kernel, kernel[..., left])
    after = np.array(model.get_layer("conv2").kernel.value)
    assert np.array_equal(small.get_layer("conv2").kernel, after[:, :, left])


def test_a_score_of_the_users_own():
    seen = {}

    def score(group):
        seen[group.name] = group.size
        return np.arange(group.size)

    model = plain()
    small = tfc.prune_channels(model, per_layer={"conv0": 0.5}, score=score)
    assert seen == {"conv0": 16, "conv1": 32, "conv2": 16}
    wanted = np.array(model.get_layer("conv0").kernel.value)[..., 8:]
    assert np.array_equal(small.get_layer("conv0").kernel, wanted)


def test_keep_names_layers_and_patterns():
    small = tfc.prune_channels(plain(), macs=0.7, keep=["conv0", "*2"])
    assert widths_of(small)[::2] == [16, 16]
    assert widths_of(small)[1] < 32
    told = str(small.surgery_report)
    assert "conv0  kept: keep names 'conv0'" in told
    assert "head   kept: they are an output of the model" in told


def test_the_most_of_each_layer():
    with pytest.raises(ValueError, match=r"macs=0\.1 is out of reach.*at least 0\.2"):
        tfc.prune_channels(plain(), macs=0.1, max_sparsity=0.5, round_to=1)
    small = tfc.prune_channels(plain(), macs=0.3, max_sparsity=0.5, round_to=1)
    assert np.all(np.array(widths_of(small)) >= [8, 16, 8])


def test_narrow_layers_keep_multiples_of_less_where_the_target_asks_it():
    with pytest.warns(UserWarning, match=r"multiples of 8: they are multiples of 4.*round_to=4"):
        small = tfc.prune_channels(plain((8, 12, 8)), macs=0.5)
    assert all(width % 4 == 0 for width in widths_of(small))
    before, after = small.surgery_report.macs
    assert after <= 0.5 * before


@pytest.mark.parametrize("name", ["macs", "params", "sparsity"])
def test_what_an_error_says_can_be_had_can_be_had(name):
    settings = {"round_to": 3, "max_sparsity": 0.35}
    with pytest.raises(ValueError, match="out of reach") as told:
        tfc.prune_channels(
            plain((8, 12, 9)), **{name: {"sparsity": 0.9}.get(name, 0.1)}, **settings
        )
    best = float(re.search(rf"Pass {name}=(0\.\d+)", str(told.value))[1])
    small = tfc.prune_channels(plain((8, 12, 9)), **{name: best}, **settings)
    if name != "sparsity":
        before, after = getattr(small.surgery_report, name)
        assert best - 0.002 <= after / before <= best


def test_global_ranking_compares_scores_relative_to_their_layers():
    structure = Structure(opened(plain((4, 4, 4))))
    scores = {
        "conv0": np.array([1.0, 2.0, 3.0, 4.0]),
        "conv1": np.array([100.0, 200.0, 300.0, 400.0]),
        "conv2": np.array([5.0, 5.0, 5.0, 5.0]),
    }
    choice = choose(structure, scores, Target(sparsity=1 / 3), round_to=1)
    assert {name: kept.tolist() for name, kept in choice.items()} == {
        "conv0": [2, 3],
        "conv1": [2, 3],
    }


def test_of_equal_scores_the_first_stay():
    assert kept_channels({"a": np.ones(4)}, {"a": 2})["a"].tolist() == [0, 1]
    assert kept_channels({"a": np.ones(4)}, {"a": 4}) == {}


def test_subclassed_models_and_their_classes_are_pruned(tmp_path):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(16, 3, name="conv", activation="relu")
            self.head = layers.Dense(2, name="head")

        def call(self, x):
            return self.head(layers.Flatten()(self.conv(x)))

    model = Net()
    x = np.ones((2, 6, 6, 3), "float32")
    before = np.array(model(x))
    small = tfc.prune_channels(model, macs=0.6)
    assert small.get_layer("conv").filters == 8
    assert np.array_equal(model(x), before)
    small.save(tmp_path / "small.keras")
    assert relative_error(small(x), keras.saving.load_model(tmp_path / "small.keras")(x)) == 0


def test_the_class_of_a_functional_model_stays():
    class Mine(keras.Model):
        def train_step(self, data):
            return {"loss": 1.5}

    base = plain()
    small = tfc.prune_channels(Mine(base.inputs, base.outputs), macs=0.5)
    assert type(small) is Mine


def test_a_pruned_model_runs_as_int8(tmp_path):
    model = shaken(plain())
    small = tfc.prune_channels(model, macs=0.5)
    x = samples_of(small, 8)
    report = tfc.convert(small, tmp_path / "small.tflite", precision="int8", calibration=x)
    assert report.float_ops == []


def bad(**settings):
    settings = settings or {"macs": 0.5}
    return lambda: tfc.prune_channels(plain(), **settings)


ERRORS = {
    "exactly one of macs, params, sparsity, per_layer must be given; received none": bad(
        score="l1"
    ),
    "received macs, params": bad(macs=0.5, params=0.5),
    r"macs must be a number in \(0, 1\); received 50. Did you mean 0.5": bad(macs=50),
    "params must be .* received 1": bad(params=1),
    "sparsity must be .* received True": bad(sparsity=True),
    r"per_layer\['conv0'\] must be .* Did you mean 0.25": bad(per_layer={"conv0": 25}),
    "per_layer must be": bad(per_layer={}),
    "received 'cnv0'. Did you mean 'conv0'": bad(per_layer={"cnv0": 0.5}),
    "received 'head', whose channels stay: they are an output": bad(per_layer={"head": 0.5}),
    "keep must name layers of the model; received 'stem'": bad(macs=0.5, keep="stem"),
    "unknown scope 'globl'.* Did you mean 'global'": bad(macs=0.5, scope="globl"),
    "round_to must be a whole number": bad(macs=0.5, round_to=0),
    "max_sparsity must be .* Did you mean 0.9": bad(macs=0.5, max_sparsity=90),
    "macs=0.001 is out of reach": bad(macs=0.001),
    "must have channels that can be removed": bad(macs=0.5, keep="*"),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        ERRORS[message]()


def test_models_that_will_not_do():
    with pytest.raises(ValueError, match="built"):
        tfc.prune_channels(keras.Sequential([layers.Dense(4)]), macs=0.5)
    with pytest.raises(ValueError, match="Finalize it"):
        tfc.prune_channels(tfc.quantize_aware(plain()), macs=0.5)
    with pytest.raises(TypeError, match=r"keras\.Model"):
        tfc.prune_channels("model.keras", macs=0.5)


def test_layers_that_share_channels_lose_the_same():
    x = inputs = keras.Input((4, 4, 3))
    parts = [layers.Conv2D(8, 1, name=name)(x) for name in "ab"]
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Add()(parts))))
    with pytest.raises(ValueError, match=r"'a': 0\.5 and 'b': 0\.25"):
        tfc.prune_channels(model, per_layer={"a": 0.5, "b": 0.25}, round_to=1)
    small = tfc.prune_channels(model, per_layer={"b": 0.25}, round_to=1)
    assert (small.get_layer("a").filters, small.get_layer("b").filters) == (6, 6)


def grouped_wide():
    x = inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(32, 1, name="stem")(x)
    x = layers.Conv2D(32, 3, groups=4, name="grouped")(x)
    x = layers.Conv2D(16, 1, name="next")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def test_grouped_convolutions_lose_as_much_as_others():
    """Not half of their groups, and half of the channels of those that are left."""
    small = tfc.prune_channels(grouped_wide(), per_layer={"grouped": 0.5})
    assert (small.get_layer("grouped").filters, small.get_layer("grouped").groups) == (16, 4)
    assert small.get_layer("stem").filters == 32
    small = tfc.prune_channels(grouped_wide(), sparsity=0.5, scope="local", round_to=1)
    widths = [small.get_layer(name).filters for name in ("stem", "grouped", "next")]
    assert widths == [16, 16, 8]
    told = [(change.layer, change.detail) for change in small.surgery_report.changes]
    halves = ["32 -> 16 channels", "32 -> 16 channels", "16 -> 8 channels"]
    assert told == list(zip(("stem", "grouped", "next"), halves, strict=True))


@pytest.mark.parametrize("macs", [0.3, 0.5, 0.7])
def test_grouped_convolutions_keep_multiples(macs):
    small = tfc.prune_channels(grouped_wide(), macs=macs, score="random", round_to=8)
    assert all(small.get_layer(name).filters % 8 == 0 for name in ("stem", "grouped", "next"))


def test_a_layer_that_is_not_known_is_named():
    def shifted(x):
        return x + np.arange(16.0, dtype="float32")

    x = inputs = keras.Input((5,))
    x = layers.Dense(16, activation=shifted, name="shifted")(layers.Dense(16, name="first")(x))
    x = layers.Dense(16, name="second")(x)
    small = tfc.prune_channels(keras.Model(inputs, layers.Dense(2)(x)), sparsity=0.5)
    assert small.get_layer("second").units == 8
    told = {change.layer: change.detail for change in small.surgery_report.kept}
    assert told["shifted"] == "what Dense does with channels is not known"


def test_both_directions_stay_equally_wide():
    inputs = keras.Input((4, 3))
    x = layers.Bidirectional(layers.GRU(6), name="both")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    both = model.get_layer("both")
    small = tfc.prune_channels(
        model, sparsity=0.5, round_to=1, score=lambda group: np.arange(group.size)
    )
    assert small.get_layer("both").forward_layer.units == 3
    assert small.get_layer("both").backward_layer.units == 3
    kernel = np.array(both.backward_layer.cell.kernel.value).reshape(3, 3, 6)[..., 3:]
    found = np.array(small.get_layer("both").backward_layer.cell.kernel.value)
    assert np.array_equal(found, kernel.reshape(3, 9))


def test_axes_that_are_moved_and_scalar_constants():
    x = keras.Input((4, 5, 3))
    y = layers.Dense(16, activation="relu", name="wide")(x) * ops.convert_to_tensor(2.0)
    y = layers.Dense(4)(y)
    y = ops.moveaxis(ops.moveaxis(y, -1, 1), 1, 2)
    model = keras.Model(x, layers.Dense(2)(ops.moveaxis(y, 2, -1)))
    small = tfc.prune_channels(model, macs=0.6, round_to=1)
    assert small.get_layer("wide").units < 16
    assert small(np.ones((2, 4, 5, 3), "float32")).shape == (2, 4, 5, 2)
