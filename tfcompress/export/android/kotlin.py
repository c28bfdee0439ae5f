"""The Kotlin of a project: templates filled in with what the file exchanges."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfcompress.export.android.labels import Classes
from tfcompress.export.android.naming import Values, fill, kotlin_text
from tfcompress.export.android.reference import Reference
from tfcompress.export.android.tensors import Interface, Tensor

_READERS = {
    "FloatArray": "floats",
    "IntArray": "ints",
    "LongArray": "longs",
    "BooleanArray": "booleans",
}


@dataclasses.dataclass(frozen=True)
class Normalization:
    """(pixel - mean) / std, by channel or for all, with pixels from 0 to 255; where it is from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class App:
    """What an app is made of.

    Attributes:
        package: of its classes.
        base: the start of its class names; `file_base` that of its files.
        title: shown to people.
        interface: what the file exchanges.
        normalizations: of each input that a picture fits, by its number.
        classes: names of an output's classes, or None.
        reference: for the test.
        model_bytes: the size of the file.
    """

    package: str
    base: str
    file_base: str
    title: str
    interface: Interface
    normalizations: dict[int, Normalization]
    classes: Classes | None
    reference: Reference
    model_bytes: int

    @property
    def model(self) -> str:
        """The main class."""
        return f"{self.base}Model"

    @property
    def runner(self) -> str:
        """The class that runs the file."""
        return f"{self.interface.runner}Runner"

    @property
    def takes_picture(self) -> bool:
        """Whether a picture is all that the model needs."""
        return len(self.interface.inputs) == 1 and 0 in self.normalizations


def library(app: App) -> dict[str, str]:
    """Return the classes that run the model, by file name."""
    values = _values(app)
    package: Values = {"package": app.package}
    files = {
        f"{app.model}.kt": fill("Model.kt", values),
        f"{app.base}Tensors.kt": fill("Tensors.kt", values),
        "TensorSpec.kt": fill("TensorSpec.kt", package),
        f"{app.runner}.kt": fill(f"{app.runner}.kt", package),
    }
    if app.classes is not None:
        files["Classification.kt"] = fill("Classification.kt", package)
    if app.normalizations:
        files["Pixels.kt"] = fill("Pixels.kt", package)
    return files


def activity(app: App) -> str:
    """Return the screen."""
    return fill("MainActivity.kt", _values(app))


def test(app: App) -> str:
    """Return the test that runs on the device."""
    return fill("ModelTest.kt", _values(app))


def _values(app: App) -> Values:
    inputs, outputs = app.interface.inputs, app.interface.outputs
    tensors = f"{app.base}Tensors"
    signature = app.interface.signature
    return {
        "package": app.package,
        "base": app.base,
        "model": app.model,
        "asset": kotlin_text(f"{app.file_base}.tflite"),
        "labels_asset": kotlin_text(f"{app.file_base}_labels.txt"),
        "example_asset": kotlin_text(f"{app.file_base}_example.bin"),
        "reference_asset": kotlin_text(f"{app.file_base}_reference.bin"),
        "compiled": app.interface.compiled,
        "signature": kotlin_text(signature or ""),
        "input_specs": _lines(8, map(_spec, inputs)),
        "output_specs": _lines(8, map(_spec, outputs)),
        "input_parameters": _lines(8, (f"{t.identifier}: {t.array}," for t in inputs)),
        "output_fields": _lines(8, (f"val {t.identifier}: {t.array}," for t in outputs)),
        "encoded": _lines(
            16, (f"{tensors}.inputs[{i}].encode({t.identifier})," for i, t in enumerate(inputs))
        ),
        "decoded": _lines(
            8,
            (
                f"{tensors}.outputs[{i}].{_READERS[t.array]}(data[{i}]),"
                for i, t in enumerate(outputs)
            ),
        ),
        "arguments": ", ".join(t.identifier for t in inputs),
        "image": bool(app.normalizations),
        "image_functions": "".join(_image(app, i) for i in app.normalizations),
        "picture": app.takes_picture,
        "image_function": f"{inputs[0].identifier}From",
        "classify_picture": app.takes_picture and app.classes is not None,
        "run_on": "the example input" + (" or a picture" if app.takes_picture else ""),
        "constants": app.takes_picture or app.classes is None,
        "labels": app.classes is not None,
        "label_count": len(app.classes.labels) if app.classes else 0,
        "probabilities": _probabilities(app),
        "tolerances": ", ".join(map(repr, app.reference.tolerances)),
        "samples": app.reference.samples,
    }


def _lines(indent: int, lines) -> str:
    return "\n".join(f"{' ' * indent}{line}" for line in lines)


def _spec(tensor: Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape))
    grid = ""
    if tensor.scale:
        grid = f", {np.float32(tensor.scale)!s}f, {tensor.zero_point}"
    name, kind = kotlin_text(tensor.name), tensor.dtype.upper()
    return f"TensorSpec({name}, listOf({shape}), ElementType.{kind}{grid}),"


def _image(app: App, number: int) -> str:
    tensor, normalization = app.interface.inputs[number], app.normalizations[number]
    height, width, channels = tensor.image or (0, 0, 0)
    values: Values = {
        "parameter": tensor.identifier,
        "function": f"{tensor.identifier}From",
        "height": height,
        "width": width,
        "channels": channels,
        "normalization": normalization.source,
        "mean": ", ".join(f"{np.float32(m)!s}f" for m in normalization.mean),
        "std": ", ".join(f"{np.float32(s)!s}f" for s in normalization.std),
    }
    return fill("image_function.kt", values)


def _probabilities(app: App) -> str:
    if app.classes is None:
        return ""
    field = f"outputs.{app.interface.outputs[app.classes.output].identifier}"
    return f"softmax({field})" if app.classes.logits else field
