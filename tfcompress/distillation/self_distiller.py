"""SelfDistiller: the end of a model teaches its beginning."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers, tree

from tfcompress.distillation.base import DistillingModel, evaluate_term, evaluate_terms
from tfcompress.distillation.losses import SoftLabels, register
from tfcompress.distillation.plan import Plan, Term
from tfcompress.distillation.reading import (
    Reader,
    Source,
    activation_of,
    find_operation,
    of_operation,
    symbolic_inputs,
)
from tfcompress.errors import check

_POOLINGS = {
    3: layers.GlobalAveragePooling1D,
    4: layers.GlobalAveragePooling2D,
    5: layers.GlobalAveragePooling3D,
}


@register
class SelfDistiller(DistillingModel):
    """A `keras.Model` whose `fit` trains a model together with shallow heads that it teaches.

    After each of some layers a head classifies, too. The loss is that of `compile` for the model's
    own output, and for each head alpha * (loss of `compile`) + (1 - alpha) * (`losses` towards
    the model's own output), so that early layers learn what late ones know ("be your own teacher",
    Zhang et al. 2019, arXiv:1905.08094). Heads are thrown away with the `SelfDistiller`, or kept
    by `early_exit`; `student` stays your own model.

    Args:
        model: built `keras.Model` with one output.
        shallow: names of layers to put heads after. A layer whose output has the shape of the
            model's own is a head already.
        losses, alpha, temperature: see `Distiller`; losses that name layers compare deep layers of
            the model (`teacher_layer`) with shallow ones (`student_layer`).
        heads: layers to use as heads, one for each of `shallow`, which give logits; by default
            global average pooling and `Dense`.
        **kwargs: name and dtype of the model.

    Raises:
        TypeError, ValueError: as `Distiller`; or if the model has several outputs, or a head gives
            another shape than the model.

    Example:
        >>> trainer = SelfDistiller(model, ["block1", "block2"])  # doctest: +SKIP
        >>> trainer.compile("adam", "sparse_categorical_crossentropy")  # doctest: +SKIP
        >>> trainer.fit(x, y, epochs=10)  # doctest: +SKIP
    """

    objects = ("model", "losses", "heads")

    def __init__(
        self,
        model: keras.Model,
        shallow: Sequence[str],
        losses: Any = None,
        *,
        alpha: float = 0.5,
        temperature: float = 4.0,
        heads: Sequence[keras.Layer] | None = None,
        **kwargs,
    ):
        super().__init__([model], losses, alpha, temperature, **kwargs)
        self.student = model
        self.shallow = [shallow] if isinstance(shallow, str) else list(shallow)
        if not self.shallow:
            raise ValueError("shallow must name one layer or more to put heads after; none given.")
        inputs = symbolic_inputs(model)
        plan = Plan(model, [model], losses, temperature, inputs, [1.0])
        self._output = _single(tree.flatten(Reader(model, []).specs(inputs, "student")[0]), model)
        self._within, self._towards = _parted(plan.terms)
        self.adapters = plan.adapters
        self._activation, _ = plan.kind(model, 0)
        self._exits = self._find_exits(inputs, heads is None)
        specs = Reader(model, self._exits).specs(inputs, "student")[1]
        self.heads = self._make_heads(heads, [specs[source] for source in self._exits])
        sources = [*plan.student_sources, *plan.teacher_sources(0), *self._exits]
        self.finish(
            Reader(model, sources),
            ["task_loss", "distillation_loss", *(f"{name}_loss" for name in self.shallow)],
        )

    def _find_exits(self, inputs: Any, own: bool) -> list[Source]:
        found = [find_operation(self.student, name, "model") for name in self.shallow]
        sources = [Source(operation=operation) for operation in found]
        specs = Reader(self.student, sources).specs(inputs, "model")[1]
        return [self._exit(x, specs[s], own) for x, s in zip(found, sources, strict=True)]

    def _exit(self, operation: Any, spec: Any, own: bool) -> Source:
        """Where a head begins; at the logits of a layer that is a head already."""
        activation = self._activation
        if own and tuple(spec.shape[1:]) == tuple(self._output.shape[1:]):
            model = getattr(self.student, "_functional", None) or self.student
            if operation in getattr(model, "operations", []):
                upto = keras.Model(model._inputs_struct, operation.output)
                kind, alone = activation_of(upto, 0)
            else:
                kind, alone = of_operation(operation)
            if kind in ("softmax", "sigmoid") and kind == activation:
                if alone is not None:
                    return Source(operation=alone, given=True)
                return Source(operation=operation, logits_of=kind)
        return Source(operation=operation)

    def _make_heads(self, given, specs) -> list[keras.Layer]:
        if given is not None:
            expected = f"{len(specs)} layers, one for each of {self.shallow}"
            check(len(given) == len(specs), "heads", expected, len(given))
        found = []
        for index, spec in enumerate(specs):
            head = _head(spec, self._output, self.shallow[index]) if given is None else given[index]
            if not head.built:
                head.build(spec.shape)
            shape = tuple(head.compute_output_shape(spec.shape))
            if shape[1:] != tuple(self._output.shape[1:]):
                raise ValueError(
                    f"the head after '{self.shallow[index]}' gives {shape}, the model "
                    f"{tuple(self._output.shape)}; expected the same. Give heads of your own."
                )
            found.append(head)
        return found

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        outputs, read = self.student_tensors(x, y_pred, training)
        weights = self.listed_weights(sample_weight)
        task = self._own_loss(y, outputs, sample_weight)
        values, shares = [], []
        for head, source in zip(self.heads, self._exits, strict=True):
            logits = head(read[source], training=training)
            outputs_of_head = self._as_output(logits)
            own = self.task_loss(y, outputs_of_head, sample_weight)
            values.append(0.0)
            for term in self._towards:
                given = logits if isinstance(term.loss, SoftLabels) else outputs_of_head
                values[-1] += evaluate_term(term, read[term.theirs], given, weights)
            shares.append(self.alpha * own + (1 - self.alpha) * values[-1])
        within = sum(evaluate_terms(self._within, [read], read, weights))
        self.report(x, [task, sum(values) + within, *shares])
        return task + sum(shares) + (1 - self.alpha) * within + self.penalties()

    def _own_loss(self, y, outputs, sample_weight) -> Any:
        """The loss of the model's own output, of which alpha is no share."""
        if self.alpha or self._compile_loss is None or y is None:
            return self.task_loss(y, outputs, sample_weight)
        return self._compile_loss(y, outputs, sample_weight)

    def _as_output(self, logits: Any) -> Any:
        if self._activation in ("softmax", "sigmoid"):
            return keras.activations.get(self._activation)(logits)
        return logits

    def early_exit(self, layer: str) -> keras.Model:
        """The model up to one of its heads, sharing its weights.

        Args:
            layer: one of `shallow`.

        Returns:
            A Functional `keras.Model` with outputs such as the model's own.

        Raises:
            ValueError: if the layer has no head, or the model is not Functional or lies deeper.
        """
        if layer not in self.shallow:
            raise ValueError(f"no head after {layer!r}; expected one of {self.shallow}.")
        index = self.shallow.index(layer)
        operation = self._exits[index].operation
        model = getattr(self.student, "_functional", None) or self.student
        if operation not in getattr(model, "operations", []):
            raise ValueError(
                f"layer '{layer}' lies inside of a nested or subclassed model, where no model can "
                "end. Make the SelfDistiller of tfcompress.flatten(model)."
            )
        outputs = operation.output
        if not self._exits[index].given and self._exits[index].logits_of is None:
            outputs = self.heads[index](outputs)
            if self._activation in ("softmax", "sigmoid"):
                outputs = layers.Activation(self._activation)(outputs)
        return keras.Model(model._inputs_struct, outputs, name=f"{self.student.name}_{layer}")

    @property
    def settings(self):
        return {"model": self.student, "shallow": self.shallow, "heads": self.heads}


