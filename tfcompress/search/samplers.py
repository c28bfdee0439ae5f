"""Engines of searches over choices, as samplers of Optuna.

Ask and tell, storage, resuming and several processes are Optuna's. A sampler here keeps nothing of
its own: what it picks follows from the finished trials of the study, a seed and the number of the
trial, so that a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.errors import check, expected_one_of, is_whole

try:
    import optuna
except ImportError as error:
    mend = "Install it: pip install 'tfcompress[auto]'."
    raise ImportError(f"searches run on Optuna, which is not installed. {mend}") from error
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_PROPOSAL = "tfcompress:proposal"
# How often what was tried already is drawn anew.
_ATTEMPTS = 32
# The most spreads of the reward that one trial counts.
_MOST = 3.0


# {name of a choice: index of the option}
Picks = dict[str, int]


class RandomChoices(BaseSampler):
    """Uniform picks, which follow from a seed, the number of the trial and the name of the choice.

    Optuna's own random sampler begins anew where a study is resumed, and repeats its picks.

    Args:
        seed: of all random numbers.

    Raises:
        ValueError: the seed is no whole number, or below 0.

    Example:
        >>> study = optuna.create_study(sampler=RandomChoices(seed=1))
        >>> 0 <= study.ask().suggest_int("width", 0, 2) <= 2
        True
    """

    def __init__(self, seed: int = 0):
        check(is_whole(seed, 0), "seed", "a whole number, 0 or more", seed)
        self.seed = int(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """None: the space is known only as it is asked for."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Any
    ) -> dict[str, Any]:
        """None, see `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """One pick."""
        random, count = self._random(trial, param_name), count_of(param_name, param_distribution)
        return value_of(param_distribution, int(random.integers(count)))

    def _random(self, trial: FrozenTrial, name: str = "") -> np.random.Generator:
        return np.random.default_rng([self.seed, trial.number, zlib.crc32(name.encode())])


class _Proposing(RandomChoices):
    """A sampler that decides on all picks of a trial before the first is asked for."""

    def _proposal(self, study: Study, finished: list[FrozenTrial], trial: FrozenTrial) -> Picks:
        raise NotImplementedError

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Decides, once, as other processes may finish trials between two picks."""
        count = len(study.directions)
        mend = "Take 'nsga2' or 'random', or make the others constraints."
        check(count == 1, "the study", "of one objective", f"{count} objectives", mend)
        finished = study.get_trials(deepcopy=False, states=_FINISHED)
        proposal = self._proposal(study, finished, trial)
        study._storage.set_trial_system_attr(trial._trial_id, _PROPOSAL, proposal)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """What was decided; a random pick of what no trial before was asked for."""
        index = trial.system_attrs.get(_PROPOSAL, {}).get(param_name)
        if index is not None and index < count_of(param_name, param_distribution):
            return value_of(param_distribution, index)
        return super().sample_independent(study, trial, param_name, param_distribution)


