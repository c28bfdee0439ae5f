"""A model whose outputs are known, and metadata for it."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from tflite_by_hand import OPS, TYPES, build, code, graph, operator, tensor

from tfcompress.tflite.metadata import Metadata, TensorMetadata

LABELS = ("red", "grün", "blue")
FULL = Metadata(
    name="colours",
    description="mean colours of a picture",
    version="1.2",
    author="Jo",
    license="MIT",
    inputs=(TensorMetadata("image", "a picture", mean=127.5, std=127.5, minimum=-1, maximum=1),),
    outputs=(
        TensorMetadata(
            "colour", "of the picture", minimum=[0, 0.1, 0.2], maximum=[1, 1, 1], labels=LABELS
        ),
    ),
)


def colours(dtype, outputs=1):
    """Gives the means of red, green and blue over an 8 x 8 picture, in the picture's own grid."""
    kind = TYPES.UINT8 if dtype == "uint8" else TYPES.FLOAT32
    grid = {"scale": [1 / 255], "zero_point": [0]} if dtype == "uint8" else {}
    reducer = schema.ReducerOptionsT()
    reducer.keepDims = False
    names = ["colour", "tint"][:outputs]
    tensors = [
        tensor("x", [1, 8, 8, 3], kind, 0, **grid),
        tensor("axes", [2], TYPES.INT32, 1),
        *(tensor(f"y{i}", [1, 3], kind, 0, **grid) for i in range(outputs)),
    ]
    operators = [
        operator(0, [0, 1], [2 + i], schema.BuiltinOptions.ReducerOptions, reducer)
        for i in range(outputs)
    ]
    indices = [2 + i for i in range(outputs)]
    # Signatures may name things in another order than the graph does.
    maps = [schema.TensorMapT(name, i) for name, i in zip(names, indices, strict=True)][::-1]
    signature = schema.SignatureDefT(
        signatureKey="serve",
        subgraphIndex=0,
        inputs=[schema.TensorMapT("image", 0)],
        outputs=maps,
    )
    axes = np.int32([1, 2]).tobytes()
    parts = [graph(tensors, operators, [0], indices)]
    return build([code(OPS.MEAN, 2)], parts, [axes], signatureDefs=[signature])
