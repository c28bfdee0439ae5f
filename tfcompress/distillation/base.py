"""What the models that distill have in common: a `keras.Model` that fits others."""

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops, tree

from tfcompress.dispatch import is_legacy
from tfcompress.distillation.losses import check_temperature, is_number, per_sample
from tfcompress.distillation.plan import Term, as_losses
from tfcompress.distillation.reading import Reader, Tensors, frozen
from tfcompress.errors import check
from tfcompress.graph.inputs import not_built, output_names, require_model
from tfcompress.kinds import DROPOUTS, is_of
from tfcompress.layers.compressed import is_compressed


class DistillingModel(keras.Model):
    """Fits students to labels and to teachers; `call` is that of the first student.

    Args:
        students: the models to train.
        losses: see `Distiller`.
        alpha: share of the labels in the loss, in [0, 1].
        temperature: of soft labels.
        dropout: whether the dropout of the students is on while they learn.
    """

    objects: tuple[str, ...] = ("losses",)  # which arguments are objects of Keras, or lists of them
    whole_epochs = False  # whether each epoch goes through all data though `fit` is given its steps

    def __init__(
        self,
        students: Sequence[keras.Model],
        losses,
        alpha,
        temperature,
        dropout: bool = True,
        **kwargs,
    ):
        for student in students:
            check_model(student, "student")
        check_alpha(alpha)
        check_temperature(temperature)
        super().__init__(**kwargs)
        self._given = losses and as_losses(losses)
        self.alpha, self.temperature = float(alpha), float(temperature)
        self.dropout = dropout
        self._silent = _Silent([] if dropout else students)
        self.supports_masking = True
        self.autocast = False  # which is up to the student
        self._read = _Read()
        self.trackers: list[keras.metrics.Mean] = []

    @property
    def students(self) -> list[keras.Model]:
        """The models that are trained."""
        return [self.student]

    @property
    def frozen_models(self) -> list[keras.Model]:
        """The models that stay as they are."""
        return []

    def finish(self, reader: Reader, names: Sequence[str]) -> None:
        """Ends construction."""
        self._reader = reader
        self.trackers = [keras.metrics.Mean(name=name) for name in names]
        self.built = True

    def call(self, inputs, training=None):
        with self._silent:
            outputs, tensors = self._reader(inputs, training=training)
        self._read.last = outputs, tensors
        return outputs

    def student_tensors(self, x, y_pred, training) -> tuple[Any, Tensors]:
        """Outputs of the first student and what was read of it when it gave them."""
        outputs, tensors = self._read.last
        self._read.last = None, {}
        if y_pred is None or outputs is None or not _same(outputs, y_pred):
            with self._silent:
                return self._reader(x, training=training)
        return outputs, tensors

    def task_loss(self, y, y_pred, sample_weight) -> Any:
        """The loss that `compile` was given, without regularization; 0 if alpha is."""
        if not self.alpha:
            return ops.zeros(())
        if self._compile_loss is None:
            raise ValueError(
                f"compile got no loss for the labels, which alpha={self.alpha:g} gives a share. "
                "Pass one, compile(optimizer, loss), or learn from the teacher alone with alpha=0."
            )
        if y is None:
            raise ValueError(
                f"the data have no labels, which alpha={self.alpha:g} gives a share in the loss. "
                "Pass them, fit(x, y), or learn from the teacher alone with alpha=0."
            )
        return self._compile_loss(y, y_pred, sample_weight)

    def listed_weights(self, sample_weight: Any) -> list[Any]:
        """Weights of samples in the order of the outputs: one for all of them, or one for each."""
        if isinstance(sample_weight, Mapping):
            return [sample_weight.get(name) for name in self.output_names]
        return tree.flatten(sample_weight)

    def fit(self, *args, **kwargs):
        """Trains the students; see `keras.Model.fit`."""
        given = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        x = given.get("x")
        arrays = x is not None and all(hasattr(part, "__array__") for part in tree.flatten(x))
        if arrays and given.get("y") is None and given.get("sample_weight") is not None:
            raise ValueError(
                "sample_weight needs labels y beside it, without which Keras drops it; received "
                "none. Pass any y of the same length: with alpha=0 it is not read."
            )
        return self.run_fit(super().fit, args, kwargs)

    def run_fit(self, fit: Callable, args: tuple, kwargs: dict[str, Any]):
        """Calls `keras.Model.fit`."""
        return fit(*args, **kwargs)

    def penalties(self) -> Any:
        """The sum of what regularizers and `add_loss` of the students and of adapters add."""
        found = [self._aggregate_additional_loss(loss) for loss in self.losses]
        return sum(found) if found else 0.0

    def report(self, x, values: Sequence[Any]) -> None:
        """Updates the reported parts of the loss with those of one batch."""
        count = ops.shape(next(t for t in tree.flatten(x) if t is not None))[0]
        for tracker, value in zip(self.trackers, values, strict=True):
            tracker.update_state(value * replicas(), sample_weight=count)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if y is None:  # metrics of `compile` need labels
            return self._own_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self):
        compiled = self._compile_metrics
        if compiled is None or compiled.built:
            return super().get_metrics_result()
        return self._own_metrics_result()

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that this kind of model has beside those that all have."""
        raise NotImplementedError

    def get_config(self):
        shared = {"losses": self._given, "alpha": self.alpha, "temperature": self.temperature}
        given, serialize = {**self.settings, **shared}, keras.saving.serialize_keras_object
        return {**super().get_config(), **{key: serialize(given[key]) for key in given}}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        load = keras.saving.deserialize_keras_object
        loaded = {key: load(config[key], custom_objects=custom_objects) for key in cls.objects}
        return cls(**{**config, **loaded})

    def _own_metrics_result(self) -> dict[str, Any]:
        own = (metric for metric in self.metrics if metric is not self._compile_metrics)
        return {metric.name: metric.result() for metric in own}

    @property
    def output_names(self) -> list[str]:
        """The names by which the losses of `compile` refer to the outputs."""
        return output_names(self.students[0])

    @property
    def losses(self) -> list[Any]:
        if self._losses_override:  # what JAX computed in the forward pass
            return self._losses_override
        kept = [*self.students, *(x for x in self._layers if x not in self.frozen_models)]
        found = {id(loss): loss for layer in _different(kept) for loss in layer.losses}
        return list(found.values())

    @property
    def trainable_variables(self) -> list[Any]:
        return self._trained(super().trainable_variables)

    @property
    def trainable_weights(self) -> list[Any]:
        return self._trained(super().trainable_weights)

    @property
    def non_trainable_variables(self) -> list[Any]:
        return _without(self.variables, self.trainable_variables)

    @property
    def non_trainable_weights(self) -> list[Any]:
        return _without(self.weights, self.trainable_weights)

    def _trained(self, variables: Sequence[Any]) -> list[Any]:
        return _without(variables, [v for model in self.frozen_models for v in model.variables])


def evaluate_terms(
    terms: Sequence[Term], teachers: Sequence[Tensors], student: Tensors, weights: list[Any]
) -> list[Any]:
    """The values of losses of a batch, from what was read of the teachers and of the student."""
    return [
        evaluate_term(term, teachers[term.teacher][term.theirs], student[term.ours], weights)
        for term in terms
    ]


def evaluate_term(term: Term, teacher: Any, student: Any, weights: list[Any]) -> Any:
    """The value of one loss of a batch, with its factor."""
    theirs, ours = term.adapters
    teacher = frozen(teacher)
    teacher = teacher if theirs is None else theirs(teacher)
    student = student if ours is None else ours(student)
    rank = len(student.shape) - 1 if term.loss.per_position else 1
    weight = _weight_of(term, weights, rank)
    return term.factor * term.loss(teacher, student, weight)


def _weight_of(term: Term, weights: list[Any], rank: int) -> Any:
    """The weights of samples for one loss whose values have `rank` axes; None if there are none.

    Where each output has weights of its own, a loss between layers takes their mean.
    """
    given = [weight for weight in weights if weight is not None]
    if not given:
        return None
    if len(weights) == 1:
        weight = weights[0]
    elif term.output is not None:
        weight = weights[term.output]
    else:
        weight = sum(per_sample(ops.cast(w, "float32")) for w in given) / len(given)
    if weight is None:
        return None
    weight = ops.cast(weight, "float32")
    if rank == 1:
        return per_sample(weight)
    missing = rank - len(weight.shape)
    return ops.reshape(weight, (*ops.shape(weight), *[1] * missing)) if missing > 0 else weight


def check_model(model: Any, whose: str) -> None:
    """Raises unless a student or a teacher can be one."""
    if is_legacy(model):
        raise TypeError(
            f"the {whose} is a model of tf_keras (Keras 2); expected one of Keras 3. Bring it over "
            "with `tfcompress migrate old.h5 new.keras`."
        )
    try:
        require_model(model, floats=whose != "teacher")
    except TypeError as error:
        raise TypeError(f"{whose}: {error}") from None
    if not model.built:
        raise not_built(model)
    if whose == "teacher" and is_compressed(model):
        raise ValueError(
            f"the teacher '{model.name}' comes from compress and could change in training; "
            "expected a plain model. Pass tfcompress.finalize(teacher)."
        )


def check_alpha(alpha: Any) -> None:
    """Raises unless a share is a number from 0 to 1."""
    expected = "a number in [0, 1], the share of the labels in the loss"
    holds = is_number(alpha) and 0 <= alpha <= 1
    check(holds, "alpha", expected, alpha, "0.5 is usual; 0 needs no labels.")


def check_dropout(dropout: Any) -> None:
    """Raises unless it is said whether the dropout of a student is on, or left open."""
    expected = "True, False, or None for the default"
    check(dropout is None or isinstance(dropout, bool), "dropout", expected, dropout)


class _Silent:
    """While it is open, the dropout of some models does nothing; replicas open it in threads."""

    def __init__(self, models: Sequence[keras.Model]):
        self._rates: list[tuple[Any, str, float]] = []
        for layer in (layer for model in models for layer in model._flatten_layers()):
            names = ("rate", "stddev") if is_of(layer, DROPOUTS) else ()
            if hasattr(layer, "get_dropout_mask"):  # cells of recurrent layers
                names = ("dropout", "recurrent_dropout")
            self._rates += [
                (layer, name, rate) for name in names if (rate := getattr(layer, name, 0))
            ]
        self._opened, self._lock = 0, threading.Lock()

    def __enter__(self):
        with self._lock:
            self._opened += 1
            for layer, name, _ in self._rates:
                setattr(layer, name, 0.0)

    def __exit__(self, *error):
        with self._lock:
            self._opened -= 1
            for layer, name, rate in self._rates if not self._opened else ():
                setattr(layer, name, rate)


class _Read(threading.local):
    """What the last forward pass in this thread gave: replicas run in threads of their own."""

    last: tuple[Any, Tensors] = (None, {})


def _same(a: Any, b: Any) -> bool:
    pairs = tree.flatten(a), tree.flatten(b)
    return len(pairs[0]) == len(pairs[1]) and all(x is y for x, y in zip(*pairs, strict=True))


def _without(variables: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    left_out = {id(v) for v in others}
    return [v for v in variables if id(v) not in left_out]


def _different(things: Sequence[Any]) -> list[Any]:
    return list({id(thing): thing for thing in things}.values())


def replicas(model: keras.Model | None = None) -> int:
    """How many replicas share a batch, by which Keras divides the losses of each."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    strategy = tf.distribute.get_strategy() if model is None else model.distribute_strategy
    return strategy.num_replicas_in_sync
