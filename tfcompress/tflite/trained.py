"""What quantization-aware training left in a model, and whether it may be converted."""

import warnings

from tfcompress.layers import Compressed, FakeQuant
from tfcompress.techniques import Quantize


def quantizers(model) -> list[FakeQuant]:
    """The layers that round activations."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, FakeQuant)]


def quantize_techniques(model) -> list[Quantize]:
    """The `Quantize` of every layer with weights, and one for ranges that have no weights."""
    found = [
        technique
        for layer in model._flatten_layers()
        if isinstance(layer, Compressed)
        for technique in layer.techniques
        if isinstance(technique, Quantize)
    ]
    return found + [Quantize()] * bool(quantizers(model) and not found)


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
        delay = max((t.delay for t in techniques if isinstance(t, Quantize)), default=0)
        if int(getattr(layer, "last_step", delay)) < delay:
            raise ValueError(
                f"layer '{layer.name}' is quantized from step {delay} on; received a model trained "
                f"for {int(layer.last_step)} steps. Train it longer, or with a smaller delay."
            )


def require_ranges(model) -> None:
    """Raises if no range of activations was ever observed; warns if some were not."""
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
    if unseen:
        warnings.warn(
            f"these activations were always 0 while training: {', '.join(unseen[:10])}.",
            stacklevel=4,
        )


def weight_bits(model) -> set[int]:
    """The widths that the weights were trained for, 8 if nothing has weights."""
    return {technique.bits for technique in quantize_techniques(model)} or {8}
