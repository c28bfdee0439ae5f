"""The model that a .tflite file is measured against, as a function on batches."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress import files
from tfcompress.baking import is_compressed, require_advanced
from tfcompress.graph import flatten
from tfcompress.layers import Compressed, FakeQuant
from tfcompress.techniques import Quantize
from tfcompress.tflite import flatbuffer, lower, signature


class Reference:
    """A Keras model or SavedModel in inference, with the names that its .tflite uses.

    Args:
        model: a `keras.Model`, or the path of a .keras, .h5 or SavedModel.

    Attributes:
        model: the `keras.Model`; None for a SavedModel.
        inputs: descriptions with `name`, `shape` (batch first) and `dtype`.
        outputs: names.
    """

    def __init__(self, model: Any):
        if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
            model = files.load_model(model)
        if isinstance(model, files.SavedModel):
            self.model = None
            self._load(model.path)
        elif isinstance(model, keras.Model):
            self.model = model
            require_advanced(model)
            self._trace(model)
        else:
            raise TypeError(
                "model must be a keras.Model or the path of a .keras, .h5 or SavedModel; received "
                f"{type(model).__module__}.{type(model).__name__}."
            )

    def _trace(self, model: keras.Model) -> None:
        flat = flatten(model)
        self.inputs: list[Any] = tree.flatten(flat._inputs_struct)
        self.outputs = lower.output_names(flat)
        struct = flat._inputs_struct

        @tf.function(jit_compile=False)
        def call(values):
            packed = tree.pack_sequence_as(struct, values)
            return tree.flatten(model(packed, training=False))

        self._call = call

    def _load(self, path) -> None:
        loaded = tf.saved_model.load(str(path))
        key = next((k for k in ("serve", "serving_default") if k in loaded.signatures), None)
        key = key or next(iter(loaded.signatures), None)
        if key is None:
            raise ValueError(
                f"the SavedModel at '{path}' must have a signature; received one without. Save it "
                "with model.export(path) of Keras 3."
            )
        function = loaded.signatures[key]
        specs = sorted(function.structured_input_signature[1].items())
        self.inputs = [
            signature.Input(name, (None, *spec.shape.as_list()[1:]), spec.dtype.name)
            for name, spec in specs
        ]
        self.outputs = sorted(function.structured_outputs)

        def call(values):
            given = function(**{e.name: v for e, v in zip(self.inputs, values, strict=True)})
            return [given[name] for name in self.outputs]

        self._call = call
        self._loaded = loaded  # a signature does not keep its variables alive

    def __call__(self, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Runs the model.

        Args:
            batch: values by input name, batch first.

        Returns:
            Arrays in the order of `outputs`: float32, or whole numbers.

        Raises:
            ValueError: if the model gives NaN or infinity.
        """
        values = self._call([tf.convert_to_tensor(batch[entry.name]) for entry in self.inputs])
        results = []
        for name, value in zip(self.outputs, values, strict=True):
            array = np.asarray(value)
            results.append(array if array.dtype.kind in "iub" else array.astype(np.float32))
            bad = int(array.size - np.isfinite(results[-1]).sum())
            if bad:
                raise ValueError(
                    f"the Keras model gives {bad} value(s) that are NaN or infinite at output "
                    f"'{name}'; expected finite numbers. Look for a division by 0, or for a "
                    "training that diverged."
                )
        return results


def is_simulated(model: keras.Model | None, file: Any) -> bool:
    """Whether a file should give what the model gives, up to rounding.

    True for float files of plain models, and for integer files of models that were trained to
    round as the file does. Else the difference holds the price of quantization.

    Args:
        model: a `keras.Model`; None for a SavedModel, which simulates nothing.
        file: a `ModelT`.

    Returns:
        The answer.
    """
    activations: set[str] = set()
    constants: set[str] = set()
    for tensor in (t for graph in file.subgraphs for t in graph.tensors):
        quantized = tensor.quantization is not None and tensor.quantization.scale is not None
        if quantized and len(tensor.quantization.scale):
            kind = constants if flatbuffer.is_constant(file, tensor) else activations
            kind.add(flatbuffer.dtype_name(tensor))
    simulated = model is not None and is_compressed(model)
    layers = list(model._flatten_layers()) if simulated and model is not None else []
    bits = {layer.bits for layer in layers if isinstance(layer, FakeQuant)}
    if not bits:
        return not activations and not constants
    techniques = [t for layer in layers if isinstance(layer, Compressed) for t in layer.techniques]
    widths = [t.bits for t in techniques if isinstance(t, Quantize)]
    if "int4" in constants and min(widths, default=8) > 4:
        return False
    # 16-bit steps are too fine for the float32 that simulates them.
    return bits == {8} and bool(activations) and "int16" not in activations
