"""The section `shrink` of recipes: what it means, and what is said of one that is wrong."""

import dataclasses
import inspect
import json

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress import Prune, Quantize, Recipe, Rule
from tfcompress.distillation.distiller import Distillation
from tfcompress.post_training import pruned_model
from tfcompress.recipe import file
from tfcompress.recipe.file import to_yaml
from tfcompress.surgery import macs
from tfcompress.surgery import shrink as arguments
from tfcompress.surgery.factors import search
from tfcompress.surgery.factors.factorize import factorize
from tfcompress.surgery.pruning import ranking, scores
from tfcompress.surgery.pruning.prune_channels import prune_channels
from tfcompress.surgery.shrink import Shrink, function_of


def read(text):
    return Recipe(*file.parse(text.encode(), "recipe.yaml").parts())


def make_model():
    keras.utils.set_random_seed(0)
    body = [layers.Conv2D(8, 3, name="conv"), layers.ReLU(), layers.Conv2D(12, 3, name="next")]
    head = [layers.Flatten(), layers.Dense(16, name="wide"), layers.Dense(3, name="head")]
    return keras.Sequential([keras.Input((6, 6, 2)), *body, *head])


def test_the_whole_section():
    recipe = read(
        """
        shrink:
          factorize: {method: svd, energy: 0.95, layers: [wide, "de*"]}
          channels:
            per_layer: {conv: 0.5, 7: 0.25}
            score: l1
            scope: local
            round_to: 4
            max_sparsity: 1
            keep: head
            seed: 0
          separable:
          epochs: 5
        rules:
          - {layers: "*", techniques: [quantize]}
        """
    )
    channels = {"score": "l1", "scope": "local", "round_to": 4, "max_sparsity": 1.0, "seed": 0}
    channels |= {"per_layer": {"conv": 0.5, "7": 0.25}, "keep": "head"}
    steps = {
        "factorize": {"method": "svd", "energy": 0.95, "layers": ["wide", "de*"]},
        "channels": channels,
        "separable": {},
    }
    assert recipe == Recipe([Rule("*", [Quantize()])], shrink=Shrink(steps, epochs=5))
    assert [name for name, _ in recipe.shrink.steps] == ["factorize", "channels", "separable"]
    assert recipe.shrink != Shrink(dict(reversed(steps.items())), epochs=5)


@pytest.mark.parametrize(
    "steps",
    [
        {"channels": {"macs": 0.5, "keep": ["head", "stem*"]}},
        {"channels": {"per_layer": {"conv": 0.5}, "score": "taylor", "samples": 100}},
        {"factorize": {}},
        {"factorize": {"rank": 4, "allow_larger": True}},
        {"factorize": {"method": "tucker", "rank": (4, 2)}},
        {"factorize": {"rank": {"conv": (4, 2), "wide": 3}}},
        {"factorize": {"rank": "evbmf", "layers": "conv*"}},
        {"prune": {"sparsity": 0.8, "pattern": "1x4", "allocation": "uniform", "damp": 0.2}},
        {"separable": {"depth_multiplier": 2}, "channels": {"sparsity": 0.25}},
        {"prune": {"sparsity": 0.5}, "gptq": {"bits": {"conv": 3, "head": 8}, "damp": 0.5}},
    ],
)
def test_what_is_written_is_read_again(steps, tmp_path):
    for shrink in (Shrink(steps), Shrink(steps, epochs=3)):
        recipe = Recipe([Rule("*", [Quantize()])], Distillation(alpha=0.5), shrink)
        recipe.save(tmp_path / "r.yaml")
        assert Recipe.load(tmp_path / "r.yaml") == recipe
        content = (tmp_path / "r.yaml").read_bytes()
        assert file.parse(content, "r.yaml").shrink == shrink
        assert Recipe.from_config(recipe.get_config()) == recipe
        told = json.loads(json.dumps(shrink.get_config()))
        assert Shrink.from_config(told) == shrink
    assert file.parse(b"distill: {}", "r.yaml").shrink is None


