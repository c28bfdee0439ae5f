"""What a file is converted with: said by the user, asked for by the target, or the usual."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfcompress.conversion.exchange import check_exchange
from tfcompress.conversion.precisions import (
    KERNELS,
    TRAINED_PRECISIONS,
    USUAL,
    WEIGHT_BITS,
    Precisions,
)
from tfcompress.conversion.tuning import check_tune
from tfcompress.errors import check, expected_one_of
from tfcompress.export.microcontroller.compressed_weights import check_budgets
from tfcompress.graph.flatten import as_flat
from tfcompress.layers.compressed import Compressed, is_compressed
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.post_training.kernels import GRANULARITIES
from tfcompress.post_training.observers import OBSERVERS
from tfcompress.targets.targets import IO_DTYPES, Target, io_pair, load_target
from tfcompress.techniques import Quantize
from tfcompress.techniques.scales import WEIGHT_OBSERVERS
from tfcompress.tflite.weight_codes import OPERATOR

PRECISIONS = tuple(IO_DTYPES)
FORMATS = ("tflite", "onnx", "openvino")
_ENDINGS = {".onnx": "onnx", ".xml": "openvino"}
_OPERATIONS = {
    "dense": ("FULLY_CONNECTED",),
    "convolution": ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to convert; see `convert`. `io_dtype` is one name, or two with a comma between.

    `layers` are the precisions of layers that are not of `precision`, which is int8 then.
    """

    precision: str
    io_dtype: str
    batch_size: int
    dense: str
    convolution: str = "per_channel"
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    skip: tuple[str, ...] = ()
    target: Target | None = None
    observer: str = "min_max"
    weight_observer: str = "max"
    layers: Precisions | None = None
    tune: str | tuple[str, ...] | None = None
    compressed_weights: bool = False
    flash: int | None = None
    ram: int | None = None

    def __post_init__(self) -> None:
        precision, batch = self.precision, self.batch_size
        check_budgets(self.flash, self.ram)
        by_layer = f"; {precision} is by layer, as {{'*': {precision!r}}}"
        also = by_layer if precision in KERNELS and precision not in PRECISIONS else ""
        _check_choice("precision", precision, PRECISIONS, also)
        with_it = f" with precision '{precision}'"
        for dtype in io_pair(self.io_dtype):
            _check_choice("io_dtype", dtype, IO_DTYPES[precision], with_it)
        whole = isinstance(batch, int) and not isinstance(batch, bool)
        check(whole and batch >= 1, "batch_size", "an integer of 1 or more", batch)
        _check_choice("dense", self.dense, GRANULARITIES)
        _check_choice("convolution", self.convolution, GRANULARITIES)
        _check_choice("observer", self.observer, OBSERVERS)
        _check_choice("weight_observer", self.weight_observer, WEIGHT_OBSERVERS)
        for name, given in (
            ("ranges", self.ranges),
            ("skip", self.skip),
            ("tune", self.tune not in (None, "none")),
            *self.observers.items(),
        ):
            whole = not given or precision in ("int8", "int16x8", "int4")
            check(whole, "precision", f"int8, int16x8 or int4 with {name}", precision)
        for name, limits in self.ranges.items():
            holds = len(limits) == 2 and limits[0] <= 0 <= limits[1] and limits[0] < limits[1]
            check(holds, f"the range of '{name}'", "(least, greatest) with 0 between", limits)

    @property
    def steps(self) -> str | tuple[str, ...]:
        """What is to be tuned: usually kernels of fewer than 8 bits, unless scales are chosen."""
        if self.tune is None and "weight_observer" in self.observers:
            return "none"
        named = (self.precision,) if self.layers is None else self.layers.named
        narrow = any(WEIGHT_BITS.get(precision, 8) < 8 for precision in named)
        return ("fast" if narrow else "none") if self.tune in (None, "fast") else self.tune

    @property
    def observers(self) -> dict[str, str]:
        """The observers that are not the usual ones, by their arguments."""
        usual = {"observer": "min_max", "weight_observer": "max"}
        return {name: getattr(self, name) for name in usual if getattr(self, name) != usual[name]}

    @property
    def tensorwise(self) -> set[str]:
        """The operations of LiteRT whose weights are to have one scale."""
        return {
            op
            for kind in _OPERATIONS
            if getattr(self, kind) == "per_tensor"
            for op in _OPERATIONS[kind]
        }