def _parted(terms: list[Term]) -> tuple[list[Term], list[Term]]:
    """Losses between layers, and those of the output, which are for the heads."""
    towards = [term for term in terms if term.output is not None]
    if not towards:
        raise ValueError(
            "SelfDistiller needs a loss of the output for its heads; received losses between "
            "layers alone. Add SoftLabels()."
        )
    return [term for term in terms if term.output is None], towards


def _single(outputs: list[Any], model: keras.Model) -> Any:
    if len(outputs) != 1:
        raise ValueError(
            f"SelfDistiller takes a model with one output; '{model.name}' has {len(outputs)}. Make "
            "one of its deepest output with keras.Model(inputs, output)."
        )
    return outputs[0]


def _head(spec: Any, output: Any, name: str) -> keras.Layer:
    """What classifies after a layer that gives tensors like `spec`."""
    shape = tuple(spec.shape)
    if shape[1:] == tuple(output.shape[1:]):
        return layers.Identity(name=f"{name}_head")
    dense = layers.Dense(output.shape[-1])
    pool: Callable[[], keras.Layer] | None = None
    if len(shape) > len(output.shape):
        pool = _POOLINGS.get(len(shape)) if len(output.shape) == 2 else None
        if pool is None:
            raise ValueError(
                f"no head is known from '{name}', which gives {shape}, to the model's "
                f"{tuple(output.shape)}. Give heads of your own."
            )
    parts = [dense] if pool is None else [pool(), dense]
    return keras.Sequential(parts, name=f"{name}_head")
