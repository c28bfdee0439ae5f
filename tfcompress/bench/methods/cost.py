"""What a training step costs, as a ratio to a step of the plain float model in turns with it."""

from __future__ import annotations

import statistics
import time
from typing import Any

# How often the training is halted for a turn of the plain model, and how long the turn is.
TURNS, SHARE = 10, 8
# Steps of a plain turn that do not count: they find cold caches.
WARM_UP = 2


class Meter:
    """Interrupts a `fit` to train the plain model for a few steps, and takes both CPU times.

    The plain model has weights, an optimizer and batches of its own, so that the training goes on
    as if there had been no interruption.

    Args:
        kit: `keras` or `tf_keras`, which both models are of.
        plain: the float model, compiled.
        batches: endless, for it alone.
        steps: of the training that is measured.
    """

    def __init__(self, kit: Any, plain: Any, batches: Any, steps: int):
        self._kit, self._plain, self._batches = kit, plain, batches
        self._steps = steps
        self._turn = max(2, steps // TURNS)
        self._pairs: list[tuple[float, float]] = []
        self._done, self._start = 0, 0.0
        self._plain_turn(1)  # traces

    def callback(self) -> Any:
        """A callback for the `fit`; the last one, so that the time of the others counts."""
        meter, base = self, self._kit.callbacks.Callback

        class Turns(base):  # type: ignore[misc, valid-type]
            def on_train_begin(self, logs=None):
                meter._start = time.process_time()

            def on_train_batch_end(self, batch, logs=None):
                meter._after_step()

        return Turns()

    def _after_step(self) -> None:
        self._done += 1
        if self._done % self._turn:
            return
        spent = (time.process_time() - self._start) / self._turn
        self._pairs.append((spent, self._plain_turn(max(2, self._turn // SHARE))))
        self._start = time.process_time()

    def _plain_turn(self, steps: int) -> float:
        """Trains the plain model; returns the CPU seconds of a step."""
        found: list[float] = []
        base = self._kit.callbacks.Callback

        class Clock(base):  # type: ignore[misc, valid-type]
            def on_train_batch_end(self, batch, logs=None):
                found.append(time.process_time())

        count = WARM_UP + steps
        self._plain.fit(
            self._batches, steps_per_epoch=count, epochs=1, verbose=0, callbacks=[Clock()]
        )
        return (found[-1] - found[WARM_UP - 1]) / steps

    def result(self) -> dict[str, float] | None:
        """The cost; the first turn is left out, in which the model is traced.

        Returns:
            steps, step_cpu_ms, plain_step_cpu_ms (medians over turns) and step_cpu_ratio (the
            median of their ratios); None if the training was too short for two turns.
        """
        pairs = self._pairs[1:]
        if not pairs:
            return None
        return {
            "steps": self._steps,
            "step_cpu_ms": 1000 * statistics.median(a for a, _ in pairs),
            "plain_step_cpu_ms": 1000 * statistics.median(b for _, b in pairs),
            "step_cpu_ratio": statistics.median(a / b for a, b in pairs),
        }


def together(costs: list[dict[str, float]]) -> dict[str, float] | None:
    """The cost of a training in stages: means, weighted by the steps of each.

    Args:
        costs: of each stage, as of `Meter.result`.

    Returns:
        The same for all; None if there is none.

    Example:
        >>> a = {"steps": 10, "step_cpu_ratio": 1.0}
        >>> together([a, {"steps": 30, "step_cpu_ratio": 2.0}])
        {'steps': 40, 'step_cpu_ratio': 1.75}
    """
    if not costs:
        return None
    steps = sum(cost["steps"] for cost in costs)
    means = {
        key: sum(cost["steps"] * cost[key] for cost in costs) / steps
        for key in costs[0]
        if key != "steps"
    }
    return {"steps": steps, **means}