def _check_choice(name: str, received: Any, known: Sequence[str], why: str = "") -> None:
    check(received in known, name, f"one of {', '.join(known)}{why}", received)


def settle(
    precision: str | Mapping[Any, str] | Precisions | None = None,
    io_dtype: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    dense: str | None = None,
    target: str | os.PathLike[str] | Target | None = None,
    convolution: str | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    skip: str | Sequence[str] = (),
    observer: str | None = None,
    weight_observer: str | None = None,
    tune: str | Sequence[str] | None = None,
    compressed_weights: bool | None = None,
    flash: int | None = None,
    ram: int | None = None,
) -> Settings:
    """Fill in what was not said from the target, or as usual, and check the whole."""
    found, usual, layers = None, (USUAL, "float32", 1, "per_channel"), None
    if precision is not None and not isinstance(precision, str):
        layers, precision = Precisions.of(precision), USUAL
    pair = None if io_dtype is None else io_pair(io_dtype)
    edges = None if pair is None else ",".join(dict.fromkeys(pair))
    if target is not None:
        found = target if isinstance(target, Target) else load_target(target)
    codes = _codes(compressed_weights, flash, ram, found)
    if found is not None:
        for each in () if layers is None else layers.named:
            # Of weights of fewer bits a target knows int4 at most; `check` looks closer.
            if each not in KERNELS or "int4" not in found.precisions:
                _agree(found, "precision", each, found.precisions)
        _agree(found, "precision", precision, found.precisions)
        for dtype in pair or ():
            _agree(found, "io_dtype", dtype, found.io_dtypes)
        if found.shapes.batch_required:
            _agree(found, "batch_size", batch_size, [found.shapes.batch])
        granularity = (found.weights.granularity.dense or "").replace("-", "_")
        if granularity:
            _agree(found, "dense", dense, [granularity])
        chosen = found.precision if precision is None else precision
        fitting = edges or _io_dtype(found, chosen)
        usual = (chosen, fitting, found.shapes.batch or 1, granularity or "per_channel")
    names = ("precision", "io_dtype", "batch_size", "dense")
    said = zip(names, (precision, edges, batch_size, dense), usual, strict=True)
    settled: dict[str, Any] = {
        name: otherwise if value is None else value for name, value, otherwise in said
    }
    settled["convolution"] = "per_channel" if convolution is None else convolution
    settled["observer"] = "min_max" if observer is None else observer
    settled["weight_observer"] = "max" if weight_observer is None else weight_observer
    settled["tune"] = None if tune is None else check_tune(tune)
    settled["skip"] = (skip,) if isinstance(skip, str) else tuple(skip)
    settled |= {"compressed_weights": codes, "flash": flash, "ram": ram}
    return Settings(**settled, ranges=dict(ranges or {}), target=found, layers=layers)


def _codes(asked: bool | None, flash: Any, ram: Any, target: Target | None) -> bool:
    """Whether weights are to be stored in codes, for which a budget is reason enough."""
    budgets = {"flash": flash, "ram": ram}
    given = [f"{name}={value!r}" for name, value in budgets.items() if value is not None]
    if not (given if asked is None else asked):
        if given:
            raise ValueError(
                f"flash and ram are kept by weights in codes; received {' and '.join(given)} with "
                "compressed_weights=False. Leave that out."
            )
        return False
    if target is None or OPERATOR not in target.custom_operators:
        named = "no target" if target is None else f"target '{target.name}'"
        what = " and ".join(given if asked is None else ["compressed_weights"])
        raise ValueError(
            f"{what}: received {named}; expected one that runs TFLite Micro, which alone decodes "
            f"weights ({OPERATOR}). Name target='microcontroller' (--target microcontroller)."
        )
    return True


