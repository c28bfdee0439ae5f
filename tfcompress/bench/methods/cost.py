"""What a training step costs, as a ratio to a step of the plain float model in turns with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

# How often the training is halted for turns of plain models, and which share of its own they take.
TURNS, SHARE = 8, 2

# Steps at the start of a turn that do not count: TensorFlow traces a model in its first one, and
# whoever was before fills pipelines up while they run.
SKIPPED = 3
_ENDLESS = 10**9
FIGURES = "steps step_cpu_ms plain_step_cpu_ms step_cpu_ratio keras_step_cpu_ratio".split()


class Plain:
    """A plain float model in one `fit` of its own, which halts whenever its turn is over.

    A new `fit` for each turn would fill caches and pipelines each time, as the training that it is
    compared with does not, and cost up to an eighth more.

    Args:
        kit: `keras` or `tf_keras`, which the model is of.
        model: compiled; it has weights and an optimizer of its own.
        batches: endless.
    """

    def __init__(self, kit: Any, model: Any, batches: Any):
        self._kit, self._model, self._batches = kit, model, batches
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        self._done, self._steps, self._start = 0, 0, 0.0
        self._is_over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)

    def turn(self, steps: int) -> float:
        """Trains for some steps, after `SKIPPED` others, while the caller waits."""
        self._done, self._steps = 0, steps
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error
        return (time.process_time() - self._start) / steps

    def close(self) -> None:
        """Ends the training."""
        self._is_over = True
        if self._thread.is_alive():
            self._go.release()
            self._thread.join()

    def _train(self) -> None:
        plain, base = self, self._kit.callbacks.Callback

        class Halts(base):  # type: ignore[misc, valid-type]
            def on_train_batch_end(self, batch, logs=None):
                plain._after_step()

        self._go.acquire()
        try:
            if not self._is_over:
                self._model.fit(
                    self._batches, steps_per_epoch=_ENDLESS, verbose=0, callbacks=[Halts()]
                )
        except BaseException as error:
            self._error = error
        finally:
            self._halted.release()

    def _after_step(self) -> None:
        self._done += 1
        if self._done == SKIPPED:
            self._start = time.process_time()
        if self._done < SKIPPED + self._steps:
            return
        self._halted.release()
        self._go.acquire()
        self._model.stop_training = self._is_over


class Meter:
    """Interrupts a `fit` to train plain models for a few steps, and takes the CPU times of all.

    The plain models have weights, optimizers and batches of their own, so that the training goes on
    as if there had been no interruption.

    Args:
        kit: `keras` or `tf_keras`, which the model that is measured is of.
        plains: the float model in this kit, and in Keras 3, by the names of the kits.
        steps: of the training that is measured.
    """

    def __init__(self, kit: Any, plains: Mapping[str, Plain], steps: int):
        self._kit, self._plains, self._steps = kit, plains, steps
        self._turn = max(2 * SKIPPED, steps // TURNS)
        self._done = self._turns = 0
        self._start = self._spent = 0.0
        self._plain_spent = dict.fromkeys(plains, 0.0)
        for plain in plains.values():
            plain.turn(1)

    def callback(self) -> Any:
        """A callback for the `fit`; the last one, so that the time of the others counts."""
        meter, base = self, self._kit.callbacks.Callback

        class Turns(base):  # type: ignore[misc, valid-type]
            def on_train_batch_end(self, batch, logs=None):
                meter._after_step()

        return Turns()

    def _after_step(self) -> None:
        self._done += 1
        if self._done % self._turn == SKIPPED:
            self._start = time.process_time()
        if self._done % self._turn:
            return
        self._spent += time.process_time() - self._start
        self._turns += 1
        for name, plain in self._plains.items():
            self._plain_spent[name] += plain.turn(max(SKIPPED, self._turn // SHARE))

    def result(self) -> dict[str, float] | None:
        """The cost of a step, the mean of those that count: some do more than others.

        Returns steps, step_cpu_ms, plain_step_cpu_ms and step_cpu_ratio, which are to the plain
        model of the same kit, and keras_step_cpu_ratio, to that of Keras 3; None if the training
        was too short for a turn.
        """
        if not self._turns:
            return None
        step = self._spent / (self._turns * (self._turn - SKIPPED))
        plain, of_keras = (
            self._plain_spent[name] / self._turns for name in (self._kit.__name__, "keras")
        )
        return {
            "steps": self._steps,
            "step_cpu_ms": 1000 * step,
            "plain_step_cpu_ms": 1000 * plain,
            "step_cpu_ratio": step / plain,
            "keras_step_cpu_ratio": step / of_keras,
        }

    def close(self) -> None:
        """Ends the trainings of the plain models."""
        for plain in self._plains.values():
            plain.close()


def together(costs: list[dict[str, float]]) -> dict[str, float] | None:
    """The cost of a training in stages: means, weighted by the steps of each.

    Returns the same for all; None if there is none.
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
