"""Which axes of a weight count its inputs and which its outputs."""

# Layer -> axes of its kernel: inputs (channels, not positions) and outputs.
_AXES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "Conv1D": ((1,), (2,)),
    "Conv2D": ((2,), (3,)),
    "Conv3D": ((3,), (4,)),
    "Conv1DTranspose": ((2,), (1,)),
    "Conv2DTranspose": ((3,), (2,)),
    "Conv3DTranspose": ((4,), (3,)),
    "DepthwiseConv1D": ((), (1, 2)),
    "DepthwiseConv2D": ((), (2, 3)),
    "Dense": ((0,), (1,)),
    "Embedding": ((0,), (1,)),
}

_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")


def is_depthwise(layer, weight: str = "kernel") -> bool:
    """Whether a weight of a layer is a depthwise kernel."""
    return weight == "depthwise_kernel" or any(
        cls.__name__ in _DEPTHWISE for cls in type(layer).__mro__
    )


def weight_axes(
    layer, weight: str = "kernel", rank: int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a layer's weight that count its inputs, and those that count its outputs.

    Returns (input axes, output axes). Positions of a convolution are in neither; a depthwise kernel
    has no input axes. Of an unknown layer the last axis is the output, the one before the input.
    """
    if weight == "depthwise_kernel":
        return (), (rank - 2, rank - 1) if rank else ()
    if weight in ("pointwise_kernel", "recurrent_kernel") and rank:
        return (rank - 2,), (rank - 1,)
    for cls in type(layer).__mro__:
        if cls.__name__ in _AXES:
            return _AXES[cls.__name__]
        if cls.__name__ == "EinsumDense":
            return _einsum_axes(layer.equation)
    return ((rank - 2,), (rank - 1,)) if rank and rank > 1 else ((), ())


def channel_axes(layer) -> tuple[int, ...]:
    """The axes of a layer's kernel that count its output channels; () if LiteRT knows none."""
    for cls in type(layer).__mro__:
        if cls.__name__ in _AXES and cls.__name__ != "Embedding":
            return _AXES[cls.__name__][1]
    return ()


def _einsum_axes(equation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    inputs, output = equation.replace(" ", "").split("->")
    kernel = inputs.split(",")[1]
    outputs = tuple(i for i, letter in enumerate(kernel) if letter in output)
    return tuple(i for i in range(len(kernel)) if i not in outputs), outputs