def _io_dtype(target: Target, precision: str) -> str:
    """The target's first type of inputs and outputs that this precision can have."""
    fitting = [dtype for dtype in target.io_dtypes if dtype in IO_DTYPES[precision]]
    if not fitting:
        raise ValueError(
            f"target '{target.name}' takes io_dtype {' or '.join(map(repr, target.io_dtypes))}; "
            f"precision '{precision}' has {' or '.join(map(repr, IO_DTYPES[precision]))}. Name "
            "another precision, or correct the target's file."
        )
    return fitting[0]


def _agree(target: Target, name: str, said: Any, asked: Any) -> None:
    if said is None or said in asked:
        return
    known = " or ".join(map(repr, asked))
    raise ValueError(
        f"target '{target.name}' takes {name} {known}; received {said!r}. Leave {name} out, or "
        "name another target."
    )


def settle_format(
    settings: Settings, format: str | None, path: str | os.PathLike[str], metadata: Any
) -> str:
    """Return the format to write, by the path's ending if None."""
    by_ending = _ENDINGS.get(Path(path).suffix.lower(), "tflite")
    if format is None:
        format = by_ending
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; {expected_one_of(str(format), FORMATS)}")
    if format == "tflite":
        if by_ending != "tflite":
            raise ValueError(
                f"a .tflite file was asked for; received the name '{path}' of another format. "
                "Rename it, or leave format out."
            )
        return format
    if settings.target is not None or metadata is not None:
        raise ValueError(
            f"target and metadata are for .tflite files; received them with format='{format}'. "
            "Leave them out."
        )
    if settings.layers is not None:
        raise ValueError(
            f"precision by layer is for .tflite files; received it with format='{format}'. Name "
            "one precision for all layers, or write a .tflite file."
        )
    check_exchange(format, path, settings.precision)
    return format