class Evolution(_Proposing):
    """Aging evolution: children of the best of a few of the most recent trials, which die of age.

    Real et al. 2018, arXiv:1802.01548, with uniform crossover beside mutation. Trials that break
    a constraint (`trial.set_constraint`) lose tournaments against those that do not, among
    themselves to those that break it less, as of Liberis et al. 2020 (µNAS, arXiv:2010.14246), and
    leave the population first. A child that was tried already is changed further.

    Args:
        seed: of all random numbers.
        population: how many of the most recent finished trials may have children; as many are
            random at first.
        tournament: how many of them each parent is the best of.
        crossover: the share of children that have two parents, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> study = optuna.create_study(direction="maximize", sampler=Evolution(population=4))
        >>> study.optimize(lambda t: -abs(t.suggest_int("x", 0, 9) - 7), n_trials=30)
        >>> study.best_params
        {'x': 7}
    """

    def __init__(
        self, seed: int = 0, population: int = 12, tournament: int = 6, crossover: float = 0.5
    ):
        super().__init__(seed)
        check(is_whole(population, 2), "population", "a whole number, 2 or more", population)
        fits = is_whole(tournament) and tournament <= population
        check(fits, "tournament", f"a whole number in [1, {population}]", tournament)
        check(0 <= crossover <= 1, "crossover", "in [0, 1]", crossover)
        self.population, self.tournament, self.crossover = population, tournament, crossover

    def _proposal(self, study: Study, finished: list[FrozenTrial], trial: FrozenTrial) -> Picks:
        if len(finished) < self.population:
            return {}
        return self._child(finished, _sign(study), self._random(trial))

    def _child(
        self, finished: Sequence[FrozenTrial], sign: int, random: np.random.Generator
    ) -> Picks:
        living = self._living(finished)

        def parent() -> FrozenTrial:
            few = random.choice(len(living), min(self.tournament, len(living)), replace=False)
            return max((living[i] for i in few), key=lambda trial: _fitness(trial, sign))

        first = parent()
        kinds, child = dict(first.distributions), indices_of(first)
        if random.random() < self.crossover:
            second = parent()
            other = indices_of(second)
            kinds = {**second.distributions, **kinds}
            swapped = {name for name in other if random.random() < 0.5}
            child = {**other, **child, **{name: other[name] for name in swapped}}
            child = {name: min(i, count_of(name, kinds[name]) - 1) for name, i in child.items()}
        tried = [indices_of(trial) for trial in finished]
        for _ in range(_ATTEMPTS):
            _mutate(child, kinds, random)
            if not _is_tried(child, tried):
                break
        return child

    def _living(self, finished: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The population: the most recent that hold all constraints, then the others."""
        holding = [trial for trial in finished if _holds(trial)][-self.population :]
        others = [trial for trial in finished if not _holds(trial)]
        return holding + others[max(0, len(others) - self.population + len(holding)) :]


class PolicyGradient(_Proposing):
    """REINFORCE: a softmax over the options of each choice learns which ones score more than usual.

    Williams 1992; of architectures Zoph & Le 2016, arXiv:1611.01578, here with logits in place of
    their recurrent network. Rewards are the scores, compared with a moving average and in parts of
    their usual spread; what breaks a constraint is a penalty, as of Tan et al. 2018 (MnasNet,
    arXiv:1807.11626). What was tried already is drawn anew.

    Args:
        seed: of all random numbers.
        learning_rate: of the logits.
        decay: of the moving averages of the reward and of its spread, in [0, 1).
        entropy: weight of the entropy of the policy, which keeps it exploring.
        penalty: for what breaks constraints by 1 or more, in spreads of the reward; in parts of it
            for less. What is given up for another reason gets all of it.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> study = optuna.create_study(direction="maximize", sampler=PolicyGradient())
        >>> study.optimize(lambda t: -abs(t.suggest_int("x", 0, 9) - 7), n_trials=60)
        >>> study.best_params
        {'x': 7}
    """

    def __init__(
        self,
        seed: int = 0,
        learning_rate: float = 0.3,
        decay: float = 0.9,
        entropy: float = 0.02,
        penalty: float = 1.0,
    ):
        super().__init__(seed)
        check(0 < learning_rate < math.inf, "learning_rate", "a number above 0", learning_rate)
        check(0 <= decay < 1, "decay", "in [0, 1)", decay)
        check(0 <= entropy < math.inf, "entropy", "a number, 0 or more", entropy)
        check(0 <= penalty < math.inf, "penalty", "a number, 0 or more", penalty)
        self.learning_rate, self.decay = learning_rate, decay
        self.entropy, self.penalty = entropy, penalty
        self._replayed: tuple[list[int], _Policy] = [], _Policy()

    def _proposal(self, study: Study, finished: list[FrozenTrial], trial: FrozenTrial) -> Picks:
        logits, random = self._policy(study).logits, self._random(trial)
        tried, picks = [indices_of(each) for each in finished], Picks()
        for attempt in range(_ATTEMPTS):
            # A policy that is sure of what it tried already is made less and less so.
            odds = {name: _softmax(x / (1 + attempt / 4)) for (name, _), x in logits.items()}
            picks = {name: int(random.choice(len(p), p=p)) for name, p in odds.items()}
            if not _is_tried(picks, tried):
                break
        return picks

    def probabilities(self, study: Study) -> dict[str, np.ndarray]:
        """{name of a choice: probabilities of its options}, as the finished trials taught."""
        return {name: _softmax(x) for (name, _), x in self._policy(study).logits.items()}

    def _policy(self, study: Study) -> _Policy:
        """The policy after all finished trials, in the order of their numbers."""
        finished = study.get_trials(deepcopy=False, states=_FINISHED)
        numbers = [trial.number for trial in finished]
        done, policy = self._replayed
        # Only saves time: a trial that finished late, or another study, begins anew.
        if done != numbers[: len(done)] or policy.study != study.study_name:
            done, policy = [], _Policy(study=study.study_name)
        for trial in finished[len(done) :]:
            self._learn(policy, trial, _sign(study))
        self._replayed = numbers, policy
        return policy

    def _learn(self, policy: _Policy, trial: FrozenTrial, sign: int) -> None:
        advantage = self._advantage(policy, trial, sign)
        for name, index in indices_of(trial).items():
            logits = policy.logits_of(name, count_of(name, trial.distributions[name]))
            odds = _softmax(logits)
            plain = -odds * np.log(odds)
            step = -advantage * odds + self.entropy * (plain - odds * plain.sum())
            step[index] += advantage
            logits += self.learning_rate * step

    def _advantage(self, policy: _Policy, trial: FrozenTrial, sign: int) -> float:
        """By how many usual spreads a trial is better than usual, and lets that be usual."""
        # What breaks a limit far is no worse news than what misses it by as much again.
        fault = self.penalty * min(1.0, violation(trial))
        value = _score(trial, sign)
        if value is None:  # given up before it was scored
            return -(fault or self.penalty)
        mean = value if policy.mean is None else policy.mean
        growth = value - mean
        policy.spread = self.decay * policy.spread + (1 - self.decay) * growth**2
        policy.mean = mean + (1 - self.decay) * growth
        usual = math.sqrt(policy.spread)
        better = growth / usual if usual > 0 else 0.0
        return max(-_MOST, min(_MOST, better)) - fault


class _Policy:
    """What PolicyGradient has learned: logits by (name, number of options), and usual rewards."""

    def __init__(self, study: str | None = None):
        self.study, self.spread = study, 0.0
        self.mean: float | None = None
        self.logits: dict[tuple[str, int], np.ndarray] = {}

    def logits_of(self, name: str, count: int) -> np.ndarray:
        return self.logits.setdefault((name, count), np.zeros(count))


SAMPLERS = {
    "random": RandomChoices,
    "tpe": optuna.samplers.TPESampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "evolution": Evolution,
    "reinforcement": PolicyGradient,
}


def sampler(name: str, seed: int = 0, **settings: Any) -> BaseSampler:
    """The engine of a search, by its name.

    Args:
        name: "random", "evolution" (`Evolution`), "reinforcement" (`PolicyGradient`), or Optuna's
            own "tpe" (Bergstra et al. 2011) and "nsga2" (Deb et al. 2002), of which the random
            numbers begin anew where a study is resumed: give another seed then.
        seed: of all random numbers.
        **settings: further arguments of the sampler's class.

    Returns:
        A sampler of Optuna.

    Raises:
        ValueError: the name is unknown, or a setting out of its range.
        TypeError: the sampler has no such setting.

    Example:
        >>> sampler("evolution", seed=1, population=16).population
        16
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown engine {name!r}; {expected_one_of(str(name), SAMPLERS)}")
    return SAMPLERS[name](seed=seed, **settings)


def violation(trial: FrozenTrial) -> float:
    """The sum of what a trial breaks its constraints by; 0 if it holds all."""
    return math.fsum(max(0.0, value) for value in trial.constraints.values())


def count_of(name: str, distribution: BaseDistribution) -> int:
    """How many options a choice has."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    raise TypeError(
        f"'{name}' must be a choice of some options; received {distribution}. List the values to "
        "choose from: choose(name, options)."
    )


def indices_of(trial: FrozenTrial) -> dict[str, int]:
    """{name of a choice: index of what was picked}."""
    return {n: _index_of(trial.distributions[n], value) for n, value in trial.params.items()}


def _index_of(distribution: BaseDistribution, value: Any) -> int:
    inner = int(distribution.to_internal_repr(value))
    if isinstance(distribution, IntDistribution):
        return (inner - distribution.low) // distribution.step
    return inner


def value_of(distribution: BaseDistribution, index: int) -> Any:
    """The pick that is the option of an index."""
    if isinstance(distribution, IntDistribution):
        return distribution.low + index * distribution.step
    return distribution.to_external_repr(index)


def _is_tried(picks: Picks, tried: Sequence[Picks]) -> bool:
    """Whether these picks were tried, as far as they were asked for."""
    return any(each.items() <= picks.items() for each in tried)


def _mutate(
    child: dict[str, int], kinds: Mapping[str, BaseDistribution], random: np.random.Generator
) -> None:
    """Changes one pick to another option."""
    names = [name for name in child if count_of(name, kinds[name]) > 1]
    if not names:
        return
    name = names[int(random.integers(len(names)))]
    others = [i for i in range(count_of(name, kinds[name])) if i != child[name]]
    child[name] = others[int(random.integers(len(others)))]


def _score(trial: FrozenTrial, sign: int) -> float | None:
    """What is to be large; None of a trial that was given up before it was scored."""
    value = trial.value if trial.state == TrialState.COMPLETE else None
    return None if value is None else sign * value


def _holds(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and violation(trial) == 0


def _fitness(trial: FrozenTrial, sign: int) -> tuple[bool, float, float]:
    """What is compared in tournaments: constraints first."""
    score = _score(trial, sign)
    return _holds(trial), -violation(trial), -math.inf if score is None else score


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max())
    odds = np.maximum(odds / odds.sum(), 1e-9)
    return odds / odds.sum()


def _sign(study: Study) -> int:
    return 1 if study.direction == StudyDirection.MAXIMIZE else -1
