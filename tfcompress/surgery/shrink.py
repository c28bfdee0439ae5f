"""Shrink: what a recipe says about the surgery that comes before its techniques."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

from tfcompress.errors import check, expected_one_of, is_whole, require_share

if TYPE_CHECKING:
    import keras

    from tfcompress.surgery.base import SurgeryReport

METHODS = ("svd", "tucker", "cp", "spatial_svd", "kronecker", "block_diagonal")
# Scores that look at data, and all.
LOOKING = ("taylor", "fisher", "apoz", "reconstruction")
SCORES = ("l1", "l2", "max", "bn_gamma", "fpgm", "random", *LOOKING)
SCOPES = ("global", "local", "sensitivity")
ALLOCATIONS = ("size", "uniform")


def _whole(name: str, value: Any, least: int = 1) -> None:
    check(is_whole(value, least), name, f"a whole number, {least} or more", value)


def _flag(name: str, value: Any) -> None:
    check(isinstance(value, bool), name, "True or False", value)


def _word(name: str, value: Any, known: Sequence[str], or_code: bool = False) -> None:
    if isinstance(value, str) and value not in known:
        raise ValueError(f"{name} {value!r} is unknown; {expected_one_of(value, known)}")
    holds = isinstance(value, str) or (or_code and callable(value))
    check(holds, name, f"one of {', '.join(known)}", value)


def _names(name: str, value: Any, or_code: bool = False) -> None:
    """`or_code` admits types and predicates of layers, too."""
    several = value if isinstance(value, list | tuple | set | frozenset) else [value]
    holds = all((isinstance(x, str) and x) or (or_code and callable(x)) for x in several)
    check(holds, name, "names of layers or patterns such as 'conv*'", value)


def _shares(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"{name} must name layers and the fraction of their channels to remove; received "
            f"{value!r}. Write {{conv1: 0.5}}."
        )
    for layer, share in value.items():
        require_share(f"{name} of {layer!r}", share)


def _rank(name: str, value: Any) -> None:
    for rank in value.values() if isinstance(value, Mapping) else [value]:
        pair = isinstance(rank, list | tuple) and len(rank) == 2
        for each in rank if pair else [rank]:
            if each != "evbmf":
                _whole(name, each)


def _multiple(name: str, value: Any) -> None:
    known = value == "latency" or is_whole(value)
    check(known, name, "a whole number, 1 or more, or 'latency'", value)


def _bits(name: str, value: Any) -> None:
    for width in value.values() if isinstance(value, Mapping) else [value]:
        whole = is_whole(width, 2) and width <= 8
        check(whole, name, "whole numbers from 2 to 8, of all layers or by their names", width)
    check(value != {}, name, "that of some layers", value, "Write {conv1: 4}, or 4 for all.")


def _positive(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    check(number and value > 0, name, "a number above 0", value)


def _pattern(name: str, value: Any) -> None:
    from tfcompress.techniques.masks import Pattern  # which imports Keras

    Pattern.parse(value)


# Types of arguments, each with the function that checks a name and a value; None is left out.
Share = Annotated[float | None, require_share]
Part = Annotated[float | None, functools.partial(require_share, or_one=True)]
Shares = Annotated[Mapping[str, float] | None, _shares]
Count = Annotated[int | None, _whole]
Multiple = Annotated[int | Literal["latency"] | None, _multiple]
Seed = Annotated[int | None, functools.partial(_whole, least=0)]
Flag = Annotated[bool | None, _flag]
Names = Annotated[str | Sequence[str] | None, _names]
Layers = Annotated[str | Sequence[str] | None, functools.partial(_names, or_code=True)]
Score = Annotated[str | None, functools.partial(_word, known=SCORES, or_code=True)]
Scope = Annotated[str | None, functools.partial(_word, known=SCOPES)]
Gain = Annotated[str | None, functools.partial(_word, known=("macs", "latency"))]
Allocation = Annotated[str | None, functools.partial(_word, known=ALLOCATIONS)]
Bits = Annotated[int | Mapping[str, int] | None, _bits]
Granularity = Annotated[str | None, functools.partial(_word, known=("per_channel", "per_tensor"))]
Positive = Annotated[float | None, _positive]
Pattern = Annotated[str | None, _pattern]
Method = Annotated[str | None, functools.partial(_word, known=METHODS)]
RankOfOne = int | Literal["evbmf"] | tuple[int, int]
Rank = Annotated[RankOfOne | Mapping[str, RankOfOne] | None, _rank]


@dataclasses.dataclass(frozen=True)
class Step:
    """The arguments of one operation but for the model and the data."""

    # The function of tfcompress that takes them.
    function: ClassVar[str]
    # Arguments of which it takes at most one, or exactly one.
    amounts: ClassVar[tuple[str, ...]] = ()
    needs_amount: ClassVar[bool] = False
    # Those that say how much without any of these, too.
    instead: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        hints = get_type_hints(type(self), include_extras=True)
        names = [field.name for field in dataclasses.fields(self)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for name, value in given.items():
            (test,) = hints[name].__metadata__
            test(name, value)
        found = [name for name in given if name in self.amounts]
        missing = not found and not set(self.instead) & given.keys()
        if len(found) > 1 or (self.needs_amount and missing):
            few = "exactly" if self.needs_amount else "at most"
            raise ValueError(
                f"{few} one of {', '.join(self.amounts)} must be given for "
                f"{type(self).__name__.lower()}; received {', '.join(found) or 'none'}. A macs of "
                "0.5 leaves half of the MACs."
            )


@dataclasses.dataclass(frozen=True)
class Channels(Step):
    """The arguments of `tfcompress.prune_channels`."""

    macs: Share = None
    params: Share = None
    sparsity: Share = None
    per_layer: Shares = None
    latency: Share = None
    score: Score = None
    scope: Scope = None
    round_to: Multiple = None
    max_sparsity: Part = None
    keep: Names = None
    refit: Flag = None
    gain: Gain = None
    batch_size: Count = None
    samples: Count = None
    seed: Seed = None

    function = "prune_channels"
    amounts, needs_amount = ("macs", "params", "sparsity", "per_layer"), True
    instead = ("latency",)


@dataclasses.dataclass(frozen=True)
class Factorize(Step):
    """The arguments of `tfcompress.factorize`."""

    method: Method = None
    rank: Rank = None
    energy: Part = None
    macs: Share = None
    params: Share = None
    layers: Layers = None
    samples: Count = None
    allow_larger: Flag = None

    function = "factorize"
    amounts = ("rank", "energy", "macs", "params")


@dataclasses.dataclass(frozen=True)
class Prune(Step):
    """The arguments of `tfcompress.post_training.prune_after_training`."""

    sparsity: Share = None
    pattern: Pattern = None
    allocation: Allocation = None
    depthwise: Flag = None
    samples: Count = None
    batch_size: Count = None
    damp: Positive = None

    function = "prune_after_training"


@dataclasses.dataclass(frozen=True)
class Gptq(Step):
    """The arguments of `tfcompress.post_training.gptq`."""

    bits: Bits = None
    dense: Granularity = None
    convolution: Granularity = None
    samples: Count = None
    batch_size: Count = None
    damp: Positive = None

    function = "gptq"


@dataclasses.dataclass(frozen=True)
class Separable(Step):
    """The arguments of `tfcompress.to_separable`."""

    layers: Layers = None
    depth_multiplier: Count = None

    function = "to_separable"


# The names of operations in recipes and in `Shrink`.
OPERATIONS: dict[str, type[Step]] = {
    step.__name__.lower(): step for step in (Channels, Factorize, Prune, Gptq, Separable)
}


@dataclasses.dataclass(frozen=True)
class Shrink:
    """Surgery that makes a model smaller: one step or several, and training after them.

    Args:
        steps: {operation: its arguments}, or pairs of these, in the order in which they are
            applied; kept as a tuple of pairs. Operations are
            "channels" (see `tfcompress.prune_channels`), "factorize" (see `tfcompress.factorize`),
            "prune" (see `tfcompress.post_training.prune_after_training`; `Prune(preserve=True)`
            then holds its zeros in training), "gptq" (see `tfcompress.post_training.gptq`; from its
            grids `Quantize(bits=4, step="learned")` then trains on) and "separable" (see
            `tfcompress.to_separable`).
        epochs: how long `tfcompress compress` trains the smaller model, in float, before the
            techniques of the recipe begin.

    Raises:
        TypeError, ValueError: if there is no step, or an operation, an argument or a number is not
            one that it takes.

    Example:
        >>> Shrink({"channels": {"macs": 0.5, "keep": ["head"]}}, epochs=5).epochs
        5
    """

    steps: Any
    epochs: int = 0

    def __post_init__(self):
        steps = self.steps.items() if isinstance(self.steps, Mapping) else self.steps
        pairs = [(name, checked(name, arguments)) for name, arguments in steps]
        if not pairs:
            raise ValueError(
                f"a shrink must have at least one step of {', '.join(OPERATIONS)}; received none. "
                "Add one, such as channels: {macs: 0.5}."
            )
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0:
            raise ValueError(
                f"epochs must be a whole number, 0 or more; received {self.epochs!r}. 0 goes on "
                "without training after the surgery."
            )
        object.__setattr__(self, "steps", tuple(pairs))

    def apply(
        self, model: keras.Model, data: Any = None, loss: Any = None, seed: int = 0
    ) -> keras.Model:
        """A smaller copy of a model; it is not trained.

        Args:
            model: any built Keras 3 model that `flatten` takes; it is left untouched.
            data: (x, y), x alone or a dataset, for steps that look at data: scores of channels,
                and "svd" factors, which then keep what a layer does with these inputs. Of several
                inputs x is a list or a dict.
            loss: Keras loss for scores that need one; by default that of the model.
            seed: of what is random, where a step has none of its own.

        Returns:
            A flat Functional `keras.Model`, not compiled, whose `surgery_report` tells all steps.

        Raises:
            TypeError, ValueError: as the functions that are called.

        Example:
            >>> small = Shrink({"channels": {"macs": 0.5}}).apply(model)  # doctest: +SKIP
            >>> print(small.surgery_report)  # doctest: +SKIP
        """
        from tfcompress.post_training.rounded import Rounded
        from tfcompress.surgery.base import report_of, with_report
        from tfcompress.surgery.pruning.judging import compiled_with

        # After the first step the model is another one, which is not compiled.
        loss = compiled_with(model) if loss is None else loss
        reports = []
        for name, arguments in self.steps:
            function = function_of(name)
            taken = inspect.signature(function).parameters
            shared = {"data": _data_for(name, arguments, data), "loss": loss, "seed": seed}
            given = {key: value for key, value in shared.items() if key in taken}
            found = function(model, **{**given, **arguments})
            before, model = model, found.model if isinstance(found, Rounded) else found
            reports.append(report_of(before, model))
        return with_report(model, _joined(reports))

    @property
    def samples(self) -> int | None:
        """The most samples that a step asks for; None if none does."""
        return max((a["samples"] for _, a in self.steps if a.get("samples")), default=None)

    def get_config(self) -> dict[str, Any]:
        """The settings as plain data."""
        return {"steps": [list(step) for step in self.steps], "epochs": self.epochs}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Shrink:
        """The settings that `get_config` told."""
        return cls([tuple(step) for step in config["steps"]], config["epochs"])

    def __repr__(self) -> str:
        epochs = f", epochs={self.epochs}" if self.epochs else ""
        return f"Shrink({dict(self.steps)}{epochs})"

    def __hash__(self) -> int:
        return hash((tuple(name for name, _ in self.steps), self.epochs))


def function_of(operation: str) -> Any:
    """The function that carries out an operation."""
    # Late, as these take seconds, and the command line reads the classes of this file.
    from tfcompress.post_training import gptq, prune_after_training
    from tfcompress.surgery.factors.factorize import factorize
    from tfcompress.surgery.pruning.prune_channels import prune_channels
    from tfcompress.surgery.separable import to_separable

    every = prune_channels, factorize, prune_after_training, gptq, to_separable
    functions = {f.__name__: f for f in every}
    return functions[OPERATIONS[operation].function]


def checked(operation: str, arguments: Any) -> dict[str, Any]:
    """A copy of the arguments of an operation, once they are found right."""
    if operation not in OPERATIONS:
        raise ValueError(f"unknown step {operation!r}; {expected_one_of(operation, OPERATIONS)}")
    step = OPERATIONS[operation]
    if not isinstance(arguments, Mapping):
        raise TypeError(
            f"{operation} must be a dict of the arguments of {step.function}; received "
            f"{arguments!r}."
        )
    known = [field.name for field in dataclasses.fields(step)]
    for name in arguments:
        if name not in known:
            raise ValueError(f"unknown key {name!r} in {operation}; {expected_one_of(name, known)}")
    step(**arguments)
    found = copy.deepcopy(dict(arguments))
    return found | {"rank": _pairs(found["rank"])} if "rank" in found else found


def _pairs(rank: Any) -> Any:
    """A rank with pairs as tuples, which JSON and YAML do not know."""
    if isinstance(rank, Mapping):
        return {layer: _pairs(each) for layer, each in rank.items()}
    return tuple(rank) if isinstance(rank, list) else rank


def _data_for(operation: str, arguments: Mapping[str, Any], data: Any) -> Any:
    """What of the data an operation can look at."""
    if operation in ("prune", "gptq") and data is None:
        raise ValueError(
            f"{operation} looks at what layers are given; received no data. Pass training inputs, "
            "data=x."
        )
    if operation not in ("factorize", "prune", "gptq"):
        return data
    if operation == "factorize" and arguments.get("method", "svd") != "svd":
        return None
    return data[0] if isinstance(data, tuple) else data


def _joined(reports: list[SurgeryReport]) -> SurgeryReport:
    """One report on several steps, from before the first to after the last."""
    from tfcompress.surgery.base import SurgeryReport

    if len(reports) == 1:
        return reports[0]
    return SurgeryReport(
        operation=" + ".join(report.operation for report in reports),
        changes=tuple(change for report in reports for change in report.changes),
        kept=tuple(dict.fromkeys(change for report in reports for change in report.kept)),
        macs=(reports[0].macs[0], reports[-1].macs[1]),
        params=(reports[0].params[0], reports[-1].params[1]),
    )
