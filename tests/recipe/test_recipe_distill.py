"""The section `distill` of recipes: what it means, and what is said of one that is wrong."""

import keras
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress import Quantize, Recipe, Rule
from tfcompress.distillation import (
    AttentionTransfer,
    Contrastive,
    DistillationLoss,
    Features,
    Regression,
    Relational,
    SoftLabels,
)
from tfcompress.distillation.distiller import Distillation
from tfcompress.recipe import file
from tfcompress.recipe.file import to_yaml


def read(text):
    return Recipe(*file.parse(text.encode(), "recipe.yaml").parts())


def loss_of(line):
    """The one loss of a recipe that is line 3 of the file."""
    return read(f"distill:\n  losses:\n    - {line}\n").distill.losses[0]


def test_the_whole_section():
    recipe = read(
        """
        distill:
          alpha: 0.25
          temperature: 3
          losses:
            - soft_labels
            - features: {teacher_layer: block4, student_layer: block2, weight: 0.1}
            - mae
          cache: memory
          start_from_teacher: true
          dropout: true
        rules:
          - {layers: "*", techniques: [quantize]}
        """
    )
    losses = [SoftLabels(), Features("block4", "block2", weight=0.1), Regression("mae")]
    distill = Distillation(losses, 0.25, 3.0, "memory", True, True)
    assert recipe == Recipe([Rule("*", [Quantize()])], distill)
    assert recipe != Recipe([Rule("*", [Quantize()])])
    assert type(recipe.distill.temperature) is float


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("soft_labels", SoftLabels()),
        ("soft_labels: {temperature: 2, output: kind}", SoftLabels(2.0, output="kind")),
        ("soft_labels: {output: 1, weight: 0}", SoftLabels(output=1, weight=0.0)),
        ("soft_labels: {from_logits: true}", SoftLabels(from_logits=True)),
        ("soft_labels: {from_logits: [true, null]}", SoftLabels(from_logits=(True, None))),
        ("soft_labels: {activation: sigmoid, name: s}", SoftLabels(activation="sigmoid", name="s")),
        ("soft_labels: {temperature: null, teacher: 1}", SoftLabels(teacher=1)),
        # Layers are text, whatever YAML makes of it.
        ("features: {teacher_layer: 4, student_layer: no}", Features("4", "no")),
        (
            "features: {teacher_layer: a, student_layer: b, loss: huber, projection: true}",
            Features("a", "b", loss="huber", projection=True),
        ),
        (
            "attention_transfer: {teacher_layer: a, student_layer: b, power: 3}",
            AttentionTransfer("a", "b", 3.0),
        ),
        ("relational: {angle: 0, distance: 2}", Relational(angle=0.0, distance=2.0)),
        ("contrastive: {size: 64, temperature: .2}", Contrastive(size=64, temperature=0.2)),
        ("regression", Regression()),
        ("regression: {loss: huber, output: box}", Regression("huber", output="box")),
        ("mse", Regression("mse")),
        ("Huber", Regression(keras.losses.Huber())),
    ],
)
def test_lines_mean_what_python_says_and_are_written_again(line, expected):
    found = loss_of(line)
    assert type(found) is type(expected)
    assert found.get_config() == expected.get_config()
    recipe = Recipe(distill=Distillation([expected]))
    assert read(to_yaml(recipe)) == recipe
    assert Recipe.from_config(recipe.get_config()) == recipe


def test_what_is_as_by_default_is_not_written():
    assert to_yaml(Recipe(distill=Distillation())) == "distill: {}\n"
    losses = {"kind": SoftLabels(), "box": ["mae", Regression("mse", weight=2.0)]}
    recipe = Recipe([Rule("head", [])], Distillation(losses, alpha=0.5))
    assert to_yaml(recipe) == (
        "distill:\n"
        "  alpha: 0.5\n"
        "  losses:\n"
        "  - soft_labels:\n"
        "      output: kind\n"
        "  - regression:\n"
        "      loss: mean_absolute_error\n"
        "      output: box\n"
        "  - regression:\n"
        "      weight: 2.0\n"
        "      output: box\n"
        "rules:\n"
        "- layers: head\n"
        "  techniques: []\n"
    )
    assert read(to_yaml(recipe)) == recipe


