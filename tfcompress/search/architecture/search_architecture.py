"""search_architecture: candidates are built, held to a budget, trained shortly and judged."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.errors import check, expected_one_of, is_whole
from tfcompress.search.architecture.found import (
    BELOW_PROXY,
    COSTS,
    DIVERGED,
    OVER_BUDGET,
    REPEATED,
    TRAINED,
    ArchitectureSearch,
    Candidate,
    Costs,
    costs_of,
)
from tfcompress.search.architecture.proxies import PROXIES
from tfcompress.search.architecture.space import ArchitectureSpace
from tfcompress.search.architecture.supernet import train_supernet
from tfcompress.search.architecture.training import Training, compile_settings
from tfcompress.search.choices import Chooser, of_picks, of_trial

Space = Callable[[Chooser], keras.Model]

# How many candidates are asked for, for each that is trained, before a search gives up.
_ASKED = 50
# Before so many candidates the proxy knows too little to turn one down.
_FIRST = 4
_STUDY = "tfcompress-architecture"
# The engines whose candidates share one training.
_SHARING = ("supernet", "gradient")


def search_architecture(
    space: Space | keras.Model,
    data: tuple[Any, Any],
    *,
    engine: Any = "evolution",
    trials: int = 50,
    budget: Mapping[str, float] | None = None,
    epochs: int = 3,
    validation: float | tuple[Any, Any] = 0.2,
    compile: Mapping[str, Any] | None = None,
    evaluate: Callable[[keras.Model], float] | None = None,
    proxy: str | None = None,
    proxy_share: float = 0.5,
    supernet_epochs: int = 20,
    batch_size: int = 32,
    seed: int = 0,
    storage: Any = None,
    progress: Callable[[int, int], Any] | None = None,
) -> ArchitectureSearch:
    """Searches for the architecture that scores best after a short training, within a budget.

    Candidates that cost more than the budget are never trained, nor is one trained twice. Train
    the best one on afterwards: scores after a few epochs order architectures, no more.

    Args:
        space: a built Keras 3 model, of which `ArchitectureSpace.of` makes a space, such a space,
            or a function `build(choose) -> keras.Model`, where `choose(name, options)` gives one
            of the options.
        data: (x, y) arrays to train on; the model must have one input and one output.
        engine: "random", "tpe", "nsga2", "evolution", "reinforcement", see
            `tfcompress.search.samplers`, or a sampler of Optuna. "supernet" trains the model once
            so that candidates of less depth, width and kernel size share its weights (SPOS,
            arXiv:1904.00420), and lets evolution choose among these without training them;
            "gradient" learns the odds of the options in such a training (FBNet, arXiv:1812.03443),
            and draws candidates by these.
        trials: how many candidates are trained; those of a study that is resumed count.
        budget: the most that a candidate may cost, any of "macs", "params", "peak_memory" (bytes of
            int8 activations) and "flash" (bytes of int8 weights, about).
        epochs: of each training.
        validation: the share of `data` that is held out to judge by, or (x, y) arrays.
        compile: arguments of `model.compile`; by default those of the model, or of what the
            function builds. XLA is off unless they say jit_compile.
        evaluate: a function f(model) -> float, higher = better, that judges instead of the first
            metric, or of the loss where there is none.
        proxy: "synflow", "gradient_norm", "naswot", "macs" or "params": a candidate is trained
            only if it is among the better ones of those that it was asked of so far.
        proxy_share: which share of the candidates the proxy lets pass, in (0, 1].
        supernet_epochs: of the training that all candidates of "supernet" or "gradient" share.
        batch_size: of training.
        seed: of the engine, the split and the trainings; Keras's global seed is set.
        storage: an Optuna storage or its URL, such as "sqlite:///search.db", with which a search
            that was stopped goes on; None keeps nothing.
        progress: called as `progress(done, total)` after each candidate that was trained.

    Returns:
        An `ArchitectureSearch` with the best model, all candidates, `curve`, `front()`, `plot()`.

    Raises:
        ImportError: Optuna is not installed.
        TypeError: the space is neither a model nor a function, or it makes no model.
        ValueError: an argument is out of its range, nothing is compiled, the study was begun with
            other settings, or no candidate is within the budget.

    Example:
        >>> found = search_architecture(
        ...     model, (x, y), budget={"macs": 2e6, "peak_memory": 64_000}
        ... )  # doctest: +SKIP
        >>> found.model.fit(x, y, epochs=30)  # doctest: +SKIP
    """
    check(is_whole(trials), "trials", "a whole number, 1 or more", trials)
    limits = _checked_budget(budget or {})
    if proxy is not None and proxy not in PROXIES:
        raise ValueError(f"unknown proxy {proxy!r}; {expected_one_of(str(proxy), PROXIES)}")
    check(0 < proxy_share <= 1, "proxy_share", "in (0, 1]", proxy_share)
    training = Training.of(
        data, validation, compile_settings(space, compile), evaluate, epochs, batch_size, seed
    )
    if not callable(space):
        raise TypeError(
            "space must be a keras.Model or a function build(choose) -> keras.Model; received "
            f"{space!r}."
        )
    settings = training.settings() | {"budget": limits, "proxy": proxy}
    name = engine if isinstance(engine, str) else type(engine).__name__
    if name in _SHARING:
        engine, settings["supernet_epochs"] = "evolution", supernet_epochs
    study = _study(engine, seed, storage, settings)
    build = ArchitectureSpace.of(space) if isinstance(space, keras.Model) else space
    if name in _SHARING:
        build, odds = _shared(name, space, training, supernet_epochs, limits)
        training = dataclasses.replace(training, epochs=0)
        study.sampler = study.sampler if odds is None else _drawing(odds, seed)
    search = _Search(build, training, limits, (proxy, proxy_share) if proxy else None, study)
    search.run(trials, progress)
    return search.found(name)


def _shared(
    engine: str, space: Any, training: Training, epochs: int, limits: Mapping[str, float]
) -> tuple[Space, Any]:
    """Candidates that share a training, and the odds of their options, where these were learned."""
    if isinstance(space, ArchitectureSpace):
        space = space.model
    if not isinstance(space, keras.Model):
        raise TypeError(
            f"the engine '{engine}' needs a keras.Model, whose weights are shared; received "
            f"{space!r}. Take 'evolution' for a function that builds."
        )
    if engine == "supernet":
        return train_supernet(space, training, epochs), None
    from tfcompress.search.architecture.gradient import learn_choices  # which needs Optuna

    return learn_choices(space, training, epochs, limits)


def _drawing(odds: Any, seed: int) -> Any:
    from tfcompress.search.architecture.gradient import LearnedChoices

    return LearnedChoices(odds, seed)


def _checked_budget(budget: Mapping[str, Any]) -> dict[str, float]:
    for name, value in budget.items():
        if name not in COSTS:
            raise ValueError(f"unknown budget {name!r}; {expected_one_of(str(name), COSTS)}")
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        check(number and 0 < value < math.inf, f"the budget of {name}", "a number above 0", value)
    return {name: float(value) for name, value in budget.items()}


def _study(engine: Any, seed: int, storage: Any, settings: dict[str, Any]) -> Any:
    # Raises what tells that Optuna is missing, before all that takes long.
    from tfcompress.search import samplers

    optuna = samplers.optuna
    known = optuna.samplers.BaseSampler
    chosen = engine if isinstance(engine, known) else samplers.sampler(engine, seed)
    study = optuna.create_study(
        study_name=_STUDY,
        storage=storage,
        sampler=chosen,
        direction="maximize",
        load_if_exists=True,
    )
    before = study.user_attrs.get("settings")
    if before is not None and before != settings:
        changed = [name for name in settings if before.get(name) != settings[name]]
        raise ValueError(
            f"the study in the storage must have been begun with the same settings; "
            f"{', '.join(changed)} differ: received { {n: settings[n] for n in changed} }, "
            f"expected { {n: before.get(n) for n in changed} }. Take another storage."
        )
    study.set_user_attr("settings", settings)
    if study.trials and isinstance(engine, str) and engine in ("tpe", "nsga2"):
        study.sampler = samplers.sampler(engine, seed + len(study.trials))
    return study


@dataclasses.dataclass
class _Search:
    """One search.

    Attributes:
        build: the space.
        limits: the budget.
        filtering: (name of the proxy, the share that passes), if there is one.
        held: the best model that this process trained, and the number of its trial.
    """

    build: Space
    training: Training
    limits: Mapping[str, float]
    filtering: tuple[str, float] | None
    study: Any
    held: tuple[int, keras.Model] | None = None

    def run(self, trials: int, progress: Callable[[int, int], Any] | None) -> None:
        """Asks the engine until so many candidates are trained."""
        known = {frozenset(c.picks.items()): c for c in self.candidates() if c.verdict != REPEATED}
        done = sum(each.verdict == TRAINED for each in known.values())
        for _ in range(_ASKED * trials):
            if done >= trials:
                return
            trial = self.study.ask()
            candidate = self._judged(trial, known)
            done += candidate.verdict == TRAINED
            if progress is not None and candidate.verdict == TRAINED:
                progress(done, trials)

    def candidates(self) -> list[Candidate]:
        """All that were judged, as the study holds them."""
        told = [(t, t.user_attrs.get("candidate")) for t in self.study.get_trials(deepcopy=False)]
        return [
            Candidate(**{**each, "costs": Costs(**each["costs"]), "number": trial.number})
            for trial, each in told
            if each is not None
        ]

    def found(self, engine: str) -> ArchitectureSearch:
        candidates = tuple(self.candidates())
        trained = [each for each in candidates if each.verdict == TRAINED]
        if not trained:
            self._nothing(candidates)
        best = max(trained, key=lambda each: each.score or 0.0)
        if self.held is None or self.held[0] != best.number:
            self.training.begin()
            _, model = self.training.train(self.build(of_picks(best.picks)))  # of another process
        else:
            model = self.held[1]
        return ArchitectureSearch(model, engine, self.limits, self.training.measure, candidates)

    def _nothing(self, candidates: tuple[Candidate, ...]) -> None:
        over = {
            name: min(getattr(each.costs, name) for each in candidates)
            for name in self.limits
            if candidates
        }
        raise ValueError(
            f"no candidate of {len(candidates)} could be trained and judged. Expected one within "
            f"the budget {dict(self.limits)}; the least found was {over}. Raise the budget, or "
            "widen the space."
        )

    def _judged(self, trial: Any, known: dict[frozenset, Candidate]) -> Candidate:
        """Judges what the engine asks for, and tells it."""
        options: dict[str, Any] = {}
        ask = of_trial(trial)

        def choose(name: str, given: Any) -> Any:
            option = ask(name, given)
            options[name] = option if isinstance(option, (bool, int, float, str)) else str(option)
            return option

        self.training.begin()
        model = self.build(choose)
        if not isinstance(model, keras.Model):
            raise TypeError(f"build(choose) must return a keras.Model; received {model!r}.")
        picks = dict(trial.params)
        before = known.get(frozenset(picks.items()))
        if before is not None:
            candidate = dataclasses.replace(before, number=trial.number, verdict=REPEATED)
        else:
            candidate = self._tried(trial.number, picks, options, model)
            known[frozenset(picks.items())] = candidate
        self._tell(trial, candidate)
        return candidate

    def _tried(self, number: int, picks, options, model: keras.Model) -> Candidate:
        """What becomes of a candidate that is new."""
        costs = costs_of(model)
        candidate = Candidate(number, picks, options, OVER_BUDGET, None, costs)
        if self._excess(costs):
            return candidate
        passes, value = self._proxy(model)
        candidate = dataclasses.replace(candidate, proxy=value, verdict=BELOW_PROXY)
        if not passes:
            return candidate
        score, model = self.training.train(model)
        if not math.isfinite(score):
            return dataclasses.replace(candidate, verdict=DIVERGED)
        scores = [each.score for each in self.candidates() if each.score is not None]
        if score > max(scores, default=-math.inf):
            self.held = number, model
        return dataclasses.replace(candidate, verdict=TRAINED, score=score)

    def _proxy(self, model: keras.Model) -> tuple[bool, float | None]:
        """Whether a candidate is among the better ones so far, and what the proxy gave."""
        if self.filtering is None:
            return True, None
        name, share = self.filtering
        self.training.compiled(model)
        value = PROXIES[name](model, self.training.batch())
        before = [each.proxy for each in self.candidates() if each.proxy is not None]
        least = np.quantile(before, 1 - share) if len(before) >= _FIRST else -math.inf
        return bool(value >= least), float(value)

    def _excess(self, costs: Costs) -> dict[str, float]:
        """By what part each budget that is broken is broken."""
        shares = {name: getattr(costs, name) / limit - 1 for name, limit in self.limits.items()}
        return {name: share for name, share in shares.items() if share > 0}

    def _tell(self, trial: Any, candidate: Candidate) -> None:
        trial.set_user_attr("candidate", dataclasses.asdict(candidate))
        for name, share in self._excess(candidate.costs).items():
            trial.set_constraint(name, share)
        if candidate.score is None:
            from optuna.trial import TrialState

            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, candidate.score)
