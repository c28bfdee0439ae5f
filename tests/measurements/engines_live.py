"""Which engine finds good architectures live, those that share one training among them.

    PYTHONPATH=tests python -m measurements engines_live --seeds 3 --trials 20

All train for equally many epochs, of which one of the supernet counts four, as each of its steps
trains four networks. The best of each search is then trained anew for longer, and judged on samples
that no search has seen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from measurements import parser_of, show_table, spread, tell
from measurements.architecture_search import draw
from measurements.digits_table import digits
from tfcompress.search.architecture.search_architecture import search_architecture
from tfcompress.search.architecture.space import ArchitectureSpace
from tfcompress.search.architecture.supernet import DIMENSIONS
from tfcompress.search.choices import of_picks
from tfcompress.surgery.macs import count

ENGINES = ("random", "evolution", "reinforcement", "supernet", "gradient")
# Their candidates share one training, whose scores are no others'.
SHARING = ("supernet", "gradient")
# Of the MACs of the whole network.
_SHARE = 0.15
_EPOCHS, _LAST_EPOCHS, _TRAININGS = 3, 20, 3
_SANDWICH = 4


def network(seed: int) -> keras.Model:
    """A CNN of two stages with residual blocks, of which engines leave out, narrow and cut."""
    keras.utils.set_random_seed(seed)

    def conv(x, filters: int, strides: int = 1):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    x = inputs = keras.Input((8, 8, 1))
    for filters, strides in ((16, 1), (32, 2)):
        x = layers.ReLU()(conv(x, filters, strides))
        for _ in range(2):
            y = conv(layers.ReLU()(conv(x, filters)), filters)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def _compiled(model: keras.Model) -> keras.Model:
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy",
                  metrics=["accuracy"], jit_compile=False)  # fmt: skip
    return model


def live_search(engine: str, seed: int, trials: int) -> dict[str, Any]:
    """The curve of a search, and what its best architecture is worth."""
    (x, y), test = digits()
    model = _compiled(network(seed))
    space = ArchitectureSpace.of(model, dimensions=DIMENSIONS)
    shared = trials * _EPOCHS // (_SANDWICH if engine == "supernet" else 1)
    start = time.process_time()
    found = search_architecture(
        model if engine in SHARING else space,
        (x, y),
        engine=engine,
        trials=trials,
        budget={"macs": _SHARE * count(model)[0]},
        epochs=_EPOCHS,
        compile=dict(model._compile_config.config),
        supernet_epochs=shared,
        seed=seed,
    )
    seconds = time.process_time() - start
    scores = []
    for number in range(_TRAININGS):
        keras.utils.set_random_seed(100 * seed + number)
        fresh = keras.models.clone_model(space(of_picks(found.best.picks)))
        _compiled(fresh).fit(x, y, epochs=_LAST_EPOCHS, batch_size=32, verbose=0)
        scores.append(fresh.evaluate(*test, verbose=0, return_dict=True)["accuracy"])
    macs = found.best.costs.macs
    return {"curve": found.curve, "test": float(np.mean(scores)), "macs": macs, "seconds": seconds}


def engines_live(arguments: Sequence[str]) -> int:
    """Compares the engines by what their best architectures are worth after a training."""
    counts = {"seeds": (3, "searches of each engine"), "trials": (20, "trainings of each")}
    parser = parser_of(engines_live, counts, with_json=False)
    parser.add_argument("--plot", metavar="PATH", help="an image of the curves")
    options = parser.parse_args(arguments)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES}
    for seed in range(options.seeds):
        for name in ENGINES:
            found[name].append(live_search(name, seed, options.trials))
            tell(f"{name} {seed}: {found[name][-1]}")
    rows = [
        [name, spread(100 * each["test"] for each in every), spread(e["macs"] for e in every),
         spread(e["seconds"] for e in every)] for name, every in found.items()
    ]  # fmt: skip
    columns = {"engine": "", "accuracy": "", "MACs": "", "CPU seconds": ""}
    show_table(f"after {options.trials * _EPOCHS} epochs", columns, rows)
    if options.plot:
        curves = {n: np.array([e["curve"] for e in found[n]]) for n in ENGINES if n not in SHARING}
        draw(curves, options.plot, max(c.max() for c in curves.values()))
    return 0
