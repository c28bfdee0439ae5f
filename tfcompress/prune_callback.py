"""PruneCallback: pruning of a user's own model, in place, while it trains."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.callbacks import inner_optimizer, layers_of
from tfcompress.layers import TARGETS, Compressed, require_merged, target_variables
from tfcompress.masking import MaskedWeight, MaskingCallback
from tfcompress.recipe import Rule
from tfcompress.techniques.prune import Prune, as_mask, global_masks, taylor_scores
from tfcompress.techniques.quantize import as_tensor
from tfcompress.techniques.regularize import Regularize

# Scores that are 0 where a weight is 0.
OF_SIZE = ("magnitude", "l1", "l2", "max")


class PruneCallback(MaskingCallback):
    """Prunes the weights of any Keras model in place, while `fit` trains it.

    The model is the user's own and stays unwrapped: it needs not be flattened, and no `finalize`.
    After every optimizer step, pruned weights are set to zero, so that the model holds exactly the
    zeros of the schedule at any time; a weight that was pruned stays so. The step is
    `optimizer.iterations`: a run that is resumed by `BackupAndRestore` goes on as if it had not
    been interrupted, and with `steps_per_execution` masks are applied within it, too. With a new
    optimizer, whose steps count from 0, the same callback object goes on where it was. If `fit` is
    interrupted, weights stay pruned until the callback's next `fit` ends.

    Put it after `EarlyStopping(restore_best_weights=True)`, and let that `start_from_epoch` at the
    end of the schedule: an epoch before, which may be the best, is less sparse.

    Args:
        prune: a `Prune`. On JAX scores that come from gradients are not available.
        layers: which layers: a pattern, a type or a predicate, as of `Rule`.
        regularizer: a Keras regularizer for the weights while they are pruned, such as
            `GroupLasso(1e-4)`.

    Raises:
        TypeError: if `prune` is something else.
        ValueError: at the start of `fit`, if there is nothing to prune.

    Example:
        >>> from tfcompress import schedules
        >>> prune = Prune(schedules.polynomial(0.0, 0.8, end=2000))
        >>> model.fit(x, y, callbacks=[PruneCallback(prune)])  # doctest: +SKIP
    """

    def __init__(
        self,
        prune: Prune,
        layers: str | type | Callable[[Any], bool] = "*",
        regularizer: Any = None,
    ):
        super().__init__()
        if not isinstance(prune, Prune):
            raise TypeError(
                f"prune must be a tfcompress.Prune; received {prune!r}. Other techniques need a "
                "model from tfcompress.compress and UpdateCompression."
            )
        self.prune, self._rule = prune, Rule(layers, [prune])
        self.regularizer = None if regularizer is None else keras.regularizers.get(regularizer)

    def on_train_begin(self, logs=None):
        if self.prune.learns_scores and keras.backend.backend() == "jax":
            raise ValueError(
                f"score={self.prune.score!r} needs gradients, which a callback does not see on "
                "JAX. Use tfcompress.compress with UpdateCompression, or another score."
            )
        super().on_train_begin(logs)
        if self.prune.learns_scores:
            _watch(inner_optimizer(self.model.optimizer), self._weights)

    def find(self) -> list["_Pruned"]:
        found: list[_Pruned] = []
        reasons = {}
        for layer in layers_of(self.model):
            if isinstance(layer, Compressed):
                raise ValueError(
                    f"PruneCallback prunes models that are not wrapped; layer '{layer.name}' comes "
                    "from tfcompress.compress. Put Prune into its recipe instead."
                )
            # Each layer for itself: the layers inside it have their own turn.
            for owner, variable in target_variables(layer, TARGETS):
                if owner is layer and self._rule.matches(layer):
                    reasons[f"{layer.name}/{variable.name}"] = reason = self.prune.refuses(
                        layer, variable
                    )
                    if reason is None and not any(x.variable is variable for x in found):
                        found.append(_Pruned(layer, variable, self.prune, self.regularizer))
        if not found:
            listed = "; ".join(f"{name} is {reason}" for name, reason in list(reasons.items())[:4])
            raise ValueError(
                f"PruneCallback finds nothing to prune in model '{self.model.name}' with "
                f"layers={self._rule.layers!r}: received {listed or 'no layer with a kernel'}. "
                "Mend the pattern, or build the model before fit."
            )
        return found

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        inner_optimizer(self.model.optimizer).__dict__.pop("apply", None)

    def next_step(self, step: int) -> int | None:
        return self.prune.next_step(step)

    def unfinished(self, step: int) -> str | None:
        return self.prune.unfinished(step)

    def update(self, step: int) -> None:
        if step < self.prune.begins():
            return
        arrays = [weight.arrays() for weight in self._weights]
        bound = [weight.prune for weight in self._weights]
        if self.prune.together:
            masks = global_masks(bound, arrays, step)
        else:
            masks = [p.mask(*each, step) for p, each in zip(bound, arrays, strict=True)]
        for weight, mask in zip(self._weights, masks, strict=True):
            weight.mask.assign(as_mask(mask))


class _Pruned(MaskedWeight):
    """A weight that is pruned, and the scores that it learns."""

    def __init__(self, layer, variable, prune: Prune, regularizer):
        require_merged(layer)
        penalty = None
        if regularizer is not None:
            penalty = Regularize(regularizer).bind(layer, variable.name).penalty
        super().__init__(variable, penalty)
        self.prune = prune.bind(layer, variable.name)
        self.scores: Any = self.beside("scores", "zeros") if prune.learns_scores else None

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The weight and its scores, of which those of groups that were pruned are the least."""
        weight = ops.convert_to_numpy(as_tensor(self.variable))
        if isinstance(self.prune.score, str) and self.prune.score in OF_SIZE:
            return weight, None  # where zeros come first anyway
        learned = None if self.scores is None else ops.convert_to_numpy(as_tensor(self.scores))
        scores = self.prune.scores(weight, learned)
        groups = self.prune.groups(weight.shape)
        alive = groups.expand(groups.reduce(np.abs(weight), largest=True) > 0)
        return weight, np.where(alive, scores, -np.inf)

    def watch(self, gradient) -> None:
        """Updates learned scores by the gradient of the weight."""
        product = ops.convert_to_tensor(gradient) * as_tensor(self.variable)
        product, old = ops.cast(product, "float32"), as_tensor(self.scores)
        if self.prune.score == "movement":
            self.scores.assign(old - product)
        else:
            self.scores.assign(taylor_scores(old, product))


def _watch(optimizer, weights: list[_Pruned]) -> None:
    """Shows the weights their gradients whenever the optimizer applies them."""
    optimizer.__dict__.pop("apply", None)  # left there if a `fit` was interrupted
    apply, by_id = optimizer.apply, {id(weight.variable): weight for weight in weights}

    def watch_and_apply(grads, trainable_variables=None):
        variables = trainable_variables
        variables = optimizer._trainable_variables if variables is None else list(variables)
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is not None and id(variable) in by_id:
                by_id[id(variable)].watch(gradient)
        return apply(grads, trainable_variables)

    optimizer.apply = watch_and_apply
