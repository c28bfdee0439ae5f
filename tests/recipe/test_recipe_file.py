"""Recipes as YAML: what a file means, and what is said of one that is wrong."""

import dataclasses

import keras
import pytest
from keras import layers

from tfcompress import (
    Cluster,
    Codebook,
    GroupLasso,
    Prune,
    Quantize,
    Recipe,
    Regularize,
    Rule,
    schedules,
)
from tfcompress.distillation.distiller import Distillation
from tfcompress.recipe import file
from tfcompress.recipe.file import ready_recipes, to_yaml

HEAD = "# A comment\nrules:\n  - layers: '*'\n    techniques:\n"


def parse(content, source, steps=None):
    return Recipe(*file.parse(content, source).parts(steps))


def read(text, steps=1000):
    return parse(text.encode(), "recipe.yaml", steps)


def techniques(*lines, steps=1000):
    """The techniques of a rule; the first of the lines is line 5 of the file."""
    return read(HEAD + "".join(f"      {line}\n" for line in lines), steps).rules[0].techniques


def test_the_whole_format():
    recipe = read(
        """
        rules:
          - layers: "*"
            techniques:
              - prune:
                  sparsity: {polynomial: {initial: 0.0, final: 0.8, end: 60%}}
                  pattern: 2x2
              - cluster: {clusters: 16, init: kmeans++}
              - quantize: {bits: 8}
          - layers: head
            techniques: []
        """
    )
    prune = Prune(schedules.polynomial(0.0, 0.8, end=600), pattern="2x2")
    rule = Rule("*", [prune, Cluster(16), Quantize(bits=8)])
    assert recipe == Recipe([rule, Rule("head", [])])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("- quantize", Quantize()),
        ("- quantize:", Quantize()),
        ("- quantize: {bits: 4, activation_bits: null, delay: 5}", Quantize(4, None, delay=5)),
        (
            "- quantize: {bits: 2, bits_schedule: {points: [[0, 8], [50%, 4], [80%, 2]]}}",
            Quantize(2, bits_schedule=schedules.points([(0, 8), (500, 4), (800, 2)])),
        ),
        ("- prune: {sparsity: 0.8}", Prune(0.8).over(0, 1000)),
        ("- prune: {sparsity: 0.8, scope: layer}", Prune(0.8, scope="layer").over(0, 1000)),
        ("- prune: {sparsity: {constant: {value: 0.8}}}", Prune(schedules.constant(0.8))),
        # As plain YAML 1.1 this would be the number 124, and the one below a text.
        ("- prune: {pattern: 2:4}", Prune(pattern="2:4").over(0, 1000)),
        ("- prune: {threshold: 1e-3}", Prune(threshold=0.001)),
        (
            "- prune: {sparsity: {constant: {value: 0.5}}, depthwise: true, seed: 3}",
            Prune(schedules.constant(0.5), depthwise=True, seed=3),
        ),
        (
            "- prune: {sparsity: {constant: {value: 0.5, begin: 10%}}}",
            Prune(schedules.constant(0.5, begin=100)),
        ),
        (
            "- prune: {sparsity: {linear: {initial: 0, final: .5, end: 7, frequency: 2}}}",
            Prune(schedules.linear(0, 0.5, end=7, frequency=2)),
        ),
        (
            "- prune: {sparsity: {cosine: {initial: 0, final: 0.5, end: 100%}}}",
            Prune(schedules.cosine(0, 0.5, end=1000)),
        ),
        (
            "- prune: {sparsity: {one_shot: {value: 0.5, step: 12.5%}}}",
            Prune(schedules.one_shot(0.5, step=125)),
        ),
        (
            "- prune: {sparsity: {points: [[0, 0.3], [50%, 0.6]]}}",
            Prune(schedules.points([(0, 0.3), (500, 0.6)])),
        ),
        ("- cluster: {clusters: 8, begin: 20%}", Cluster(8, begin=200)),
        ("- codebook: {values: 4, begin: 20%}", Codebook("4", begin=200)),
        ("- codebook: {values: [-1, 0.5, 1]}", Codebook([-1.0, 0.5, 1.0])),
    ],
)
def test_lines_mean_what_python_says(line, expected):
    assert techniques(line) == (expected,)


