"""What chooses the next candidates, by name."""

from __future__ import annotations

from typing import Any

# Those of `tfcompress.search.samplers`, which need Optuna; a name is checked without it.
ENGINES = ("tpe", "nsga2", "evolution", "reinforcement", "random")
# For trials that take minutes: few before the engine knows something, and few to choose from.
_SETTINGS: dict[str, dict[str, Any]] = {
    # Options hang together, and other processes are trying some meanwhile.
    "tpe": {"multivariate": True, "constant_liar": True, "n_startup_trials": 5},
    "nsga2": {"population_size": 20},
    "evolution": {"population": 12, "tournament": 4},
}


def engine_of(name: str, seed: int) -> Any:
    """A sampler of Optuna."""
    from tfcompress.search.samplers import sampler

    return sampler(name, seed, **_SETTINGS.get(name, {}))
