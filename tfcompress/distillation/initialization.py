"""init_from_teacher: a student that starts from the weights of its teacher."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import keras
from keras import layers

from tfcompress.backend import as_tensor
from tfcompress.channels.following import Follower
from tfcompress.channels.weighted import Weighted
from tfcompress.distillation.matching import Pairs, difference, match_layers
from tfcompress.distillation.selection import Selection, select
from tfcompress.errors import did_you_mean
from tfcompress.graph.flatten import flatten, flatten_with_sources
from tfcompress.graph.inputs import require_model
from tfcompress.graph.nodes import Graph
from tfcompress.layers.compressed import Compressed, baked_weight
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.quantization.opening import open_layers
from tfcompress.techniques import Quantize

How = Literal["copied", "cut", "left"]


@dataclasses.dataclass(frozen=True)
class InitializedLayer:
    """What became of a layer of the student.

    Attributes:
        student: its name in the flat student, see `tfcompress.flatten`.
        teacher: the layer that it starts from; None if it was left.
        how: "copied", "cut" to fewer channels, or "left" at its initialization.
        detail: how many channels, or why it was left.
    """

    student: str
    teacher: str | None
    how: How
    detail: str


@dataclasses.dataclass(frozen=True)
class Initialization:
    """What `init_from_teacher` did.

    Attributes:
        layers: one record for each layer of the student that has weights, in order.
        skipped: layers of the teacher from which no layer starts.
        fraction: of the student's weights, as numbers, that were set.
    """

    layers: tuple[InitializedLayer, ...]
    skipped: tuple[str, ...]
    fraction: float

    def __str__(self) -> str:
        rows = [("student", "teacher", "how", "detail")]
        rows += [(x.student, x.teacher or "-", x.how, x.detail) for x in self.layers]
        rows += [("-", name, "skipped", "") for name in self.skipped]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows]
        lines.append(f"{self.fraction:.1%} of the student's weights come from the teacher.")
        return "\n".join(lines)


def init_from_teacher(
    student: keras.Model, teacher: keras.Model, *, match: Mapping[str, str] | None = None
) -> Initialization:
    """Starts a student from the weights of its teacher, in place, and says which.

    Layers are matched in order. Equal ones are copied. Of wider ones the channels with the largest
    L1 norm are kept (Li et al. 2017, arXiv:1608.08710), one choice for all layers that share them,
    and the layers that follow read these. Of N repeats of a block a student with M takes those at
    round(linspace(0, N - 1, M)), as DistilBERT does (Sanh et al. 2019, arXiv:1910.01108). What
    cannot be followed is left as it is; inputs and outputs of the model keep all channels.

    Args:
        student: a built `keras.Model`, plain or from `compress` or `quantize_aware`; its weights
            are set, the states of techniques are not.
        teacher: a built `keras.Model`; it is left untouched.
        match: {name of a layer of the student: name of the layer of the teacher to start from},
            which goes before the matching; names as `flatten` gives them.

    Returns:
        An `Initialization`, which prints as a table.

    Raises:
        TypeError: one of them is no Keras 3 model.
        ValueError: one of them is not built or cannot be flattened, `match` names no layers or ones
            that do not fit, the student's compression has begun already, or nothing matches.

    Example:
        >>> print(init_from_teacher(student, teacher))  # doctest: +SKIP
        student  teacher  how  detail
        conv     conv     cut  16 of 32 channels
        ...
    """
    for model in (student, teacher):
        require_model(model)
    _require_untrained(student)
    flat, sources = _quietly(flatten_with_sources, student)
    ours = Follower(Graph.of(flat), sources)
    plan = _best_plan(ours, _followed(teacher, flat), match or {})
    if not plan.selection.values:
        raise _nothing_matches(student, teacher, plan)
    for layer, values in plan.selection.values.items():
        for weight, value in zip(layer.weights, values, strict=True):
            weight.variable.assign(value)
        if isinstance(layer.layer, layers.Normalization):
            layer.layer.finalize_state()
    return _report(plan)


def _require_untrained(student: keras.Model) -> None:
    for layer in student._flatten_layers():
        if getattr(layer, "scheduled", False) and int(as_tensor(layer.last_step)) >= 0:
            raise ValueError(
                f"the student must start from the teacher before it trains; received '"
                f"{student.name}', whose layer '{layer.name}' follows a schedule that has begun. "
                "Call init_from_teacher right after compress, or on the plain model before it."
            )


def _quietly(function, *args) -> Any:
    """Calls a function without the warnings of flattening: the copies are only read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