def test_shares_are_rounded_and_a_frequency_is_one_step_at_least():
    curve = "{polynomial: {initial: 0, final: 0.5, end: 33%, frequency: 2%}}"
    line = f"- prune: {{sparsity: {curve}}}"
    schedule = techniques(line, steps=10)[0].schedule
    assert (schedule.end, schedule.frequency) == (3, 1)
    schedule = techniques(line, steps=430)[0].schedule
    assert (schedule.end, schedule.frequency) == (142, 9)


def test_what_is_parsed_once_serves_trainings_of_any_length():
    parsed = file.parse(f"{HEAD}      - quantize: {{delay: 10%}}\n".encode(), "recipe.yaml")
    for steps in (50, 1000):
        (rule,) = Recipe(*parsed.parts(steps)).rules
        assert rule.techniques == (Quantize(delay=steps // 10),)
    # Without a length they are left to the beginning of `fit`.
    assert Recipe(*parsed.parts()).rules[0].techniques == (Quantize(delay="10%"),)


@pytest.mark.parametrize(
    ("line", "cls", "config"),
    [
        ("{l1: 1e-5}", keras.regularizers.L1, {"l1": 1e-5}),
        ("{l2: 0.5}", keras.regularizers.L2, {"l2": 0.5}),
        ("{l1: 0.5, l2: 2}", keras.regularizers.L1L2, {"l1": 0.5, "l2": 2.0}),
        ("{group_lasso: 0.5}", GroupLasso, {"strength": 0.5, "pattern": "filters"}),
        (
            "{group_lasso: {strength: 0.5, pattern: 1x4}}",
            GroupLasso,
            {"strength": 0.5, "pattern": "1x4"},
        ),
    ],
)
def test_regularizers(line, cls, config):
    (found,) = techniques(f"- regularize: {line}")
    assert type(found) is Regularize
    assert type(found.regularizer) is cls
    told = found.regularizer.get_config()
    assert {key: told[key] for key in config} == pytest.approx(config)
    (again,) = read(to_yaml(Recipe([Rule("*", [found])]))).rules[0].techniques
    assert type(again.regularizer) is cls
    assert again.regularizer.get_config() == found.regularizer.get_config()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["- prune: {sparcity: 0.8}"], "5: unknown key 'sparcity' in prune; expected one of "),
        (["- prune: {sparcity: 0.8}"], "Did you mean 'sparsity'"),
        (["- prune:", "    pattern: filters", "    sparsity: 80"], "7: prune: sparsity must be in"),
        (["- prune: {sparsity: 80}"], r"received 80.0. Did you mean 0.8\?"),
        (["- prune: {sparsity: '0.8'}"], "5: sparsity must be a number or null or a sch.*'0.8'"),
        (["- prune: {sparsity: 0.8, inputs: [0]}"], "5: unknown key 'inputs' in prune"),
        (["- quantize: {axes: [0]}"], "5: unknown key 'axes' in quantize"),
        (["- cluster: {clusters: 4, follows: true}"], "5: unknown key 'follows' in cluster"),
        (["- cluster: {init: linear}"], "5: cluster must have the key 'clusters'; received init"),
        (["- cluster: {clusters: 16.5}"], "5: clusters must be a whole number; received 16.5"),
        (["- cluster: {clusters: 4, depthwise: yes}"], "5: depthwise must be true or false"),
        (["- quantize: {bits: true}"], "5: bits must be a whole number; received True"),
        (["- quantize: {bits: 99}"], "5: quantize: bits must be 2 to 16; received 99"),
        (["- quantize: {bits: 8, bits: 4}"], "5: quantize has the key 'bits' twice, first in lin"),
        (["- quantize: 8"], "5: quantize must be a mapping of bits, .*; received 8"),
        (["- quantise"], "5: unknown technique 'quantise'; .*Did you mean 'quantize'"),
        (["- {prune: {sparsity: 0.5}, quantize: }"], "5: a technique must have one of the keys"),
        (["- quantize", "- prune: {sparsity: 0.5}"], "4: a rule: techniques must come in the ord"),
        (["- regularize: {l3: 1}"], "5: unknown key 'l3' in regularize"),
        (["- regularize: {l1: -1}"], "5: l1 must be 0 or more; received -1"),
        (["- regularize: {l1: 1, group_lasso: 1}"], "5: regularize must have l1, l2 or both, or"),
        (["- regularize: {group_lasso: {pattern: '2:4'}}"], "5: group_lasso: pattern must be"),
        (["- regularize"], "5: regularize must have one of l1, l2, group_lasso; received none"),
        (["- prune: {sparsity: {polynomail: {}}}"], "5: unknown key 'polynomail' in a schedule of"),
        (["- prune: {sparsity: {linear: {initial: 0}}}"], "5: linear must have the key 'final'"),
        (
            [
                "- prune:",
                "    sparsity:",
                "      linear: {initial: 0, final: 1,",
                " begin: 9,",
                " end: 3}",
            ],
            "9: linear: end must not come before begin=9; received end=3",
        ),
        (["- prune: {sparsity: {points: [[0]]}}"], "5: a point must be .step, value.; received 1"),
        (["- prune: {sparsity: {points: [[0, 0.1], [0, 0.2]]}}"], "5: .*steps of points must grow"),
        (["- quantize: {delay: 101%}"], "5: delay must be 0% to 100% of the training; .*101%"),
        (["- quantize: {bits: 50%}"], "5: bits must be a whole number; received '50%'"),
        (["- prune: {threshold: &a 1}"], "5: not valid YAML: anchors and aliases are not taken"),
        (["- !!python/object:os.system {}"], "5: the tag '.*os.system' is not taken"),
        (["- <<: {bits: 8}"], "5: unknown key '<<' in a technique"),
        (["\t- quantize"], "5: not valid YAML"),
    ],
)
def test_mistakes_in_techniques_name_line_and_key(lines, message):
    with pytest.raises(ValueError, match=rf"^recipe\.yaml, line .*{message}") as caught:
        techniques(*lines)
    start = message.split(":")[0]
    assert not start.isdigit() or f"line {start}:" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yaml is empty"),
        ("# nothing", "recipe.yaml is empty"),
        (
            "rules",
            "1: a recipe must be a mapping of rules, distill, shrink, precision; received",
        ),
        ("\nrule: []", "line 2: unknown key 'rule' in a recipe; expected .* Did you mean 'rules'"),
        ("{}", "line 1: a recipe must have the key 'rules'"),
        ("rules: []", "line 1: rules must hold at least one rule"),
        ("rules: {layers: a}", "line 1: rules must be a list"),
        ("rules:\n- layers: a", "line 2: a rule must have the key 'techniques'; received layers"),
        ("rules:\n- techniques: []", "line 2: a rule must have the key 'layers'"),
        ("rules:\n- {layers: [a], techniques: []}", "line 2: layers must be the name or the class"),
        ("rules:\n- {layers: a, techniques: {}}", "line 2: techniques must be a list"),
        ("rules: []\n---\nrules: []", "line 2: not valid YAML"),
        ("rules: [", "line 1: not valid YAML"),
        ("a: &x [1]\nb: *x", "line 1: not valid YAML: anchors and aliases are not taken"),
        ("[" * 100_000, "recipe.yaml: not valid YAML: nested too deeply"),
        ("rules: \x00", "recipe.yaml: not valid YAML"),
    ],
)
def test_mistakes_in_the_file(text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


def test_the_length_of_a_training_is_a_number_of_steps():
    with pytest.raises(ValueError, match=r"steps must be a whole number.*received 0"):
        techniques("- quantize", steps=0)


def test_bytes_that_are_no_text():
    with pytest.raises(ValueError, match=r"a\.yaml, line 2: not UTF-8 text"):
        parse(b"rules:\n\xff", "a.yaml")


@pytest.mark.parametrize("layer", ["no", "1", "null", "~", "2:4", "*", "a: b", "Größe"])
def test_layers_are_text_whatever_yaml_makes_of_it(layer):
    recipe = Recipe([Rule(layer, [])])
    assert read(to_yaml(recipe)) == recipe
    if ": " not in layer and layer != "*":  # which must be quoted
        assert read(f"rules:\n- layers: {layer}\n  techniques: []") == recipe


@pytest.mark.parametrize(
    "technique",
    [
        Prune(0.8, score="taylor", scope="global"),
        Prune(schedules.constant(0.8), score="l1", scope="layer", floor=0.5),
        Prune(schedules.polynomial(0.1, 0.5, end=7, begin=2, power=2)),
        Prune(schedules.polynomial(0.1, 0.5, end="70%", begin="2%")),
        Prune(schedules.points([("10%", 0.2), ("70%", 0.5)])),
        Quantize(delay="10%", freeze="90%"),
        Prune(schedules.linear(0.1, 0.5, end=7)),
        Prune(schedules.cosine(0.1, 0.5, end=7)),
        Prune(schedules.constant(0.5, begin=3, frequency=7)),
        Prune(schedules.one_shot(0.5, step=9)),
        Prune(schedules.points([(0, 0.2), (7, 0.5)])),
        Prune(pattern="2:4"),
        Prune(threshold=1e-5),
        Cluster(3, begin=5, keep_zeros=False, gradient="sum", per_channel=True),
        Codebook("ternary", symmetric=True, threshold=0.5, begin=3, depthwise=True),
        Codebook("log", bits=4, per_channel=False),
        Codebook([-1, 0, 2.5]),
        Quantize(4, None, dense="per_channel", delay=3, freeze=8),
        Quantize(2, step="learned", activation_step="learned", damping=0.5),
        Quantize(2, bits_schedule=schedules.points([(0, 8), (9, 2)])),
    ],
)
def test_what_is_saved_is_loaded(technique, tmp_path):
    recipe = Recipe([Rule("*", [technique]), Rule("head", [])])
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe
    over = [
        dataclasses.replace(r, techniques=[t.over(0, 3) for t in r.techniques])
        for r in recipe.rules
    ]
    assert Recipe.load(str(tmp_path / "r.yaml"), steps=3) == Recipe(over)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(lambda layer: True, []), "must have patterns for layers; received <function"),
        (Rule(layers.Dense, []), "must have patterns for layers.*such as 'Dense'"),
        (Rule("*", [Prune(0.5, score=abs)]), "must name its score; received the function"),
        (Rule("*", [Regularize("orthogonal_regularizer")]), "must have the regularizers l1, l2"),
        (
            Rule("*", [Prune(schedules.Schedule("cosine", 0.1, 0.2))]),
            "a schedule in a file must come from one of constant",
        ),
    ],
)
def test_what_yaml_cannot_tell(rule, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Recipe([rule]).save(tmp_path / "r.yaml")
    assert list(tmp_path.iterdir()) == []


def test_ready_recipes():
    names = "cluster16-int8 distill-int8 int4 int8 sparse-cluster-int8".split()
    names += ["sparse50-int8", "sparse80-int8"]
    assert ready_recipes() == names
    for name in names:
        recipe = Recipe.load(name, steps=1000)
        assert recipe.distill == (Distillation() if name == "distill-int8" else None)
        (rule,) = recipe.rules
        found = {type(t).__name__: t for t in rule.techniques}
        assert rule.layers == "*"
        assert found["Quantize"].bits == (4 if name == "int4" else 8)
        assert ("Cluster" in found) == ("cluster" in name)
        assert ("Prune" in found) == ("sparse" in name)
        if "Prune" in found:
            schedule = found["Prune"].schedule
            assert schedule.final == (0.8 if "80" in name else 0.5)
            assert schedule.end <= 600  # so that what is left can recover
        if "Cluster" in found:
            assert found["Cluster"].clusters == 16


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int9", "unknown recipe 'int9'; .*cluster16-int8.*Did you mean 'int8'"),
        ("missing.yaml", "no file at 'missing.yaml'"),
        (".", r"unknown recipe '\.'"),
    ],
)
def test_sources_that_are_none(source, message):
    with pytest.raises(ValueError, match=message):
        Recipe.load(source)


def test_a_folder_and_a_huge_file(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ValueError, match=r"cannot read .*is a directory"):
        Recipe.load(tmp_path / "folder.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        Recipe.load(tmp_path / "huge.yaml")
    with pytest.raises(TypeError, match="received 3"):
        Recipe.load(3)


def test_a_rule_for_a_type_takes_in_subclasses():
    class Mine(layers.Dense):
        pass

    rule = Rule(layers.Dense, [Quantize()])
    assert rule.matches(layers.Dense(1))
    assert rule.matches(Mine(1))
    assert not rule.matches(layers.Conv2D(1, 1))
    assert not Rule("Dense").matches(Mine(1))
    with pytest.raises(TypeError, match=r"a type of layers such as keras.layers.Dense; received <"):
        Rule(int)
