"""Recipes for ai-edge-quantizer: which operations it is to quantize, and how."""

from typing import Any

from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithm_manager import AlgorithmName

_GRANULARITY = {
    "c": qtyping.QuantGranularity.CHANNELWISE,
    "t": qtyping.QuantGranularity.TENSORWISE,
}
# The tag of operations that stay as they are.
UNTOUCHED = "keep"


def static_recipe(tags: set[str], io_dtype: str) -> list[dict[str, Any]]:
    """A recipe that quantizes operations by the tags in their outputs' names.

    Args:
        tags: such as "a8w4c" (activations, weights, "c" or "t" as in `op_config`), or `UNTOUCHED`.
        io_dtype: "float32", "int8", "uint8" or "int16": the type of inputs and outputs.

    Returns:
        The entries, as ai-edge-quantizer takes them.
    """
    recipe = []
    for tag in sorted(tags - {UNTOUCHED}):
        activations, rest = tag[1:].split("w")
        config = op_config(int(activations), int(rest[:-1]), rest[-1])
        recipe.append(entry(f"^{tag}_", config))
    if io_dtype == "float32":
        return recipe + [untouched(name) for name in ("INPUT", "OUTPUT")]
    bits = 16 if io_dtype == "int16" else 8
    config = op_config(bits, 8, "c", unsigned=io_dtype == "uint8")
    return recipe + [entry(".*", config, name) for name in ("INPUT", "OUTPUT")]


def entry(regex: str, config: dict[str, Any], operation: str = "*") -> dict[str, Any]:
    """An entry that quantizes operations with outputs whose names fit a regular expression."""
    return {
        "regex": regex,
        "operation": operation,
        "algorithm_key": AlgorithmName.MIN_MAX_UNIFORM_QUANT,
        "op_config": config,
    }


def untouched(operation: str) -> dict[str, Any]:
    """An entry that leaves all operations of a type as they are."""
    return {"regex": ".*", "operation": operation, "algorithm_key": AlgorithmName.NO_QUANTIZE}


def op_config(activations: int | None, weights: int, kind: str, unsigned: bool = False):
    """How an operation is to be quantized.

    Args:
        activations: their bits; None if they stay float.
        weights: their bits.
        kind: "t" for one scale of the weights or "c" for one a channel.
        unsigned: whether activations are unsigned.

    Returns:
        The `op_config` of an entry.
    """
    integer = qtyping.TensorDataType.UINT if unsigned else qtyping.TensorDataType.INT
    config = qtyping.OpQuantizationConfig(
        activation_tensor_config=activations
        and qtyping.TensorQuantizationConfig(
            num_bits=activations, symmetric=activations == 16, dtype=integer
        ),
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=weights, symmetric=True, granularity=_GRANULARITY[kind]
        ),
        compute_precision=qtyping.ComputePrecision.INTEGER
        if activations
        else qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=activations is None,
    )
    return config.to_dict()