def test_what_is_saved_is_loaded(tmp_path):
    recipe = Recipe([Rule("*", [Quantize()])], Distillation("mse", 0.0, 2.0, "a/b.h5"))
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe
    content = (tmp_path / "r.yaml").read_bytes()
    assert file.parse(content, "r.yaml").distill == recipe.distill
    assert file.parse(b"rules: [{layers: a, techniques: []}]", "r.yaml").distill is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill:\n  alpah: 1", "2: unknown key 'alpah' in distill; .* Did you mean 'alpha'"),
        ("distill:\n  temperature: 2\n  alpha: 2", r"3: distill: alpha must be .*\[0, 1\].*2.0"),
        (
            "distill:\n  alpha: 0.2\n  teacher: big.keras",
            "3: .* the teacher is named on the command line, --teacher FILE",
        ),
        ("distill: {alpha: some}", "1: alpha must be a number or null; received 'some'"),
        ("distill:\n\n  temperature: 0", "3: distill: temperature must be .* greater than 0"),
        (
            "distill: {temperature: warm}",
            "1: temperature must be a number or null; .*'warm'",
        ),
        ("distill: {cache: [1]}", "1: cache must be null or text; received '.1.'"),
        ("distill: {cache: ''}", "1: distill: cache must be the path of a file, or 'memory'"),
        (
            "distill: {start_from_teacher: yes}",
            "1: start_from_teacher must be true or false",
        ),
        ("distill: 3", "1: distill must be a mapping of alpha, .*; received 3"),
        ("distill: {losses: soft_labels}", "1: losses must be a list, each element after '- '"),
        ("distill: {losses: []}", "1: losses must hold at least one loss; .*leave the key out"),
        ("distill: {losses: [[a]]}", "1: unknown loss '.a.'"),
        ("distill:\n  losses:\n  - soft_label", "3: unknown loss 'soft_label'; .*'soft_labels'"),
        (
            "distill: {losses: [mean_square_eror]}",
            "1: .* such as mse. Did.*'mean_square",
        ),
        ("distill: {losses: [{mse: {weight: 2}}]}", "1: unknown key 'mse' in a loss; .*regression"),
        (
            "distill:\n  losses:\n  - soft_labels:\n      temprature: 2",
            "4: unknown key 'temprature' in soft_labels; .* Did you mean 'temperature'",
        ),
        ("distill: {losses: [{soft_labels: {dtype: a}}]}", "1: unknown key 'dtype' in soft_labels"),
        ("distill: {losses: [{soft_labels: {}, mse: {}}]}", "1: unknown key 'mse' in a loss"),
        ("distill: {losses: [{soft_labels: {}, regression: {}}]}", "1: a loss must have one of"),
        (
            "distill:\n  losses:\n  - features:\n      teacher_layer: a",
            "3: features: Features compares a layer .* Name both",
        ),
        (
            "distill:\n  losses:\n  - relational:\n      angle: 1\n      weight: -1",
            "5: relational: weight must be a number of 0 or more; received -1.0",
        ),
        (
            "distill:\n  losses:\n  - regression:\n      loss: msee",
            "4: unknown loss 'msee'; expected one of soft_labels, .* or the name of a Keras loss",
        ),
        (
            "distill: {losses: [{contrastive: {size: 1.5}}]}",
            "1: size must be a whole number; .*1.5",
        ),
        ("distill: {losses: [{features: {projection: yes}}]}", "1: features: projection must be"),
        (
            "distill: {losses: [{soft_labels: {from_logits: [true]}}]}",
            "1: soft_labels: from_logits",
        ),
        ("distill:\nrules: []", "2: rules must hold at least one rule; received none"),
        ("{}", "1: a recipe must have the key 'rules'; received none"),
    ],
)
def test_mistakes_name_line_and_key(text, message):
    with pytest.raises(ValueError, match=rf"^recipe\.yaml, line {message}"):
        read(text)


class Mine(DistillationLoss):
    def call(self, y_true, y_pred):
        return y_pred[:, 0]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Mine(), "must have losses of tfcompress.distillation; received Mine. Keep the recipe in"),
        (Regression(lambda a, b: a - b), "must name the loss of <lambda> as Keras does"),
        (Regression(keras.losses.Huber(3.0)), "must name the loss of Huber .* without arguments"),
    ],
)
def test_what_yaml_cannot_tell(loss, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Recipe(distill=Distillation([loss])).save(tmp_path / "r.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": 10}, ValueError, r"alpha must be a number in \[0, 1\].*received 10"),
        ({"temperature": 0}, ValueError, "temperature must be a number greater than 0"),
        ({"losses": []}, ValueError, "losses are empty"),
        ({"losses": "msee"}, ValueError, "unknown loss 'msee'"),
        (
            {"losses": [SoftLabels]},
            TypeError,
            r"the class SoftLabels. Write SoftLabels\(\)",
        ),
        ({"cache": 3}, TypeError, "cache must be the path of a file, or 'memory'; received 3"),
        ({"start_from_teacher": 1}, TypeError, "must be True or False; received 1"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Distillation(**arguments)


def test_a_distillation_shows_what_is_not_as_by_default():
    assert repr(Distillation()) == "Distillation()"
    shown = repr(Distillation(["mse"], alpha=0.5, cache="memory"))
    assert shown.startswith("Distillation(losses=(Regression(")
    assert shown.endswith("alpha=0.5, cache='memory')")


def test_a_recipe_without_rules_needs_a_distillation_and_does_not_compress():
    with pytest.raises(ValueError, match="at least one Rule; received none"):
        Recipe()
    with pytest.raises(TypeError, match=r"distill must be .*\.Distillation; received \{'alpha'"):
        Recipe(distill={"alpha": 0.1})
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"has no rules, so that nothing.*distill\.distiller\("):
        tfc.compress(model, Recipe(distill=Distillation()))


def test_the_distiller_of_a_recipe_has_its_settings():
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="a"), layers.Dense(3)])
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, name="b"), layers.Dense(3)])
    before = [w.copy() for w in model.get_weights()]
    losses = [SoftLabels(), Features("a", "b", weight=0.5)]
    recipe = Recipe([Rule("*", [Quantize()])], Distillation(losses, 0.0, 2.0, None, True))
    small = tfc.compress(model, recipe)
    distiller = recipe.distill.distiller(small, teacher)
    assert distiller.student is small
    assert (distiller.alpha, distiller.temperature) == (0.0, 2.0)
    assert [term.factor for term in distiller.terms] == [1.0, 0.5]
    assert distiller.terms[0].loss.temperature == 2.0
    # It starts from columns of the teacher's kernel, which is wider.
    kernel = small.get_layer("b").layer.kernel.numpy()
    theirs = teacher.get_layer("a").kernel.numpy()
    assert {tuple(column) for column in kernel.T} <= {tuple(column) for column in theirs.T}
    for a, b in zip(before, model.get_weights(), strict=True):
        assert (a == b).all()