def test_what_is_as_by_default_is_not_written():
    recipe = Recipe(shrink=Shrink({"channels": {"macs": 0.5, "score": None}}))
    assert to_yaml(recipe) == "shrink:\n  channels:\n    macs: 0.5\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shrink:", "1: shrink: a shrink must have at least one step of channels, .*none. Add"),
        ("shrink: {epochs: 3}", "1: .* at least one step"),
        (
            "shrink: half",
            "1: shrink must be a mapping of channels, .*, prune, gptq, separable, epochs",
        ),
        ("shrink:\n  chanels: {}", "2: unknown key 'chanels' in shrink; .*mean 'channels'"),
        ("shrink:\n  channels:\n    mac: 1", "3: unknown key 'mac' in channels; .*mean 'macs'"),
        (
            "shrink:\n  channels:\n    macs: 50",
            r"3: channels: macs must be a number in \(0, 1\); received 50.0. Did you mean 0.5\?",
        ),
        ("shrink: {channels: {sparsity: 0}}", r"1: channels: sparsity must be .* \(0, 1\); .*0.0"),
        ("shrink: {channels: {params: -1}}", "1: channels: params must be .* half.$"),
        ("shrink: {channels: {macs: half}}", "1: macs must be a number; received 'half'"),
        (
            "shrink:\n  channels:\n    score: l1\n    per_layer: {conv: 25}",
            "4: channels: per_layer of 'conv' must be .* received 25.0. Did you mean 0.25",
        ),
        ("shrink: {channels: {per_layer: 0.5}}", "1: per_layer must be a mapping of layers"),
        ("shrink: {channels: {per_layer: {a: b}}}", "1: per_layer must be a number; received 'b'"),
        ("shrink: {channels: {per_layer: {}}}", "1: channels: per_layer must name layers"),
        (
            "shrink: {channels: {per_layer: {a: 0.5, a: 0.2}}}",
            "1: per_layer has the key 'a' twice",
        ),
        ("shrink:\n  channels:", "2: channels: exactly one of macs, .* must be given .* none"),
        ("shrink: {prune: {sparsity: 80}}", "1: prune: sparsity must be .* Did you mean 0.8"),
        ("shrink: {prune: {pattern: 4:2}}", "1: .*pattern.* keeps n of every m weights"),
        ("shrink: {prune: {damp: 0}}", "1: prune: damp must be a number above 0; received 0"),
        ("shrink: {gptq: {bits: 9}}", "1: gptq: bits must be whole numbers from 2 to 8, .* 9"),
        ("shrink: {gptq: {bits: {a: 1}}}", "1: gptq: bits must be .* received 1"),
        ("shrink: {gptq: {bits: {}}}", "1: gptq: bits must be that of some layers; .*Write"),
        ("shrink: {gptq: {bits: four}}", "1: bits must be a whole number; received 'four'"),
        ("shrink: {gptq: {dense: per_row}}", "1: gptq: dense 'per_row' is unknown; .*per_tensor"),
        ("shrink: {channels: {macs: 0.5, params: 0.5}}", "1: channels: exactly .* macs, params"),
        (
            "shrink:\n  channels:\n    macs: 0.5\n    score: taylr",
            "4: channels: score 'taylr' is unknown; expected one of l1, .* Did you mean 'taylor'",
        ),
        ("shrink: {channels: {macs: 0.5, scope: all}}", "1: channels: scope 'all' is unknown"),
        ("shrink: {channels: {macs: 0.5, round_to: 0}}", "1: .* round_to must be a whole number"),
        ("shrink: {channels: {macs: 0.5, seed: -1}}", "1: .* seed must be a whole number, 0 or"),
        ("shrink: {channels: {macs: 0.5, keep: {a: b}}}", "1: keep must be the name of a layer"),
        ("shrink: {channels: {macs: 0.5, keep: ['']}}", "1: channels: keep must be names of layer"),
        (
            "shrink: {factorize: {rank: 2, energy: 0.9}}",
            "1: factorize: at most one of rank, energy",
        ),
        ("shrink: {factorize: {energy: 95}}", r"1: factorize: energy .*\(0, 1\]; .*95.0. .*0.95\?"),
        ("shrink: {factorize: {rank: evb}}", "1: rank must be a whole number; received 'evb'"),
        ("shrink: {factorize: {rank: [1]}}", "1: factorize: rank must be a whole number"),
        ("shrink: {factorize: {rank: {a: 0}}}", "1: factorize: rank must be a whole number, 1 or"),
        ("shrink: {factorize: {method: svt}}", "1: factorize: method 'svt' is unknown; .*'svd'"),
        ("shrink: {factorize: {allow_larger: yes}}", "1: allow_larger must be true or false"),
        ("shrink: {separable: {depth_multiplier: 1.5}}", "1: depth_multiplier must be a whole"),
        ("shrink:\n  separable: {}\n  epochs: -1", "3: shrink: epochs must be a whole number, 0"),
        ("shrink: {separable: {}, epochs: some}", "1: epochs must be a whole number; .*'some'"),
    ],
)
def test_mistakes_name_line_and_key(text, message):
    with pytest.raises(ValueError, match=rf"^recipe\.yaml, line {message}"):
        read(text)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Shrink({}),
            ValueError,
            "at least one step of channels, factorize, prune, gptq, separable",
        ),
        (lambda: Shrink({"chanels": {}}), ValueError, "unknown step 'chanels'; .*'channels'"),
        (lambda: Shrink({"channels": 0.5}), TypeError, "a dict of the arguments of prune_channels"),
        (lambda: Shrink({"channels": {"data": 1}}), ValueError, "unknown key 'data' in channels"),
        (lambda: Shrink({"separable": {}}, True), ValueError, "epochs must be a whole .*True"),
        (
            lambda: Shrink({"channels": {"macs": "half"}}),
            ValueError,
            r"macs must be a number in \(0, 1\); received 'half'",
        ),
        (
            lambda: Shrink({"channels": {"macs": 0.5, "score": 3}}),
            ValueError,
            "score must be one of l1, .*received 3",
        ),
        (lambda: Recipe(shrink={"macs": 0.5}), TypeError, r"shrink must be a .*Shrink; received"),
        (lambda: Recipe(), ValueError, "at least one Rule; received none"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_arguments_of_a_step_check_themselves():
    assert arguments.Channels(macs=0.5, keep=["head"]).keep == ["head"]
    with pytest.raises(ValueError, match=r"macs must be .* received 50. Did you mean 0.5\?"):
        arguments.Channels(macs=50)
    with pytest.raises(ValueError, match=r"exactly one of macs, .* for channels; received none"):
        arguments.Channels()
    with pytest.raises(
        ValueError, match=r"at most one of rank, .* for factorize; received rank, m"
    ):
        arguments.Factorize(rank=2, macs=0.5)
    with pytest.raises(ValueError, match="depth_multiplier must be a whole number, 1 or more"):
        arguments.Separable(depth_multiplier=0)


def test_what_yaml_cannot_tell(tmp_path):
    code = {
        "score": {"channels": {"macs": 0.5, "score": lambda group: np.arange(group.size)}},
        "layers": {"separable": {"layers": [layers.Conv2D]}},
    }
    for name, steps in code.items():
        message = f"must have names for {name}; received .* Keep the recipe in Python"
        with pytest.raises(ValueError, match=message):
            Recipe(shrink=Shrink(steps)).save(tmp_path / "r.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("operation", arguments.OPERATIONS)
def test_the_arguments_are_those_of_the_functions(operation):
    taken = set(inspect.signature(function_of(operation)).parameters)
    fields = {field.name for field in dataclasses.fields(arguments.OPERATIONS[operation])}
    assert taken - {"model", "data", "loss", "progress"} == fields


def test_the_names_are_those_of_the_functions():
    assert set(arguments.METHODS) == set(search.METHODS)
    assert {*arguments.SCORES} == {*scores.WITHOUT_DATA, *scores.WITH_DATA}
    assert arguments.ALLOCATIONS == pruned_model.ALLOCATIONS
    assert {*arguments.SCOPES} == {*ranking.SCOPES, "sensitivity"}


def test_zeros_found_before_training_are_held_in_it():
    model = make_model()
    x = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype("float32")
    shrink = Shrink({"prune": {"sparsity": 0.5, "allocation": "uniform"}})
    with pytest.raises(ValueError, match=r"received no data. Pass training inputs, data=x"):
        shrink.apply(model)
    small = shrink.apply(model, (x, None))
    assert "50.0% zeros" in str(small.surgery_report)
    kernel = np.asarray(small.get_layer("conv").kernel)
    held = tfc.compress(small, [Rule("*", [Prune(preserve=True), Quantize()])])
    held.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    held.fit(x, np.ones((16, *held.output_shape[1:])), verbose=0)
    trained = np.asarray(held.get_layer("conv").layer.kernel)
    mask = np.asarray(held.get_layer("conv").bound[0].states[0]["mask"])
    np.testing.assert_array_equal(mask, kernel != 0)
    assert not np.array_equal(trained[kernel != 0], kernel[kernel != 0])
    assert not trained[kernel == 0].any()


SPARSE_STEPS = """
shrink: {prune: {sparsity: 0.65, samples: 500}, gptq: {bits: 4, dense: per_tensor}}
distill: {alpha: 0.1, temperature: 4.0, dropout: true, cache: memory}
rules:
  - layers: "*"
    techniques:
      - prune: {preserve: true, depthwise: true}
      - quantize: {bits: 4, step: learned, dense: per_tensor, momentum: 0.95}
  - {layers: head, techniques: [quantize: {dense: per_tensor}]}
  - {layers: first_and_last, techniques: [codebook: {values: ternary}, quantize: {}]}
"""


def test_what_the_methods_of_the_benchmark_do_can_be_said():
    steps = {"prune": {"sparsity": 0.65, "samples": 500}, "gptq": {"bits": 4}}
    steps["gptq"]["dense"] = "per_tensor"
    learned = Quantize(bits=4, step="learned", dense="per_tensor", momentum=0.95)
    rules = [
        Rule("*", [Prune(preserve=True, depthwise=True), learned]),
        Rule("head", [Quantize(dense="per_tensor")]),
        Rule("first_and_last", [tfc.Codebook("ternary"), Quantize()]),
    ]
    taught = Distillation(alpha=0.1, temperature=4.0, dropout=True, cache="memory")
    assert read(SPARSE_STEPS) == Recipe(rules, taught, Shrink(steps))


def test_compress_leaves_surgery_to_a_step_before_it():
    model = make_model()
    steps = {"channels": {"per_layer": {"conv": 0.5}, "round_to": 1}}
    recipe = Recipe([Rule("*", [Quantize()])], shrink=Shrink(steps))
    with pytest.raises(ValueError, match=r"without a shrink, .*compress\(small, recipe.rules\)"):
        tfc.compress(model, recipe)
    small = recipe.shrink.apply(model)
    assert tfc.compress(small, recipe.rules).get_layer("conv").layer.kernel.shape == (3, 3, 2, 4)
    assert model.get_layer("conv").kernel.shape == (3, 3, 2, 8)


def test_steps_are_applied_in_their_order_and_told_together():
    model = make_model()
    cut = {"per_layer": {"conv": 0.5}, "round_to": 1}
    small = Shrink({"channels": cut, "factorize": {"rank": {"wide": 5}}}).apply(model)
    by_hand = prune_channels(model, **cut)
    by_hand = factorize(by_hand, rank={"wide": 5})
    for a, b in zip(small.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    report = small.surgery_report
    assert report.operation == "prune_channels + factorize"
    assert (report.macs[0], report.params[0]) == macs.count(model)
    assert (report.macs[1], report.params[1]) == macs.count(small)
    changed = [change.layer for change in report.changes]
    assert changed == ["conv", "wide"]
    # Of the whole convolution first: its 8 filters have other factors than the 4 best of them.
    other = Shrink({"factorize": {"rank": {"wide": 5}}, "channels": cut}).apply(model)
    assert other.surgery_report.operation == "factorize + prune_channels"


def test_data_reach_the_steps_that_look_at_them():
    model = make_model()
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20, 6, 6, 2)).astype("float32"), random.normal(size=(20, 3))
    channels = {"sparsity": 0.5, "score": "taylor", "round_to": 1}
    steps = {"channels": channels, "factorize": {"rank": 2, "layers": "wide"}}
    small = Shrink(steps).apply(model, (x, y), "mse")
    by_hand = prune_channels(model, **channels, data=(x, y), loss="mse")
    by_hand = factorize(by_hand, rank=2, layers="wide", data=x)
    for a, b in zip(small.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(ValueError, match="the score 'taylor' needs data; received none"):
        Shrink(steps).apply(model)


def test_the_weights_of_losses_count_in_scores():
    x = keras.Input((6,), name="x")
    hidden = layers.Dense(8, name="hidden")(x)
    model = keras.Model(x, {n: layers.Dense(1, name=n)(hidden) for n in ("y", "z")})
    model.compile("sgd", {"y": "mse", "z": "mse"}, loss_weights={"y": 1.0, "z": 0.0})
    random = np.random.default_rng(0)
    data = random.normal(size=(8, 6)), {n: random.normal(size=(8, 1)) for n in ("y", "z")}
    settings = {"per_layer": {"hidden": 0.5}, "score": "taylor", "round_to": 1}
    ways = (
        Shrink({"channels": settings}).apply(model, data),
        prune_channels(model, data=data, **settings),
        prune_channels(model, data=data, loss=model.loss, **settings),
    )
    ours, wanted, plain = (np.array(m.get_layer("hidden").kernel.value) for m in ways)
    assert np.array_equal(ours, wanted)
    assert not np.array_equal(ours, plain)
