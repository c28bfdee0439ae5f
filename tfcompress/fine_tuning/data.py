"""Training data from a .npz file, matched to a model and put into batches."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress import arrays
from tfcompress.data import as_rows
from tfcompress.model_inputs import output_names

# Names of inputs and labels in a file: to train with, and to judge with.
TRAINING = (("x", "y"), ("x_train", "y_train"))
VALIDATION = (("x_val", "y_val"), ("x_test", "y_test"), ("x", "y"))


@dataclasses.dataclass(frozen=True)
class Data:
    """Samples of a model.

    Attributes:
        inputs: arrays in the order of the model's inputs, flattened.
        labels: arrays in the order of its outputs, flattened; none if the samples have no labels.
        packed: the structures that the model takes and gives, and the dtypes of the inputs.
    """

    inputs: list[np.ndarray]
    labels: list[np.ndarray]
    packed: tuple[Any, Any, list[str]]

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, rows) -> tuple[Any, ...]:
        """Inputs and labels of some samples, as `Model.fit` takes them."""
        inputs, outputs, dtypes = self.packed
        x = [a[rows].astype(dtype) for a, dtype in zip(self.inputs, dtypes, strict=True)]
        y = [a[rows] for a in self.labels]
        # tf.data takes lists for tensors.
        inputs, outputs = tree.lists_to_tuples((inputs, outputs))
        packed = tree.pack_sequence_as(inputs, x)
        return (packed, tree.pack_sequence_as(outputs, y)) if y else (packed,)

    def without_labels(self) -> "Data":
        """The same samples, to learn from a teacher alone."""
        return dataclasses.replace(self, labels=[])

    def batches(self, size: int, rows=None) -> Iterator[tuple[Any, ...]]:
        """All samples, or those of some rows, in their order."""
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), size):
            yield self.take(rows[start : start + size])

    def shuffled(self, size: int, seed: int, epochs: range) -> Iterator[tuple[Any, ...]]:
        """Batches of some epochs; the order of each follows from the seed and its number."""
        for epoch in epochs:
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            yield from self.batches(size, order)

    def split(self, fraction: float, seed: int) -> tuple["Data", "Data"]:
        """Two parts, of which the second has a fraction of the samples, drawn at random."""
        order = np.random.default_rng(seed).permutation(len(self))
        count = round(len(self) * fraction)
        if not 0 < count < len(self):
            raise ValueError(
                f"a validation split of {fraction:g} leaves {count} of {len(self)} samples to "
                "judge with; expected some in both parts. Choose another, such as 0.2."
            )
        return self._of(order[count:]), self._of(order[:count])

    def drawn(self, count: int, seed: int) -> "Data":
        """At most so many samples, drawn at random."""
        return self._of(np.random.default_rng(seed).permutation(len(self))[:count])

    def _of(self, rows: np.ndarray) -> "Data":
        """Some samples, in their order."""
        rows = np.sort(rows)
        return Data([a[rows] for a in self.inputs], [a[rows] for a in self.labels], self.packed)


def read(path) -> dict[str, np.ndarray]:
    """Reads the arrays of a .npz file; a single one, which has no labels, may be a .npy.

    Args:
        path: the file.

    Raises:
        ValueError: it is missing, damaged or something else.
    """
    found = arrays.load_arrays(path) if not os.path.isdir(path) else None
    if isinstance(found, np.ndarray):
        return {_name_of_one(path): found}
    if not isinstance(found, dict):
        raise ValueError(
            f"'{path}' must be a .npz file with the arrays x and y; received "
            f"{'a folder' if found is None else 'arrays without these names'}. Save it with "
            "np.savez('data.npz', x=images, y=labels)."
        )
    return found


def _name_of_one(path) -> str:
    with open(path, "rb") as stream:
        if stream.read(2) != b"PK":
            return "x"
    with np.load(path, allow_pickle=False) as file:
        return file.files[0]


def has_inputs(found: dict[str, np.ndarray], model: keras.Model, names=TRAINING) -> bool:
    """Whether arrays, by name, hold inputs of a model.

    Args:
        found, model, names: see `match`.
    """
    own = [tensor.name for tensor in tree.flatten(model._inputs_struct)]
    return _is_there(found, own, [name for name, _ in names])


def has_labels(found: dict[str, np.ndarray], model: keras.Model, names=TRAINING) -> bool:
    """Whether arrays, by name, hold labels of a model.

    Args:
        found, model, names: see `match`.
    """
    return _is_there(found, output_names(model), [name for _, name in names])


def _is_there(found: dict[str, np.ndarray], own: list[str], usual: list[str]) -> bool:
    usual = usual if len(own) == 1 else []
    return all(name in found for name in own) or any(name in found for name in usual)


def mend_names(
    found: dict[str, np.ndarray], model: keras.Model, names=TRAINING, labelled: bool = True
) -> str:
    """What to call the arrays of a file that have unknown names; nothing if no such are needed.

    Args:
        found, model, names, labelled: see `match`.
    """
    own = [tensor.name for tensor in tree.flatten(model._inputs_struct)]
    outputs = output_names(model) if labelled else []
    usual = [x for x, _ in names], [y for _, y in names]
    others = [name for name in found if name not in {*own, *outputs, *usual[0], *usual[1]}]
    wanted = [] if _is_there(found, own, usual[0]) else own if len(own) > 1 else ["x"]
    if outputs and not _is_there(found, outputs, usual[1]):
        wanted = [*wanted, *(outputs if len(outputs) > 1 else ["y"])]
    if not others or not wanted:
        return ""
    listed = " and ".join([", ".join(wanted[:-1]), wanted[-1]] if wanted[1:] else wanted)
    return f"Call {'them' if wanted[1:] else 'it'} {listed} (here: {', '.join(others)})."


def match(
    found: dict[str, np.ndarray], model: keras.Model, path, names=TRAINING, labelled: bool = True
) -> Data:
    """Finds the inputs and labels of a model among arrays.

    Args:
        found: arrays by name.
        model: a Functional model.
        path: where the arrays come from, for messages.
        names: pairs of names of inputs and labels, the best first; names of the model's own inputs
            and outputs are taken as well.
        labelled: whether labels are wanted.

    Returns:
        The `Data`.

    Raises:
        ValueError: an array is missing, or does not fit.
    """
    wanted = tree.flatten(model._inputs_struct)
    outputs = output_names(model)
    own = [tensor.name for tensor in wanted]
    calls = mend_names(found, model, names, labelled)
    inputs = _pick(found, own, [x for x, _ in names], "inputs", path, calls)
    # Labels of the same pair as the inputs.
    pairs = [y for x, y in names if x in inputs] or [y for _, y in names]
    labels = _pick(found, outputs, pairs, "labels", path, calls) if labelled else []
    rows = [as_rows(want, found[name]) for want, name in zip(wanted, inputs, strict=True)]
    for name, array in zip(inputs, rows, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"'{name}' in '{path}' must hold finite numbers; received NaN or infinity. "
                "Remove such samples."
            )
    _check_lengths(dict(zip([*inputs, *labels], [*rows, *(found[y] for y in labels)], strict=True)))
    for name in labels:
        if found[name].dtype.kind not in "fiub":
            raise ValueError(
                f"'{name}' in '{path}' must hold numbers; received dtype {found[name].dtype}. "
                "Number the classes from 0."
            )
    dtypes = [tensor.dtype for tensor in wanted]
    packed = model._inputs_struct, model._outputs_struct, dtypes
    return Data(rows, [found[name] for name in labels], packed)


def _pick(found, own: list[str], usual: list[str], what: str, path, calls: str) -> list[str]:
    if all(name in found for name in own):
        return own
    usual = list(dict.fromkeys(usual)) if len(own) == 1 else []
    for name in usual:
        if name in found:
            return [name]
    expected = ", ".join(repr(name) for name in own)
    expected = " or ".join([*(repr(name) for name in usual), expected])
    raise ValueError(
        f"'{path}' must hold the {what} {expected}; received {', '.join(map(repr, found))}. "
        + (calls or f"Save it with np.savez('data.npz', {usual[0] if usual else own[0]}=...).")
    )


def _check_lengths(found: dict[str, np.ndarray]) -> None:
    lengths = {name: len(a) if a.ndim else 0 for name, a in found.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        listed = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise ValueError(
            f"inputs and labels must have the same number of samples, 1 or more; received {listed}."
            " Cut them to the same length."
        )
