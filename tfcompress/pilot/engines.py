"""What chooses the next candidates, by name."""

from __future__ import annotations

from typing import Any

ENGINES = ("tpe", "nsga2", "random")


def sampler(engine: str, seed: int) -> Any:
    """A sampler of Optuna."""
    from optuna import samplers

    if engine == "nsga2":
        return samplers.NSGAIISampler(population_size=20, seed=seed)
    if engine == "random":
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(
        seed=seed,
        multivariate=True,  # Options hang together.
        constant_liar=True,  # Others are trying some meanwhile.
        n_startup_trials=5,
    )