def quantizers(model) -> list[FakeQuant]:
    """The layers that round activations."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, FakeQuant)]


def quantize_techniques(model) -> list[Quantize]:
    """The `Quantize` of every layer with weights, and one for ranges that have no weights."""
    found = [
        technique
        for layer in model._flatten_layers()
        if isinstance(layer, Compressed)
        for target in layer.bound
        for technique in target.techniques
        if isinstance(technique, Quantize)
    ]
    return found + [Quantize()] * bool(quantizers(model) and not found)


def natural_precision(model) -> str:
    """The precision that a model was trained for."""
    found = quantize_techniques(model)
    if not found or max(t.bits for t in found) > 8:
        return "float32"
    activations = [t.activation_bits for t in found]
    if 16 in activations:
        return "int16x8"
    if min(t.code_bits for t in found) <= 4:
        return "int4"
    return "int8" if 8 in activations else "dynamic_int8"


def settle_trained(settings: Settings, model) -> Settings:
    """The settings for a model where no precision was named: the one that it was trained for."""
    trained = natural_precision(model) if isinstance(model, keras.Model) else "float32"
    target = settings.target
    if trained not in ("int4", "int16x8") or (target and trained not in target.precisions):
        return settings
    return dataclasses.replace(settings, precision=trained)


def require_calibration(settings: Settings, but: Sequence[str] = ()) -> None:
    """Raises if observers were asked for, except some, where nothing is observed."""
    for name, chosen in ((n, v) for n, v in settings.observers.items() if n not in but):
        raise ValueError(
            f"{name} is for calibration; received {name}='{chosen}' without calibration data, or "
            "for a model that was trained for quantization. Leave it out, or convert the float "
            "model with calibration=."
        )


def require_storable(techniques: list[Quantize]) -> None:
    """Raises if weights were trained for more bits than a file stores."""
    widest = max((technique.bits for technique in techniques), default=8)
    if widest > 8:
        raise ValueError(
            f"the model must be trained with weights of 8 bits or fewer; received bits={widest}. "
            "Train it with bits=8, or convert it with precision='float32'."
        )


def require_started(model) -> None:
    """Raises if training ended before quantization set in."""
    for layer in model._flatten_layers():
        techniques = getattr(layer, "techniques", ())
        delay = max((t.begins() for t in techniques if isinstance(t, Quantize)), default=0)
        if int(getattr(layer, "last_step", delay)) < delay:
            raise ValueError(
                f"layer '{layer.name}' is quantized from step {delay} on; received a model trained "
                f"for {int(layer.last_step)} steps. Train it longer, or with a smaller delay."
            )


def require_ranges(model, fixed: Mapping[str, Any]) -> None:
    """Raises if no range was ever observed, or is asked for; warns of those that saw 0 alone."""
    if fixed:
        raise ValueError(
            f"ranges are for calibration; received those of {', '.join(map(repr, fixed))} for a "
            "model that was trained with ranges of its own. Leave them out."
        )
    unseen = [
        layer.name.removesuffix("_range")
        for layer in quantizers(model)
        if layer.fixed is None and not (float(layer.limits()[1]) > float(layer.limits()[0]))
    ]
    if unseen and len(unseen) == len([q for q in quantizers(model) if q.fixed is None]):
        raise ValueError(
            f"the activation ranges of model '{model.name}' were never observed: received an "
            "untrained model. Fit it for a few steps first, or convert the float model with "
            "calibration=."
        )
    _require_finite(model)
    zeros = [q.name.removesuffix("_range") for q in quantizers(model) if q.only_zeros]
    if zeros:
        warnings.warn(
            f"these activations were always 0 while training: {', '.join(zeros[:10])}. The file "
            "holds what they are from 0 to 1.",
            stacklevel=4,
        )


# TensorFlow's converter ends the process where what it computes of a range is infinite.
_GREATEST = 1e30


def _require_finite(model) -> None:
    for layer in quantizers(model):
        low, high = (float(limit) for limit in layer.limits())
        if not (low > -_GREATEST and high < _GREATEST):
            name = layer.name.removesuffix("_range")
            raise ValueError(
                f"the range of '{name}' must be of numbers that matter; received {low:.3g} "
                f"to {high:.3g}, as a mask of the lowest float leaves it. Mask by adding -30 to "
                "scores before quantize_aware, or convert the model from before it."
            )


def weight_bits_of(model) -> set[int]:
    """The widths that hold trained weights, 8 if nothing has weights."""
    return {technique.code_bits for technique in quantize_techniques(model)} or {8}


def require_layers(precisions: Precisions | None, model: Any, calibrated: bool) -> None:
    """Raises unless precisions by layer are for a Keras model that was trained, or that data
    quantize.
    """
    if precisions is None:
        return
    if not isinstance(model, keras.Model):
        raise ValueError(
            "precision by layer is for Keras 3 models, whose layers are known; received a "
            f"{type(model).__name__}. Name one precision for all of it."
        )
    trained = quantize_techniques(model)
    others = [name for name in precisions.named if name not in TRAINED_PRECISIONS]
    if trained and others:
        raise ValueError(
            f"precision by layer of a model that was trained for quantization is one of "
            f"{', '.join(TRAINED_PRECISIONS)}; received {others[0]!r} for model '{model.name}'. "
            "Leave precision out, or convert the model from before quantize_aware."
        )
    if is_compressed(model) and not trained:
        raise ValueError(
            "precision by layer is for models that were trained for quantization, or without "
            f"techniques; received model '{model.name}' under others. Call finalize(model) first, "
            "and convert what it returns."
        )
    if not calibrated and all(technique.activation_bits is None for technique in trained):
        raise ValueError(
            "precision by layer needs the ranges of activations; received no calibration data. "
            "Pass calibration= (--calibration) a few hundred samples of the training inputs."
        )
    try:
        flat = as_flat(model)
    except Exception as error:  # What users' layers raise is of any kind.
        raise ValueError(
            f"precision by layer is for models that can be flattened; received model "
            f"'{model.name}', of which {error}. Name one precision for all of it."
        ) from error
    precisions.check_layers(flat)