def _followed(teacher: keras.Model, student: keras.Model) -> list[tuple[Follower, dict[int, Any]]]:
    """The teacher's layers, and the values that techniques make of their weights.

    Of a student with opened layers, as `compress` opens those that it quantizes, the teacher's are
    tried opened, too.
    """
    models = [_quietly(flatten, teacher)]
    if _is_quantized(student) and not _is_quantized(models[0]):
        models.append(_quietly(open_layers, models[0]))
    return [(Follower(Graph.of(model)), _effective(model)) for model in models]


def _is_quantized(model: keras.Model) -> bool:
    return any(isinstance(layer, FakeQuant) for layer in model.layers)


def _effective(model: keras.Model) -> dict[int, Any]:
    """id of a weight -> what techniques but `Quantize` make of it."""
    wrapped = [layer for layer in model.layers if isinstance(layer, Compressed)]
    targets = [target for layer in wrapped for target in layer.bound]
    return {id(target.variable): baked_weight(target, stop=Quantize) for target in targets}


def _checked(match: Mapping[str, str], student: Follower, teacher: Follower) -> dict[str, str]:
    """The pairs that the user gives, if both layers are there and fit."""
    sides = [("student", student), ("teacher", teacher)]
    known = {side: {layer.name: layer for layer in model.layers} for side, model in sides}
    for names in match.items():
        for (side, _), name in zip(sides, names, strict=True):
            if name not in known[side]:
                listed = ", ".join(known[side])
                raise ValueError(
                    f"match must name layers with weights; received {name!r}, which is no layer of "
                    f"the {side}. {did_you_mean(name, known[side], f'It has: {listed}.')}"
                )
        reason = difference(known["student"][names[0]], known["teacher"][names[1]])
        if reason is not None:
            raise ValueError(
                f"match must pair layers that fit; received {names[0]!r}: {names[1]!r}, but "
                f"{reason}. Leave it out, or give the student a layer that is no larger."
            )
    return dict(match)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What to set: the layers of both models, which are paired, and what each takes."""

    student: Follower
    teacher: Follower
    pairs: Pairs
    selection: Selection


def _best_plan(student: Follower, teachers, match: Mapping[str, str]) -> _Plan:
    """Of a teacher as it is and opened, the plan that sets more."""
    plans, errors = [], []
    for teacher, values in teachers:
        try:
            given = _checked(match, student, teacher)
        except ValueError as error:
            errors.append(error)
            continue
        pairs = match_layers(student, teacher, given)
        plans.append(_Plan(student, teacher, pairs, select(student, pairs, values)))
    if not plans:
        raise errors[0]
    return max(plans, key=lambda plan: sum(layer.size for layer in plan.selection.values))


def _nothing_matches(student: keras.Model, teacher: keras.Model, plan: _Plan) -> ValueError:
    models = (student, plan.student), (teacher, plan.teacher)
    listed = [
        f"'{model.name}' has "
        + (", ".join(f"{x.name} ({x.kind} {x.shapes[0]})" for x in side.layers[:4]) or "no weights")
        + (f" and {len(side.layers) - 4} more" if len(side.layers) > 4 else "")
        for model, side in models
    ]
    reasons = [f"Of '{x.name}': {why}. " for x, why in plan.selection.reasons.items()]
    told = next(iter(reasons), "")
    return ValueError(
        "no layer of the student can start from one of the teacher: expected layers of the same "
        f"class and kernel size, none wider than the teacher's; the student {listed[0]}; the "
        f"teacher {listed[1]}. {told}Exchange the two if they are the wrong way round."
    )


def _report(plan: _Plan) -> Initialization:
    selection, partner = plan.selection, dict(plan.pairs)
    records, used = [], set()
    for layer in plan.student.layers:
        if layer in selection.values:
            used.add(partner[layer])
            how: How = "copied" if layer.shapes == partner[layer].shapes else "cut"
            name = partner[layer].name
            records.append(InitializedLayer(layer.name, name, how, selection.details[layer]))
        else:
            reason = selection.reasons.get(layer) or _why_unmatched(layer, plan)
            if layer in partner and partner[layer].name != layer.name:
                reason += f" ('{partner[layer].name}')"
            records.append(InitializedLayer(layer.name, None, "left", reason))
    skipped = tuple(layer.name for layer in plan.teacher.layers if layer not in used)
    whole = sum(layer.size for layer in plan.student.layers)
    fraction = sum(layer.size for layer in selection.values) / whole
    return Initialization(tuple(records), skipped, fraction)


def _why_unmatched(layer: Weighted, plan: _Plan) -> str:
    taken = {theirs for _, theirs in plan.pairs}
    alike = [other for other in plan.teacher.layers if other.name == layer.name]
    alike += [x for x in plan.teacher.layers if x not in taken and x.kind == layer.kind]
    reason = difference(layer, alike[0]) if alike else None
    if reason is None:
        return f"no {layer.kind} of the teacher is at its place"
    return f"{reason} ('{alike[0].name}')"
