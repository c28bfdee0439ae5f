"""The section `precision` of recipes: what it means, and what is said of one that is wrong."""

import json

import keras
import pytest

from tfcompress import Prune, Quantize, Recipe, Rule, compress
from tfcompress.recipe import file

RULES = {"*": "int4", "block_1*": "int16x8", "head": "int8"}


def read(text):
    return Recipe(*file.parse(text.encode(), "recipe.yaml").parts())


def test_precisions_go_to_a_file_and_back_in_their_order(tmp_path):
    path = tmp_path / "mixed.yaml"
    for rules in ([], [Rule("Conv2D", [Prune(0.5)])]):
        recipe = Recipe(rules, precision=RULES)
        recipe.save(path)
        assert Recipe.load(path) == recipe
        assert list(Recipe.load(path).precision.items()) == list(RULES.items())
        assert Recipe.from_config(json.loads(json.dumps(recipe.get_config()))) == recipe
    assert file.precision_in(path) == RULES


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("precision: int4", "1: precision must be a mapping of '[*]'; received 'int4'"),
        ("precision: {}", "1: precision must hold at least one pattern"),
        ("precision:\n  '*': int4\n  head: int3", "3: unknown precision 'int3' for 'head'"),
        ("precision: {a: int4, a: int8}", "has the key 'a' twice"),
        ("precision: {a: [int4]}", "unknown precision '.int4.' for 'a'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, says):
    with pytest.raises(ValueError, match=f"recipe.yaml, line.*{says}"):
        read(text)


def test_what_contradicts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"beside Quantize in the rule 'Dense'\. Keep one"):
        Recipe([Rule("Dense", [Quantize()])], precision=RULES)
    with pytest.raises(ValueError, match="unknown precision 'int5'"):
        Recipe(precision={"*": "int5"})
    with pytest.raises(ValueError, match="must have patterns for layers"):
        Recipe(precision={keras.layers.Dense: "int4"}).save(tmp_path / "x.yaml")
    with pytest.raises(ValueError, match="must have the section 'precision'"):
        file.precision_in("int8")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="head")])
    with pytest.raises(ValueError, match=r"precisions alone.*precision=recipe\.precision"):
        compress(model, Recipe(precision=RULES))
