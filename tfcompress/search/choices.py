"""Choices by name: what every space is written in, whoever makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any

from tfcompress.errors import check

if TYPE_CHECKING:
    import optuna

# choose(name, options) -> option. A space is a function of one, which asks as it goes.
Chooser = Callable[[str, Sequence[Any]], Any]


def of_trial(trial: optuna.trial.BaseTrial) -> Chooser:
    """The chooser that asks a trial of Optuna, whose `params` become {name: index of the option}.

    Args:
        trial: as `study.ask()` or an objective gives it; also a `FixedTrial`.

    Returns:
        A function `choose(name, options) -> option`. Increasing numbers are an integer to the
        sampler, so that it knows which are near each other; all else is a category.

    Raises:
        ValueError: when it is called with no options.

    Example:
        >>> import optuna
        >>> of_trial(optuna.trial.FixedTrial({"kernel": 1}))("kernel", [3, 5])
        5
    """

    def choose(name: str, options: Sequence[Any]) -> Any:
        _check_options(name, options)
        if are_ordered(options):
            return options[trial.suggest_int(name, 0, len(options) - 1)]
        return options[trial.suggest_categorical(name, range(len(options)))]

    return choose


def of_picks(picks: Mapping[str, int]) -> Chooser:
    """The chooser that takes the options of given indices.

    Args:
        picks: {name: index of the option}, as a trial's `params`; may name more than is asked for.

    Returns:
        A function `choose(name, options) -> option`.

    Raises:
        ValueError: when it is called with a name without a pick, or no option has the index.

    Example:
        >>> of_picks({"kernel": 1})("kernel", [3, 5])
        5
    """

    def choose(name: str, options: Sequence[Any]) -> Any:
        _check_options(name, options)
        check(name in picks, "picks", f"an index for '{name}'", dict(picks))
        index = picks[name]
        whole = isinstance(index, int) and not isinstance(index, bool)
        holds = whole and 0 <= index < len(options)
        check(holds, f"the pick of '{name}'", f"an index in [0, {len(options)})", index)
        return options[index]

    return choose


def are_ordered(options: Sequence[Any]) -> bool:
    """Whether options are increasing numbers."""
    numbers = all(isinstance(x, Real) and not isinstance(x, bool) for x in options)
    return numbers and all(a < b for a, b in pairwise(options))


def _check_options(name: str, options: Sequence[Any]) -> None:
    check(len(options) > 0, f"the options of '{name}'", "at least one", options)
