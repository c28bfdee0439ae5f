"""Spaces of recipes: parts whose options make recipes together."""

import pytest

from tfcompress.pilot.space import Space
from tfcompress.recipe.recipe import Recipe

TEXT = """
first:
- {weights: int8, zeros: "0.8"}
channels:
  none: {}
  half: {shrink: {channels: {macs: 0.5}}}
zeros:
  none: {}
  "0.8": {shrink: {prune: {sparsity: 0.8}}, before: [{prune: {preserve: true}}]}
weights:
  int8 after training: {precision: {"*": int8}}
  int8:
    rules:
    - {layers: "*", techniques: [{quantize: {bits: 8}}]}
    - {layers: head, techniques: []}
teacher:
  none: {}
  float: {distill: {alpha: 0.2}}
rate:
  x1: {}
  x0.3: {training: {rate: 0.3}}
"""


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.yaml").write_text(TEXT)
    return Space.load(tmp_path / "space.yaml")


def recipe_of(candidate, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(candidate.recipe)
    return Recipe.load(path)


def test_options_make_one_recipe(space, tmp_path):
    assert len(space) == 2 * 2 * 2 * 2 * 2
    picks = {"channels": "half", "zeros": "0.8", "weights": "int8", "teacher": "float"}
    found = space.candidate({**picks, "rate": "x0.3"})
    recipe = recipe_of(found, tmp_path)
    assert dict(recipe.shrink.steps) == {"channels": {"macs": 0.5}, "prune": {"sparsity": 0.8}}
    assert [type(t).__name__ for t in recipe.rules[0].techniques] == ["Prune", "Quantize"]
    assert recipe.rules[1].techniques == ()  # What is left alone is not pruned either.
    assert recipe.distill.alpha == 0.2
    assert found.training == {"rate": 0.3}
    assert found.trains


def test_what_is_not_trained_has_no_teacher_and_no_rate(space, tmp_path):
    plain = space.candidate({"weights": "int8 after training"})
    taught = space.candidate({"weights": "int8 after training", "teacher": "float", "rate": "x0.3"})
    assert not plain.trains
    assert (plain.key, plain.picks) == (taught.key, taught.picks)
    assert recipe_of(plain, tmp_path).precision == {"*": "int8"}


def test_a_part_that_is_left_out_has_its_first_option(space):
    first = {"channels": "none", "zeros": "none", "weights": "int8 after training"}
    assert space.candidate({}).picks == first
    told = {"channels": "none", "zeros": "none", "weights": "int8", "teacher": "none", "rate": "x1"}
    assert space.candidate({"weights": "int8"}).picks == told


def test_keys_tell_what_is_trained_in_another_way(space):
    keys = {
        space.candidate({"weights": "int8", **more}).key
        for more in ({}, {"rate": "x0.3"}, {"zeros": "0.8"}, {"teacher": "float"}, {"rate": "x1"})
    }
    assert len(keys) == 4


def test_a_space_that_was_saved_is_the_same(space, tmp_path):
    space.save(tmp_path / "again.yaml")
    assert Space.load(tmp_path / "again.yaml") == space


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("int8 after training: {precision: {\"*\": int8}}", "bad: {precision: {\"*\": int9}}",
         "the option 'bad' of 'weights', line 2: unknown precision 'int9'"),
        ("half: {shrink: {channels: {macs: 0.5}}}", "half: {shrunk: {}}", "unknown key 'shrunk'"),
        ("macs: 0.5", "macs: 50", "the option 'half' of 'channels'"),
        ("rate: 0.3", "rate: fast", "rate of training must be a number"),
        ("{weights: int8, zeros", "{weights: int7, zeros", "names an unknown option 'int7'"),
        ("{weights: int8, zeros", "{weight: int8, zeros", "names an unknown part 'weight'"),
        ("x1: {}\n  x0.3: {training: {rate: 0.3}}", "[]", "'rate' must be a mapping of options"),
    ],
)  # fmt: skip
def test_spaces_that_cannot_be_read(tmp_path, old, new, message):
    assert old in TEXT
    path = tmp_path / "space.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ValueError, match=message):
        Space.load(path)
