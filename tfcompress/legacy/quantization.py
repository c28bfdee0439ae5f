"""Quantization-aware training of a tf_keras model by TFMOT's 8-bit scheme."""

from typing import Any

from tfcompress.legacy import MOVE, import_tf_keras, import_tfmot, settings
from tfcompress.recipe import Recipe
from tfcompress.techniques import Quantize, Technique

# Layers whose zeros or clusters TFMOT preserves.
_PRESERVED = ("Conv2D", "Dense")


def quantize(model: Any, recipe: Recipe) -> Any:
    """A tf_keras model under TFMOT's quantization wrappers; zeros and clusters found are kept.

    Args:
        model: a plain model, which is used up.
        recipe: rules with `Quantize` or nothing.

    Returns:
        A `tf_keras.Model`, not compiled.

    Raises:
        ValueError: if TFMOT cannot quantize so.
    """
    tf_keras, keras = import_tf_keras(), import_tfmot().quantization.keras
    if any(isinstance(layer, tf_keras.Model) for layer in model.layers):
        raise ValueError(
            f"TFMOT does not quantize nested models; received model '{model.name}', which has "
            f"one. Put its layers into the outer model. {MOVE}"
        )
    chosen = []
    for layer in model.layers:
        techniques = recipe.techniques_of(layer)
        if techniques:
            _check(techniques[0])
            chosen.append(layer)
    names = {layer.name for layer in chosen}
    scheme = _scheme(chosen)

    def annotate(layer):
        if layer.name not in names or isinstance(layer, tf_keras.layers.InputLayer):
            return layer
        return keras.quantize_annotate_layer(layer)

    try:
        annotated = tf_keras.models.clone_model(model, clone_function=annotate)
        with keras.quantize_scope():
            return keras.quantize_apply(annotated, *([scheme] if scheme else []))
    except (KeyError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            f"TFMOT cannot quantize model '{model.name}': {text} Leave such layers out with "
            f"Rule(name, []). {MOVE}"
        ) from error


def _check(technique: Technique) -> None:
    for name, value in Quantize().get_config().items():
        received = getattr(technique, name)
        if received != value and name != "axes":
            raise ValueError(
                "TFMOT has one scheme for quantization: 8 bits, Dense per tensor, from the first "
                f"step on; received {name}={received!r}. {MOVE}"
            )


def _scheme(layers: list[Any]) -> Any:
    """TFMOT's scheme that keeps the zeros and clusters which there are; None for the plain one."""
    kernels = {
        layer.name: layer.kernel.numpy() for layer in layers if type(layer).__name__ in _PRESERVED
    }
    clustered = any(settings.is_clustered(values) for values in kernels.values())
    zeros = {name: settings.sparsity(values) for name, values in kernels.items()}
    sparse = any(value >= settings.SPARSE for value in zeros.values())
    experimental = import_tfmot().experimental.combine
    if not clustered:
        return experimental.Default8BitPrunePreserveQuantizeScheme() if sparse else None
    without = [name for name, value in zeros.items() if value == 0]
    if sparse and without:
        # One layer without zeros makes TFMOT forget those of all layers after it.
        names = ", ".join(f"'{name}'" for name in without)
        raise ValueError(
            "TFMOT keeps zeros and clusters together only if every quantized Conv2D and Dense has "
            f"zeros; received none in {names}. Leave these out with Rule(name, []). {MOVE}"
        )
    return experimental.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=sparse)
