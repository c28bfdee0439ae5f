"""born_again: students like their teachers, one generation after the other."""

from collections.abc import Callable
from typing import Any

import keras

from tfcompress.distillation.distiller import Distiller


def born_again(
    build: Callable[[], keras.Model],
    train: Callable[[keras.Model], Any],
    generations: int = 2,
    **settings: Any,
) -> list[keras.Model]:
    """Trains a model, then others like it, each from the one before (born-again networks).

    Furlanello et al. 2018, arXiv:1805.04770.

    Args:
        build: makes a new, built `keras.Model` with weights of its own at each call.
        train: compiles and fits what it is given: first a model, then a `Distiller` of each next
            one, whose optimizer must be a new one.
        generations: how many are taught by another, 1 or more.
        **settings: arguments of `Distiller` such as alpha, temperature and losses.

    Returns:
        All models, the one without teacher first; their mean is often better than each.

    Raises:
        ValueError: if `generations` is less than 1, or `build` gives the same model again.

    Example:
        >>> def train(model):  # doctest: +SKIP
        ...     model.compile("adam", "sparse_categorical_crossentropy")
        ...     model.fit(x, y, epochs=10)
        >>> born_again(make_model, train, generations=3)[-1]  # doctest: +SKIP
    """
    if isinstance(generations, bool) or not isinstance(generations, int) or generations < 1:
        raise ValueError(
            f"generations must be a whole number of 1 or more; received {generations!r}."
        )
    models = [build()]
    train(models[0])
    for _ in range(generations):
        student = build()
        if any(student is model for model in models):
            raise ValueError(
                f"build gave the model '{student.name}' twice; expected a new one at each call."
            )
        train(Distiller(student, models[-1], **settings))
        models.append(student)
    return models
