"""Recipes: which layer gets which techniques, and what is wrong with a recipe."""

import keras
import pytest
from keras import layers

from tfcompress import Cluster, Prune, Quantize, Recipe, Rule, flatten
from tfcompress.compression.rules import check_rules
from tfcompress.techniques.rules import quantize_of


def bits_of(recipe, layer):
    technique = quantize_of(recipe.techniques_of(layer))
    return technique and technique.bits


def test_the_last_rule_that_matches_decides():
    recipe = Recipe(
        [
            Rule("*", [Quantize(bits=8)]),
            Rule("Dense", [Quantize(bits=4)]),
            Rule("block_?_*", [Quantize(bits=6)]),
            Rule(lambda layer: getattr(layer, "units", 0) == 1, [Quantize(bits=5)]),
            Rule("head", []),
        ]
    )
    assert bits_of(recipe, layers.Conv2D(2, 1, name="conv")) == 8
    assert bits_of(recipe, layers.Dense(2, name="any")) == 4
    assert bits_of(recipe, layers.Dense(2, name="block_1_dense")) == 6
    assert bits_of(recipe, layers.Dense(2, name="block_12_dense")) == 4
    assert bits_of(recipe, layers.Dense(1, name="block_1_last")) == 5
    assert bits_of(recipe, layers.Dense(1, name="head")) is None


def test_patterns_tell_capitals_apart():
    assert Rule("Dense").matches(layers.Dense(1, name="x"))
    assert not Rule("Dense").matches(layers.Conv2D(1, 1, name="dense"))


def test_a_layer_without_a_rule_has_no_techniques():
    assert Recipe([Rule("a", [Quantize()])]).techniques_of(layers.Dense(1, name="b")) == ()


def model_of(*parts):
    return flatten(keras.Sequential([keras.Input((4,)), *parts], name="model"))


def test_a_rule_that_matches_nothing():
    message = r"'desne' must match a layer of model 'model', whose layers are .*dense; .*Mend"
    with pytest.raises(ValueError, match=message):
        check_rules(Recipe([Rule("dense"), Rule("desne")]), model_of(layers.Dense(1, name="dense")))


def test_a_rule_that_later_ones_overrule():
    model = model_of(layers.Dense(1, name="dense"))
    recipe = Recipe([Rule("dense", [Prune(0.5)]), Rule("*", [Quantize()])])
    with pytest.raises(ValueError, match=r"'dense' has no effect: later rules.*after them"):
        check_rules(recipe, model)
    check_rules(
        Recipe(reversed(recipe.rules)), model_of(layers.Dense(1, name="dense"), layers.ReLU())
    )


def test_a_technique_that_finds_no_weight():
    with pytest.raises(ValueError, match="Prune of the rule 'ReLU' finds no weight"):
        check_rules(Recipe([Rule("ReLU", [Prune(0.5)])]), model_of(layers.ReLU()))
    recipe = Recipe([Rule("d", [Cluster(16)])])
    with pytest.raises(ValueError, match=r"d/kernel is with 12 weights, fewer than clusters=16"):
        check_rules(recipe, model_of(layers.Dense(3, name="d")))
    check_rules(recipe, model_of(layers.Dense(4, name="d")))


@pytest.mark.parametrize(
    ("techniques", "message"),
    [
        ([Quantize(), Prune(0.5)], "received Quantize, Prune. Prune would undo.*Quantize did"),
        ([Cluster(4), Prune(0.5)], "order Regularize, Prune, Cluster, Codebook, Quantize"),
        ([Prune(0.5), Prune(0.8)], "each technique once; received Prune, Prune"),
    ],
)
def test_orders_that_lose_information(techniques, message):
    with pytest.raises(ValueError, match=message):
        Rule("*", techniques)


def test_a_lone_rule_and_the_round_trip():
    recipe = Recipe(Rule("Dense*", [Quantize(bits=4, delay=3)]))
    assert Recipe.from_config(recipe.get_config()) == recipe


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Rule(3), TypeError, r"layers must be a pattern such as '\*'.*received 3"),
        (lambda: Rule("*", Quantize()), TypeError, "techniques must be a list of techniques"),
        (lambda: Rule("*", ["int8"]), TypeError, "must hold tfcompress techniques.*'int8'"),
        (lambda: Recipe([]), ValueError, "at least one Rule; received none"),
        (lambda: Recipe([Quantize()]), TypeError, r"rules must be a list of Rule.*Quantize\("),
        (lambda: Recipe(["*"]), TypeError, r"rules must be a list of Rule.*'\*'"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
