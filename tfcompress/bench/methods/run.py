"""One method on one task with one seed: what it starts from, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.bench.methods.cost import Meter, Plain, together
from tfcompress.bench.tasks.task import Data, Task, Training
from tfcompress.dispatch import is_legacy
from tfcompress.files import models, writing
from tfcompress.legacy import import_tf_keras

if TYPE_CHECKING:
    import keras

# How far outputs of the two kits may lie apart, of the largest output.
_TOLERANCE = 1e-4


def train_float(task: Task, data: Data, training: Training, seed: int) -> keras.Model:
    """The float model that all methods start from."""
    import keras

    keras.utils.set_random_seed(seed)
    model = _drawn_anew(task.build(keras, data.classes), seed)
    keras.utils.set_random_seed(seed)
    _fit(model, task, data, training, seed, [])
    return model


def _drawn_anew(model: keras.Model, seed: int) -> keras.Model:
    """The model with initial weights by the seed: builders may set seeds of their own."""
    import keras

    keras.utils.set_random_seed(seed)
    return keras.models.clone_model(model)


@dataclasses.dataclass(kw_only=True)
class Run:
    """What a method is given, and where it leaves what it makes.

    Attributes:
        task, data: which one.
        seed: of all that is random.
        tuning: the fine-tuning, the same for all methods.
        checkpoint: the float model, a .keras file.
        folder: for this run alone; the file goes there.
        metered: whether what a step costs is measured, which takes as long as training itself.
        kept: the model of Keras or tf_keras whose outputs the file should give.
        convert_seconds: how long it took to write the file; None before.
        flash: bytes of the file with weights that TFLite Micro decodes; None without one.
    """

    task: Task
    data: Data
    seed: int
    tuning: Training
    checkpoint: Path
    folder: Path
    metered: bool = True
    kept: Any = None
    convert_seconds: float | None = None
    flash: int | None = None
    _costs: list[dict[str, float] | None] = dataclasses.field(default_factory=list)
    _plain: dict[str, Any] = dataclasses.field(default_factory=dict)
    _twin_is_equal: bool = False

    @property
    def path(self) -> Path:
        """Of the .tflite file that the method ends with."""
        return self.folder / "model.tflite"

    @property
    def model(self) -> keras.Model:
        """The float model of Keras 3, a fresh copy each time."""
        import keras

        keras.utils.set_random_seed(self.seed)
        model = models.load_model(self.checkpoint)
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"'{self.checkpoint}' is no Keras model; expected a .keras file. Train it anew."
            )
        return model

    @property
    def twin(self) -> Any:
        """The float model in tf_keras, a fresh copy each time."""
        tf_keras, model = import_tf_keras(), self.model
        tf_keras.utils.set_random_seed(self.seed)
        twin = self.task.build(tf_keras, self.data.classes)
        twin.set_weights(model.get_weights())
        if self._twin_is_equal:
            return twin
        x = self.data.calibration(32)
        ours, theirs = (each.predict(x, verbose=0) for each in (model, twin))
        apart, largest = np.abs(ours - theirs).max(), np.abs(ours).max()
        if not apart <= _TOLERANCE * max(1.0, largest):
            raise ValueError(
                f"the tf_keras model of task '{self.task.name}' gives outputs that differ by up "
                f"to {apart:.3g} from Keras's; expected equal ones. Mend the task's `build`."
            )
        self._twin_is_equal = True
        return twin

    @property
    def calibration(self) -> np.ndarray:
        """Samples for post-training quantization, the same for all methods."""
        return self.data.calibration()

    @property
    def cost(self) -> dict[str, float] | None:
        """The cost of a training step, over all calls of `fit`; None without one."""
        found = [each for each in self._costs if each is not None]
        return together(found) if len(found) == len(self._costs) else None

    def fit(
        self,
        model: Any,
        callbacks: Iterable[Any] = (),
        steps: int | None = None,
        rate: float = 1.0,
    ) -> None:
        """Compiles and trains a model as the task says, and may measure what a step costs.

        Args:
            rate: share of the task's learning rate.
        """
        steps = self.tuning.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"a training takes 1 step or more; received {steps}.")
        rate *= self.tuning.rate
        training = dataclasses.replace(self.tuning, steps=steps, rate=rate)
        kit = kit_of(model)
        # Stages see the data in orders of their own, the first one in that of all methods.
        seed = self.seed + 1000 * len(self._costs)
        # Before the plain model is traced, as new seeds have TensorFlow prepare functions anew.
        kit.utils.set_random_seed(seed)
        if not self.metered:
            _fit(model, self.task, self.data, training, seed, [*callbacks])
            self._costs.append(None)
            return
        meter = Meter(kit, self._plains(kit), steps)
        try:
            _fit(model, self.task, self.data, training, seed, [*callbacks, meter.callback()])
        finally:
            meter.close()
        self._costs.append(meter.result())

    def _plains(self, kit: Any) -> dict[str, Plain]:
        """The float model of a kit, and of Keras 3, ready to train beside another one."""
        import keras

        batches = self.data.batches(self.tuning.batch, -1)
        kits = {each.__name__: each for each in (kit, keras)}
        return {name: Plain(each, self._plain_model(each), batches) for name, each in kits.items()}

    def _plain_model(self, kit: Any) -> Any:
        """The float model of a kit that steps are compared with, compiled."""
        if kit.__name__ not in self._plain:
            import keras

            from tfcompress.bench.models import compile_for

            model, tuning = self.model if kit is keras else self.twin, self.tuning
            compile_for(model, tuning.steps, tuning.rate, self.task.loss, kit)
            self._plain[kit.__name__] = model
        return self._plain[kit.__name__]

    def convert(self, model: Any, **settings: Any) -> None:
        """Writes the file by `tfcompress.convert`, whose arguments are given as they are."""
        from tfcompress.conversion.convert import convert

        start = time.perf_counter()
        convert(model, self.path, **settings)
        self.convert_seconds = time.perf_counter() - start
        self.kept = model

    def convert_coded(self, model: Any) -> None:
        """Writes the file of a model of few bits, and measures it with weights in codes."""
        from tfcompress.conversion.convert import convert

        micro = self.folder / "micro.tflite"
        convert(model, micro, io_dtype="int8", target="microcontroller", compressed_weights=True)
        self.flash = micro.stat().st_size
        self.convert(model, io_dtype="int8")

    def write(self, make: Callable[[], bytes], kept: Any) -> None:
        """Writes the file with what a peer makes."""
        start = time.perf_counter()
        content = bytes(make())
        self.convert_seconds = time.perf_counter() - start
        writing.atomic_write(self.path, content)
        self.kept = kept


def drop_nothing(model: Any) -> None:
    """Takes the dropout from a model that has lost weights or values, ours or a peer's.

    It fits the data less than before, not too well: keywords with 80% zeros gained 3 points.
    """
    for layer in model.layers:
        if hasattr(layer, "rate"):
            layer.rate = 0.0


def kit_of(model: Any) -> Any:
    """The module that a model is of: `keras` or `tf_keras`."""
    import keras

    return import_tf_keras() if is_legacy(model) else keras


def _fit(model: Any, task: Task, data: Data, training: Training, seed: int, callbacks) -> None:
    from tfcompress.bench.models import compile_for

    compile_for(model, training.steps, training.rate, task.loss, kit_of(model))
    model.fit(
        data.batches(training.batch, seed),
        steps_per_epoch=training.steps,
        epochs=1,
        verbose=0,
        callbacks=callbacks,
    )


Make = Callable[["Run"], None]
OURS, TFMOT, CONVERTER, AEQ = "tfcompress", "TFMOT", "TFLiteConverter", "ai-edge-quantizer"


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to make a file of a float model.

    Attributes:
        name: for the command line; unique.
        title: for people, without who it is by.
        who: `OURS` or a peer.
        make: carries it out: calls `run.fit` and ends with `run.convert` or `run.write`.
        family: methods of one family do the same: what is ours is compared with the peers in it.
        short: whether the short form of the benchmark has it.
        streams: whether it makes a file over the next frames, for tasks whose data are streams.
    """

    name: str
    title: str
    who: str
    make: Make
    family: str
    short: bool = False
    streams: bool = False

    def suits(self, task: Task) -> bool:
        """Whether it is for a task."""
        return task.streams or not self.streams
