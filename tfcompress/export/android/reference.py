"""Inputs and outputs for the test on the device."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from tfcompress.export.android.tensors import Tensor
from tfcompress.tflite import run
from tfcompress.tools.subject import Arrays, Subject, outputs_of, read_subject

SAMPLES = 4

# Of floats, relative to the largest: kernels add in different orders.
_RELATIVE = 1e-4


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the test compares with.

    Attributes:
        data: of each sample the inputs, then the outputs, as they are stored, little-endian.
        example: the inputs of the first sample.
        samples: how many.
        tolerances: the largest difference that passes, by output: of integers in units of their
            last bit.
        shapes: of the outputs.
    """

    data: bytes
    example: bytes
    samples: int
    tolerances: tuple[float, ...]
    shapes: tuple[tuple[int, ...], ...]


def make_reference(path: str | os.PathLike[str], outputs: tuple[Tensor, ...]) -> Reference:
    """Run a file on random inputs with LiteRT's reference kernels.

    A device computes with other kernels: how far those of this machine are from the reference
    makes the tolerance, 1 LSB at least where the output is on a grid.
    """
    subject = read_subject(path, {})
    inputs, expected = subject.inputs[:SAMPLES], subject.expected[:SAMPLES]
    shapes = tuple(tuple(value.shape) for value in expected[0].values())
    for number, tensor in enumerate(outputs):
        found = {tuple(list(sample.values())[number].shape) for sample in expected}
        # Operators such as TFLite_Detection_PostProcess tell theirs when they are run.
        wanted = tensor.shape or shapes[number]
        if found != {wanted}:
            other = next(shape for shape in found if shape != wanted)
            raise ValueError(
                f"output {tensor.name!r} of '{os.fspath(path)}' has shape {list(other)} "
                f"when it is run; expected {list(wanted)} as declared or in another run. Convert "
                "the model with fixed shapes."
            )
    given = _default_kernels(subject.data, inputs, os.fspath(path))
    data = b"".join(
        stored(value)
        for taken, made in zip(inputs, expected, strict=True)
        for value in (*taken.values(), *made.values())
    )
    return Reference(
        data=data,
        example=b"".join(stored(value) for value in inputs[0].values()),
        samples=len(inputs),
        tolerances=_tolerances(subject, outputs, given),
        shapes=shapes,
    )


def stored(value: np.ndarray) -> bytes:
    """Return the bytes of an array, little-endian."""
    return value.astype(value.dtype.newbyteorder("<")).tobytes()


def _tolerances(
    subject: Subject, outputs: tuple[Tensor, ...], given: list[list[np.ndarray]]
) -> tuple[float, ...]:
    found = []
    for number, tensor in enumerate(outputs):
        name = list(subject.expected[0])[number]
        wanted = np.stack([sample[name] for sample in subject.expected[: len(given)]])
        made = np.stack([sample[number] for sample in given])
        gap = _gap(wanted, made)
        if not tensor.is_real:
            found.append(gap)
        elif tensor.dtype != "float32":
            found.append(max(1.0, gap))
        else:
            unit = subject.units[name]
            # A step of the grid, made real, is off by rounding.
            step = 1.001 * unit if unit is not None else _RELATIVE * _largest(wanted)
            found.append(float(f"{max(step, 2 * gap, 1e-7):.3g}"))
    return tuple(found)


def _gap(wanted: np.ndarray, made: np.ndarray) -> float:
    wanted, made = wanted.astype(np.float64), made.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gaps = np.where((wanted == made) | ~np.isfinite(wanted), 0.0, np.abs(wanted - made))
    return float(np.max(gaps[np.isfinite(gaps)], initial=0.0))


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)].astype(np.float64)
    return float(np.max(np.abs(finite), initial=0.0))


def _default_kernels(data: bytes, inputs: list[Arrays], where: str) -> list[list[np.ndarray]]:
    try:
        return outputs_of(data, inputs, run.DEFAULT)
    except Exception as error:  # Damaged files fail in many ways.
        raise ValueError(
            f"LiteRT cannot run '{where}': {run.line(error)}. Its reference "
            "kernels can, but an app does not take those. Convert the model again."
        ) from error
