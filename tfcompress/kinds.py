"""What is known of each kind of layer and operation, by the name of its class.

Names stand for layers of Keras and of tf_keras, for our own, and for operations of `keras.ops`
alike. Nothing is imported.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

# Names of classes -> their traits, which are explained below. Before the bar: what they compute;
# behind it: what LiteRT makes of them, by traits, or by the name of the operator that it has.
_TABLE = {
    "Dense": "linear | integer folding fusing",
    "EinsumDense": "linear |",
    "Conv1D Conv2D": "linear convolution | integer folding fusing",
    "Conv3D": "linear convolution |",
    "Conv1DTranspose Conv2DTranspose": "linear transposed | integer folding fusing",
    "Conv3DTranspose": "linear transposed |",
    "DepthwiseConv1D DepthwiseConv2D": "linear depthwise | integer folding fusing",
    "SeparableConv1D SeparableConv2D": "linear separable |",
    "Embedding ReversibleEmbedding Parameter InputLayer StepRNN": "| integer",
    "Normalization PReLU Matmul Dot": "| integer",
    "LSTM GRU SimpleRNN": "recurrent |",
    "IntegerLSTM": "| UNIDIRECTIONAL_SEQUENCE_LSTM",
    "ConvLSTM1D ConvLSTM2D ConvLSTM3D": "conv_recurrent |",
    "BatchNormalization": "| integer fusing",
    "LayerNormalization GroupNormalization RMSNormalization": "normalizing |",
    "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D": "pointwise dropout | transparent",
    "AlphaDropout GaussianDropout GaussianNoise": "pointwise dropout | transparent",
    "ActivityRegularization AddLoss Identity SetMask StopGradient": "pointwise | transparent",
    "RandomBrightness RandomContrast RandomCrop RandomErasing RandomFlip RandomRotation "
    "RandomTranslation RandomZoom StochasticDepth": "| transparent",
    "Add Subtract Multiply": "pointwise | integer fusing",
    "Rescaling Silu": "pointwise | integer",
    "Abs Absolute": "pointwise | ABS",
    "Divide Reciprocal TrueDivide": "pointwise | DIV",
    "ELU Elu": "pointwise | ELU",
    "Exp": "pointwise | EXP",
    "Gelu": "pointwise | GELU",
    "HardSilu": "pointwise | HARD_SWISH",
    "LeakyReLU LeakyRelu": "pointwise | LEAKY_RELU",
    "Log": "pointwise | LOG",
    "ReLU Relu": "pointwise | RELU",
    "Relu6": "pointwise | RELU6",
    "Rsqrt": "pointwise | RSQRT",
    "Sigmoid": "pointwise | LOGISTIC",
    "Sqrt": "pointwise | SQRT",
    "Tanh": "pointwise | TANH",
    "Where": "pointwise | SELECT_V2",
    "Ceil": "pointwise | CEIL",
    "Cos": "pointwise | COS",
    "Equal": "pointwise | EQUAL",
    "Floor": "pointwise | FLOOR",
    "Greater": "pointwise | GREATER",
    "GreaterEqual": "pointwise | GREATER_EQUAL",
    "Less": "pointwise | LESS",
    "LessEqual": "pointwise | LESS_EQUAL",
    "NotEqual": "pointwise | NOT_EQUAL",
    "Round": "pointwise | ROUND",
    "Sign": "pointwise | SIGN",
    "Sin": "pointwise | SIN",
    "Power": "pointwise | POW",
    "Cumsum": "| CUMSUM",
    "Argmax": "| ARG_MAX",
    "Argmin": "| ARG_MIN",
    "Maximum Minimum": "pointwise | integer same_scale filling",
    "Cast": "pointwise | CAST",  # of whole numbers and truths; one of floats is none in the file
    "ConvertToTensor Copy": "pointwise | same_scale",
    "Activation Average Celu Clip Erf Expm1 FakeQuant HardShrink HardSigmoid HardTanh Log1p "
    "LogSigmoid LogicalAnd LogicalNot LogicalOr NanToNum Negative Selu SoftShrink "
    "Softplus Softsign SparseSigmoid Square Squareplus TanhShrink Threshold": "pointwise |",
    "Softmax": "mixing | SOFTMAX",
    "LogSoftmax": "mixing | LOG_SOFTMAX",
    "Sparsemax": "mixing |",
    "Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Cbrt Cosh Erfc Erfinv Exp2 Fabs "
    "FloorDivide Fmax Fmin Fmod Heaviside Hypot Isfinite Isinf Isnan Log10 Log2 Logaddexp "
    "LogicalXor Mod OnesLike SaturateCast Sinc Sinh Tan Trunc ZerosLike": "pointwise |",
    "UnitNormalization Normalize": "joint |",
    "Masking": "joint | transparent",
    "KeepMask": "| transparent",
    "AveragePooling1D AveragePooling2D AveragePool Resizing Resize": "spatial | rounding",
    "MaxPooling1D MaxPooling2D MaxPooling3D MaxPool ZeroPadding1D ZeroPadding2D ZeroPadding3D "
    "Cropping1D Cropping2D Cropping3D": "spatial | same_scale",
    "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D "
    "AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D AdaptiveAveragePool "
    "AdaptiveMaxPool AveragePooling3D UpSampling1D UpSampling2D UpSampling3D PadImages "
    "CropImages": "spatial |",
    "GlobalMaxPooling1D GlobalMaxPooling2D": "pooling_all | same_scale",
    "GlobalAveragePooling1D GlobalAveragePooling2D": "pooling_all | integer",
    "GlobalMaxPooling3D GlobalAveragePooling3D": "pooling_all |",
    "Max Amax Min Amin": "reducing | same_scale",
    "Mean Sum": "reducing | integer",
    "Prod": "reducing | REDUCE_PROD",
    "Std Var Median Any All": "reducing |",
    "Concatenate Stack Pad": "moving | same_scale filling",
    "Flatten Reshape Permute Transpose Swapaxes Moveaxis ExpandDims Squeeze Split Unstack GetItem "
    "RepeatVector BroadcastTo RepeatBatch Take Repeat Tile Flip Roll Slice DepthToSpace "
    "SpaceToDepth": "moving | same_scale",
    "Ravel TakeAlongAxis": "| same_scale",
}

# The operators of LiteRT whose kernels of 8 bits are used, and from which version on they have
# them; 0 of those that litert-quantizer writes by itself.
OPERATORS = dict.fromkeys(
    "ADD AVERAGE_POOL_2D BATCH_MATMUL BROADCAST_TO CONCATENATION CONV_2D DEPTHWISE_CONV_2D DIV "
    "DYNAMIC_UPDATE_SLICE EMBEDDING_LOOKUP EQUAL FULLY_CONNECTED GATHER GATHER_ND GELU HARD_SWISH "
    "LOGISTIC MAXIMUM MAX_POOL_2D MEAN MIRROR_PAD MUL NOT_EQUAL PACK PAD PADV2 REDUCE_MIN RELU "
    "RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SELECT_V2 SLICE SOFTMAX "
    "SPACE_TO_DEPTH SPLIT SQRT SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TRANSPOSE "
    "TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK".split(),
    0,
) | {
    "LEAKY_RELU": 2, "RELU6": 2, "RELU_N1_TO_1": 1, "PRELU": 1, "ELU": 1, "EXPAND_DIMS": 1,
    "SQUEEZE": 1, "TILE": 2, "REDUCE_MAX": 2, "MINIMUM": 2, "ABS": 2, "EXP": 2, "LOG": 2,
    "DEPTH_TO_SPACE": 1, "SPACE_TO_BATCH_ND": 2, "BATCH_TO_SPACE_ND": 2, "REVERSE_V2": 1,
    "SPLIT_V": 2, "GREATER": 2, "GREATER_EQUAL": 2, "LESS": 2, "LESS_EQUAL": 2, "ARG_MAX": 2,
    "ARG_MIN": 2, "LOG_SOFTMAX": 2, "CAST": 1,
}  # fmt: skip


def _named(trait: str) -> frozenset[str]:
    """The classes that have a trait."""
    rows = ((names.split(), traits.split()) for names, traits in _TABLE.items())
    return frozenset(name for names, traits in rows if trait in traits for name in names)


# Layers that add up products with weights, and may end with an activation.
LINEAR = _named("linear")
CONVOLUTIONS, TRANSPOSED = _named("convolution"), _named("transposed")
DEPTHWISE, SEPARABLE = _named("depthwise"), _named("separable")
# Layers that divide by a statistic of their input, in inference, too.
NORMALIZING = _named("normalizing")
# The ranges that kernels of 8 bits fix for what they give.
FIXED_RANGES = {
    "SOFTMAX": (0.0, 255 / 256),
    "LOGISTIC": (0.0, 255 / 256),
    "TANH": (-1.0, 127 / 128),
    "LOG_SOFTMAX": (-255 / 16, 0.0),
}


def share_range(count: int) -> tuple[float, float] | None:
    """The range of 8 bits on whose grid all shares lie of so many truths; None if there is none."""
    steps = 255 // count * count
    return (0.0, 255 / steps) if steps else None


RECURRENT, CONV_RECURRENT = _named("recurrent"), _named("conv_recurrent")
# Layers that do nothing but in training.
DROPOUTS = _named("dropout")

# What computes each value from the values at its place alone; or from all channels there; or
# divides or masks what is at a place together.
POINTWISE, MIXING, JOINT = _named("pointwise"), _named("mixing"), _named("joint")
# What changes positions, each channel for itself; takes all positions to one; computes one value of
# all along some axes; only moves or repeats values.
SPATIAL, POOLING_ALL = _named("spatial"), _named("pooling_all")
REDUCING, MOVING = _named("reducing"), _named("moving")

# What LiteRT has an integer kernel for that gives a scale of its own; folds a BatchNormalization
# into that comes after it; fuses a ReLU into.
FOLDING, FUSING = _named("folding"), _named("fusing")
INTEGER = _named("integer").union(*map(_named, OPERATORS))
# What keeps the scale of its input: with the values of it; between the steps of its grid; as it is
# no operation any more in the file.
SAME_SCALE, ROUNDING, TRANSPARENT = _named("same_scale"), _named("rounding"), _named("transparent")
KEEPING = SAME_SCALE | ROUNDING | TRANSPARENT
# What keeps the scale of its inputs, and may put constants among their values.
FILLING = _named("filling")

# Layer -> axes of its kernel that count inputs (channels, not positions), and outputs.
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

# Layer -> axes of its kernels along which the file has scales where these are not all outputs: the
# gates of an LSTM.
_SCALED = {"IntegerLSTM": (1,)}

_HOMES = ("keras", "tf_keras", "tfcompress")

# The names under which Keras keeps the weights that compression is meant for.
KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings")

# Classes of users' layers -> names of weights that are kernels, too.
_DECLARED: dict[type, tuple[str, ...]] = {}


def operator_of(kind: str) -> str:
    """The operator of LiteRT that a kind of operation is; '' if the table names none."""
    traits = next((row.split() for names, row in _TABLE.items() if kind in names.split()), [])
    return next((trait for trait in traits if trait.isupper()), "")


def register_kernel(*names: str) -> Callable[[type], type]:
    """Declares which weights of a layer class of your own are kernels.

    Pruning and clustering are meant for kernels, not for the vectors and tables that layers keep
    beside them. They know the kernels of Keras by their names ("kernel", "depthwise_kernel",
    "pointwise_kernel", "recurrent_kernel", "embeddings"); those of your own layers that are called
    otherwise are declared, once, where the class is defined, as it is registered for saving.
    Classes derived from it have them, too.

    Args:
        *names: of weights: their attributes in the layer, or the names given to `add_weight`. The
            last axis counts outputs, the one before inputs.

    Returns:
        A decorator of a layer class, which gives the class back; call it on a class from elsewhere.

    Raises:
        TypeError: if it is given something else than names, or decorates something else than a
            class.

    Example:
        >>> import keras
        >>> @register_kernel("mixing")
        ... @keras.saving.register_keras_serializable("mine")
        ... class Mixer(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.mixing = self.add_weight(shape=(shape[-1], shape[-1]))
        ...
        ...     def call(self, x):
        ...         return keras.ops.matmul(x, self.mixing)
    """
    if not names or not all(isinstance(name, str) and name for name in names):
        raise TypeError(
            f"register_kernel takes the names of weights; received {names!r}. Write "
            "@register_kernel('weight') above the class."
        )

    def declare(cls: type) -> type:
        if not isinstance(cls, type):
            raise TypeError(
                f"register_kernel decorates a class of layers; received {cls!r}. Pass its class."
            )
        _DECLARED[cls] = tuple(dict.fromkeys((*_DECLARED.get(cls, ()), *names)))
        return cls

    return declare


def is_kernel(layer: Any, variable: Any) -> bool:
    """Whether a weight of a layer is what compression is meant for."""
    declared = (name for cls in type(layer).__mro__ for name in _DECLARED.get(cls, ()))
    return variable.name in KERNELS or any(
        variable.name == name or getattr(layer, name, None) is variable for name in declared
    )


def is_known(layer: Any) -> bool:
    """Whether a layer's class is one of Keras, or of ours."""
    return type(layer).__module__.partition(".")[0] in _HOMES


def kinds_of(operation) -> Iterator[str]:
    """The names of an operation's class and of those it derives from, as far as they are known."""
    for cls in type(operation).__mro__:
        if cls.__module__.partition(".")[0] in _HOMES:
            yield cls.__name__


def is_of(operation, names: Collection[str]) -> bool:
    """Whether an operation is of one of some classes, or derives from one."""
    return any(name in names for name in kinds_of(operation))


def is_exactly(operation, names: Collection[str]) -> bool:
    """Whether an operation is of one of some classes itself, and not of a user's that derives."""
    cls = type(operation)
    return cls.__name__ in names and cls.__module__.partition(".")[0] in _HOMES


def has_plain_weights(layer) -> bool:
    """Whether a layer computes with its weights as they are: without LoRA's."""
    return not getattr(layer, "lora_enabled", False)


def is_depthwise(layer, weight: str = "kernel") -> bool:
    """Whether a weight of a layer is a depthwise kernel."""
    return weight == "depthwise_kernel" or is_of(layer, DEPTHWISE)


def weight_axes(
    layer, weight: str = "kernel", rank: int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a layer's weight that count its inputs, and those that count its outputs.

    Args:
        rank: of the weight; by default that of the layer's weight of this name, if it has one.

    Returns (input axes, output axes). Positions of a convolution are in neither; a depthwise kernel
    has no input axes. Of an unknown layer the last axis is the output, the one before the input.
    """
    if rank is None:
        rank = next((len(v.shape) for v in layer.variables if v.name == weight), None)
    if weight == "depthwise_kernel":
        return (), (rank - 2, rank - 1) if rank else ()
    if is_of(layer, _SCALED):  # (inputs, gates, units)
        return (0,), (1, 2)
    if weight in ("pointwise_kernel", "recurrent_kernel") and rank:
        return (rank - 2,), (rank - 1,)
    for kind in kinds_of(layer):
        if kind in _AXES:
            return _AXES[kind]
        if kind == "EinsumDense":
            return _einsum_axes(layer)
    return ((rank - 2,), (rank - 1,)) if rank and rank > 1 else ((), ())


def channel_axes(layer) -> tuple[int, ...]:
    """The axes of a layer's kernel that count its output channels; () if LiteRT knows none."""
    for kind in kinds_of(layer):
        if kind in _SCALED:
            return _SCALED[kind]
    known = (_AXES[kind][1] for kind in kinds_of(layer) if kind in _AXES and kind != "Embedding")
    return next(known, ())


def equation_of(layer) -> tuple[str, str, str]:
    """The letters of an EinsumDense: of its inputs, its kernel and its outputs."""
    left, outputs = layer.equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    return inputs, kernel, outputs


def _einsum_axes(layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    _, kernel, output = equation_of(layer)
    outputs = tuple(i for i, letter in enumerate(kernel) if letter in output)
    return tuple(i for i in range(len(kernel)) if i not in outputs), outputs


def channel_place(operation) -> int:
    """The axis of the tensors of a layer or operation that counts channels: 1 or -1."""
    return 1 if getattr(operation, "data_format", None) == "channels_first" else -1
