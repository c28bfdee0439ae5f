"""Shrink: what a recipe says about the surgery that comes before its techniques."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfcompress.errors import expected_one_of, require_share

if TYPE_CHECKING:
    import keras

    from tfcompress.surgery.base import SurgeryReport


@dataclasses.dataclass(frozen=True)
class Shrink:
    """Surgery that makes a model smaller: one step or several, and training after them.

    Args:
        steps: {operation: its arguments}, or pairs of these, in the order in which they are
            applied; kept as a tuple of pairs. Operations are
            "channels" (see `tfcompress.prune_channels`), "factorize" (see `tfcompress.factorize`)
            and "separable" (see `tfcompress.to_separable`).
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
        pairs = [(name, _checked(name, arguments)) for name, arguments in steps]
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
        from tfcompress.surgery.base import with_report
        from tfcompress.surgery.pruning.judging import compiled_with

        # After the first step the model is another one, which is not compiled.
        loss = compiled_with(model) if loss is None else loss
        reports = []
        for name, arguments in self.steps:
            function = function_of(name)
            taken = inspect.signature(function).parameters
            shared = {"data": _data_for(name, arguments, data), "loss": loss, "seed": seed}
            given = {key: value for key, value in shared.items() if key in taken}
            model = function(model, **{**given, **arguments})
            reports.append(model.surgery_report)
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
    # Late, as these take seconds, and the command line reads the tables of this file.
    from tfcompress.surgery.factors.factorize import factorize
    from tfcompress.surgery.pruning.prune_channels import prune_channels
    from tfcompress.surgery.separable import to_separable

    functions = (prune_channels, factorize, to_separable)
    return dict(zip(OPERATIONS, functions, strict=True))[operation]


def _checked(operation: str, arguments: Any) -> dict[str, Any]:
    """A copy of the arguments of an operation, once they are found right."""
    if operation not in OPERATIONS:
        raise ValueError(f"unknown step {operation!r}; {expected_one_of(operation, OPERATIONS)}")
    if not isinstance(arguments, Mapping):
        raise TypeError(
            f"{operation} must be a dict of the arguments of {OPERATIONS[operation]}; received "
            f"{arguments!r}."
        )
    check_arguments(operation, arguments)
    found = copy.deepcopy(dict(arguments))
    return found | {"rank": _pairs(found["rank"])} if "rank" in found else found


def _pairs(rank: Any) -> Any:
    """A rank with pairs as tuples, which JSON and YAML do not know."""
    if isinstance(rank, Mapping):
        return {layer: _pairs(each) for layer, each in rank.items()}
    return tuple(rank) if isinstance(rank, list) else rank


def _data_for(operation: str, arguments: Mapping[str, Any], data: Any) -> Any:
    """What of the data an operation can look at."""
    if operation != "factorize":
        return data
    if arguments.get("method", "svd") != "svd":
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


# Operation -> the function of tfcompress that carries it out.
OPERATIONS = {
    "channels": "prune_channels",
    "factorize": "factorize",
    "separable": "to_separable",
}

METHODS = ("svd", "tucker", "cp", "spatial_svd", "kronecker", "block_diagonal")
SCORES = ("l1", "l2", "bn_gamma", "fpgm", "random", "taylor", "fisher", "apoz")
SCOPES = ("global", "local", "sensitivity")

# Operation -> its arguments but for the model and the data -> what each may be: a kind that
# `_check` knows, or the words to choose from.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "channels": {
        "macs": "share",
        "params": "share",
        "sparsity": "share",
        "per_layer": "shares",
        "score": SCORES,
        "scope": SCOPES,
        "round_to": "count",
        "max_sparsity": "part",
        "keep": "names",
        "gain": ("macs", "latency"),
        "batch_size": "count",
        "samples": "count",
        "seed": "seed",
    },
    "factorize": {
        "method": METHODS,
        "rank": "rank",
        "energy": "part",
        "macs": "share",
        "params": "share",
        "layers": "layers",
        "samples": "count",
        "allow_larger": "flag",
    },
    "separable": {"layers": "layers", "depth_multiplier": "count"},
}

# Of which an operation takes exactly one, or at most one.
TARGETS = {
    "channels": ("macs", "params", "sparsity", "per_layer"),
    "factorize": ("rank", "energy", "macs", "params"),
}


def check_arguments(operation: str, given: Mapping[str, Any]) -> None:
    """Raises a ValueError unless an operation takes these arguments."""
    known = ARGUMENTS[operation]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"unknown key {name!r} in {operation}; {expected_one_of(name, known)}")
        if value is not None:
            _check(name, value, known[name])
    targets = TARGETS.get(operation, ())
    found = [name for name in targets if given.get(name) is not None]
    if len(found) > 1 or (operation == "channels" and not found):
        few = "exactly" if operation == "channels" else "at most"
        raise ValueError(
            f"{few} one of {', '.join(targets)} must be given for {operation}; received "
            f"{', '.join(found) or 'none'}. A macs of 0.5 leaves half of the MACs."
        )


def _check(name: str, value: Any, kind: Any) -> None:
    if isinstance(kind, tuple):
        if isinstance(value, str) and value not in kind:
            raise ValueError(f"{name} {value!r} is unknown; {expected_one_of(value, kind)}")
        if not isinstance(value, str) and not (name == "score" and callable(value)):
            raise ValueError(f"{name} must be one of {', '.join(kind)}; received {value!r}.")
    elif kind == "shares":
        if not isinstance(value, Mapping) or not value:
            raise ValueError(
                f"{name} must name layers and the fraction of their channels to remove; received "
                f"{value!r}. Write {{conv1: 0.5}}."
            )
        for layer, share in value.items():
            _check_number(f"{name} of {layer!r}", share, "share")
    elif kind == "rank":
        _check_rank(name, value)
    elif kind == "flag":
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False; received {value!r}.")
    elif kind in ("names", "layers"):
        _check_names(name, value, or_code=kind == "layers")
    else:
        _check_number(name, value, kind)


def _check_rank(name: str, value: Any) -> None:
    ranks = value.values() if isinstance(value, Mapping) else [value]
    for rank in ranks:
        pair = isinstance(rank, list | tuple) and len(rank) == 2
        for each in rank if pair else [rank]:
            if each != "evbmf":
                _check_number(name, each, "count")


def _check_number(name: str, value: Any, kind: str) -> None:
    if kind in ("share", "part"):
        require_share(name, value, or_one=kind == "part")
        return
    least = 0 if kind == "seed" else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more; received {value!r}.")


def _check_names(name: str, value: Any, or_code: bool) -> None:
    """`or_code` admits types and predicates of layers, too."""
    several = value if isinstance(value, list | tuple | set | frozenset) else [value]
    if not all((isinstance(x, str) and x) or (or_code and callable(x)) for x in several):
        raise ValueError(
            f"{name} must be names of layers or patterns such as 'conv*'; received {value!r}."
        )
