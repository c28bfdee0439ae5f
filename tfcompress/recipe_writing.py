"""Recipes written as YAML."""

import dataclasses
from typing import Any

import keras
import yaml

from tfcompress import recipe_distill, recipe_file, recipe_shrink
from tfcompress.recipe import Recipe
from tfcompress.schedules import Schedule
from tfcompress.techniques import GroupLasso, Regularize, Technique


def to_yaml(recipe: Recipe) -> str:
    """A recipe as the text of a YAML file that `Recipe.load` reads.

    Args:
        recipe: one whose rules have patterns.

    Returns:
        The text; what is as by default is left out.

    Raises:
        ValueError: YAML cannot tell a predicate, a type, a function or a class of one's own, also
            among the losses of a distillation and the scores of a shrink.

    Example:
        >>> print(to_yaml(Recipe.load("int8")), end="")
        rules:
        - layers: '*'
          techniques:
          - quantize:
              momentum: 0.95
    """
    rules = []
    for rule in recipe.rules:
        if not isinstance(rule.layers, str):
            raise ValueError(
                "a recipe in a file must have patterns for layers; received "
                f"{rule.layers!r}. Write the name or class of the layers, such as 'Dense'."
            )
        rules.append(
            {"layers": rule.layers, "techniques": [_technique(t) for t in rule.techniques]}
        )
    told: dict[str, Any] = {}
    if recipe.shrink is not None:
        told["shrink"] = recipe_shrink.written(recipe.shrink)
    if recipe.distill is not None:
        told["distill"] = recipe_distill.written(recipe.distill)
    if rules:
        told["rules"] = rules
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def _technique(technique: Technique) -> Any:
    if isinstance(technique, Regularize):
        return {"regularize": _regularizer(technique.regularizer)}
    names = {cls: name for name, cls in recipe_file.TECHNIQUES.items()}
    if type(technique) not in names:
        raise ValueError(
            "a recipe in a file must have techniques of tfcompress; received "
            f"{type(technique).__name__}. Keep the recipe in Python."
        )
    settings = {}
    for field in dataclasses.fields(technique):  # type: ignore[arg-type]
        value = getattr(technique, field.name)
        if field.name in recipe_file.BOUND or value == field.default:
            continue
        if callable(value) and not isinstance(value, Schedule):
            raise ValueError(
                f"a recipe in a file must name its {field.name}; received the function {value!r}. "
                "Keep the recipe in Python."
            )
        settings[field.name] = _schedule(value) if isinstance(value, Schedule) else value
    name = names[type(technique)]
    return {name: settings} if settings else name


def _schedule(schedule: Schedule) -> Any:
    """The call of a function of `schedules` that makes it."""
    first, last = schedule.initial, schedule.final
    every: dict[str, Any] = {"begin": schedule.begin, "frequency": schedule.frequency}
    every |= {} if schedule.end is None else {"end": schedule.end}
    curve = {"initial": first, "final": last, **every}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("constant", {"value": first}),
        ("one_shot", {"value": first, "step": schedule.begin}),
        ("constant", {"value": first, **every}),
        ("linear", curve),
        ("polynomial", {**curve, "power": schedule.power}),
        ("cosine", curve),
        ("points", {"points": [list(point) for point in schedule.points]}),
    ]
    for name, arguments in calls:
        try:
            same = recipe_file.SCHEDULES[name](**arguments) == schedule
        except (TypeError, ValueError):
            continue
        if same and arguments == {"value": first}:
            return first
        if same:
            return {name: arguments.get("points", arguments)}
    functions = ", ".join(recipe_file.SCHEDULES)
    raise ValueError(
        f"a schedule in a file must come from one of {functions}; received {schedule}. "
        "Make it with one of them, or keep the recipe in Python."
    )


def _regularizer(regularizer: Any) -> dict[str, Any]:
    config = regularizer.get_config() if hasattr(regularizer, "get_config") else {}
    if type(regularizer) is GroupLasso:
        return {"group_lasso": {k: v for k, v in config.items() if k not in recipe_file.BOUND}}
    kinds = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
    if type(regularizer) in kinds:
        return {name: float(config[name]) for name in ("l1", "l2") if name in config}
    raise ValueError(
        "a recipe in a file must have the regularizers l1, l2 or group_lasso; received "
        f"{regularizer!r}. Keep the recipe in Python."
    )
