"""Cases of operators that move values about: see `op_cases`."""

from op_files import constant, integers, options, plain, real

NUMBERS = ("float32", "int8", "uint8", "int16", "int32", "int64")
QUANTIZED = ("float32", "int8", "uint8", "int16")
SOME = ("float32", "int8", "int16")
SHAPE = (1, 8, 8, 4)


def padding():
    for name in ("PAD", "PADV2", "MIRROR_PAD"):
        built = options("MirrorPad") if name == "MIRROR_PAD" else (0, None)
        value = [constant()] if name == "PADV2" else []
        for pads in ([[0, 0], [1, 1], [1, 1], [0, 0]], [[0, 0], [0, 0], [0, 0], [1, 1]]):
            shape = [a + sum(p) for a, p in zip(SHAPE, pads, strict=True)]
            given = [real(*SHAPE), integers(pads), *value]
            yield f"{name} {pads}", name, NUMBERS, given, [real(*shape)], built
        given = [real(1, 8, 8), integers([[0, 0], [1, 1], [0, 0]]), *value]
        yield f"{name} rank 3", name, SOME, given, [real(1, 10, 8)], built
    given = [real(*SHAPE), integers([[1, 1], [0, 0], [0, 0], [0, 0]])]
    yield "PAD batch", "PAD", SOME, given, [real(3, 8, 8, 4)]
    given = [real(*SHAPE), plain(4, 2)]
    yield "PAD computed", "PAD", SOME, given, [real(1, 10, 10, 4)]


def transposing():
    name = "TRANSPOSE"
    for turn in ([0, 2, 1, 3], [0, 3, 1, 2], [0, 1, 3, 2], [3, 2, 1, 0]):
        shape = [SHAPE[i] for i in turn]
        yield f"{name} {turn}", name, NUMBERS, [real(*SHAPE), integers(turn)], [real(*shape)]
    given = [real(2, 4, 3, 5, 2), integers([0, 2, 4, 3, 1])]
    yield f"{name} rank 5", name, SOME, given, [real(2, 3, 2, 5, 4)]
    yield f"{name} computed", name, SOME, [real(*SHAPE), plain(4)], [real(*SHAPE)]
    for name, kind, shape in (
        ("SPACE_TO_DEPTH", "SpaceToDepth", (1, 4, 4, 16)),
        ("DEPTH_TO_SPACE", "DepthToSpace", (1, 16, 16, 1)),
    ):
        yield name, name, NUMBERS, [real(*SHAPE)], [real(*shape)], options(kind, blockSize=2)
    crops = [integers([2, 2]), integers([[0, 0], [0, 0]])]
    given, found = [real(1, 8, 8, 4), *crops], [real(4, 4, 4, 4)]
    yield "SPACE_TO_BATCH_ND", "SPACE_TO_BATCH_ND", NUMBERS, given, found
    given, found = [real(4, 4, 4, 4), *crops], [real(1, 8, 8, 4)]
    yield "BATCH_TO_SPACE_ND", "BATCH_TO_SPACE_ND", NUMBERS, given, found


def reshaping():
    x = real(*SHAPE)
    built = options("Reshape", newShape=[1, 256])
    yield "RESHAPE", "RESHAPE", NUMBERS, [x, integers([1, 256])], [real(1, 256)], built
    yield "RESHAPE by option", "RESHAPE", SOME, [x], [real(1, 256)], built
    yield "RESHAPE computed", "RESHAPE", SOME, [x, plain(2)], [real(1, 256)]
    built = options("Squeeze", squeezeDims=[1])
    yield "SQUEEZE", "SQUEEZE", NUMBERS, [real(1, 1, 8, 4)], [real(1, 8, 4)], built
    built = options("Squeeze", squeezeDims=[2])
    yield "SQUEEZE inner", "SQUEEZE", SOME, [real(1, 8, 1, 4)], [real(1, 8, 4)], built
    yield "EXPAND_DIMS", "EXPAND_DIMS", NUMBERS, [real(1, 8, 4), integers([1])], [real(1, 1, 8, 4)]
    built = options("Shape", outType=2)
    yield "SHAPE", "SHAPE", SOME, [x], [plain(4)], built
    given = [real(1, 8, 4), plain(1)]
    yield "EXPAND_DIMS computed", "EXPAND_DIMS", SOME, given, [real(1, 1, 8, 4)]
    yield "FILL computed", "FILL", ("float32", "int8"), [plain(4), real()], [x], (0, None), 2
    given = [real(1, 8, 8, 1), plain(4)]
    yield "BROADCAST_TO computed", "BROADCAST_TO", SOME, given, [x], (0, None), 2
    given = [real(1, 8, 8, 1), integers([1, 8, 8, 4])]
    yield "BROADCAST_TO", "BROADCAST_TO", NUMBERS, given, [x], (0, None), 2
    yield "TILE", "TILE", NUMBERS, [real(1, 4, 4, 4), integers([1, 2, 2, 1])], [x]
    given = [integers([1, 8, 8, 4]), real()]
    yield "FILL", "FILL", NUMBERS, given, [x], (0, None), 2


def joining():
    x = real(*SHAPE)
    name = "CONCATENATION"
    for label, axis, more in (
        ("", 3, {}), (" of rows", 1, {}), (" of batches", 0, {}), (" relu", 3, {"a": 1}),
    ):  # fmt: skip
        built = options("Concatenation", axis=axis, fusedActivationFunction=more.get("a", 0))
        shape = [2 * d if i == axis else d for i, d in enumerate(SHAPE)]
        dtypes = SOME if label else NUMBERS
        yield f"{name}{label}", name, dtypes, [x, x], [real(*shape)], built
    built = options("Concatenation", axis=3)
    for count in (1, 3, 4, 5, 6):
        yield f"{name} of {count}", name, SOME, [x] * count, [real(1, 8, 8, 4 * count)], built
    given = [x, constant(*SHAPE)]
    yield f"{name} constant", name, SOME, given, [real(1, 8, 8, 8)], built
    given = [x, real(*SHAPE, scale=0.02)]
    yield f"{name} other scale", name, ("int8", "int16"), given, [real(1, 8, 8, 8)], built
    for axis in (0, 1, 3):
        built = options("Pack", valuesCount=2, axis=axis)
        shape = [8, 8, 4]
        shape.insert(axis, 2)
        dtypes = NUMBERS if axis == 1 else SOME
        yield f"PACK {axis}", "PACK", dtypes, [real(8, 8, 4)] * 2, [real(*shape)], built
    for axis in (0, 3):
        built = options("Unpack", num=SHAPE[axis], axis=axis)
        shape = [d for i, d in enumerate(SHAPE) if i != axis]
        dtypes = NUMBERS if axis == 3 else SOME
        yield f"UNPACK {axis}", "UNPACK", dtypes, [x], [real(*shape)] * SHAPE[axis], built


def slicing():
    x = real(*SHAPE)
    built = options("Split", numSplits=8)
    yield "SPLIT 8", "SPLIT", SOME, [integers(2), x], [real(1, 8, 1, 4)] * 8, built
    built = options("Split", numSplits=2)
    yield "SPLIT computed", "SPLIT", SOME, [plain(), x], [real(1, 8, 8, 2)] * 2, built
    built = options("SplitV", numSplits=2)
    given = [x, integers([2, 2]), plain()]
    yield "SPLIT_V computed", "SPLIT_V", SOME, given, [real(1, 8, 8, 2)] * 2, built
    for name in ("RESHAPE", "CONCATENATION", "TRANSPOSE", "PAD"):
        yield from _unscaled(name)
    for axis in (1, 3):
        built = options("Split", numSplits=2)
        shape = [d // 2 if i == axis else d for i, d in enumerate(SHAPE)]
        dtypes = NUMBERS if axis == 3 else SOME
        yield f"SPLIT {axis}", "SPLIT", dtypes, [integers(axis), x], [real(*shape)] * 2, built
        built = options("SplitV", numSplits=2)
        given = [x, integers([shape[axis]] * 2), integers(axis)]
        yield f"SPLIT_V {axis}", "SPLIT_V", dtypes, given, [real(*shape)] * 2, built
    built = options("Split", numSplits=2)
    given, found = [integers(0), real(2, 8, 8, 4)], [real(1, 8, 8, 4)] * 2
    yield "SPLIT batch", "SPLIT", SOME, given, found, built
    cut = [integers([0, 1, 1, 0]), integers([1, 4, 4, 4])]
    yield "SLICE", "SLICE", NUMBERS, [x, *cut], [real(1, 4, 4, 4)]
    yield "SLICE computed", "SLICE", SOME, [x, plain(4), plain(4)], [real(1, 4, 4, 4)]
    cut = [integers([0, 0, 1, 1, 0]), integers([1, 2, 2, 2, 4])]
    yield "SLICE rank 5", "SLICE", SOME, [real(1, 2, 4, 4, 4), *cut], [real(1, 2, 2, 2, 4)]
    yield (
        "SLICE rank 2",
        "SLICE",
        SOME,
        [real(1, 8), integers([0, 1]), integers([1, 4])],
        [real(1, 4)],
    )
    yield from _strided()
    for axis in (0, 1, 3):
        built = options("Gather", axis=axis)
        shape = [2 if i == axis else d for i, d in enumerate(SHAPE)]
        given = [x, integers([0, 0])]
        dtypes = NUMBERS if axis == 1 else SOME
        yield f"GATHER {axis}", "GATHER", dtypes, given, [real(*shape)], built
    given = [real(8, 4), plain(3)]
    yield "GATHER computed", "GATHER", NUMBERS, given, [real(3, 4)], options("Gather", axis=0)
    given = [real(*SHAPE), integers([[0, 1], [0, 2]])]
    yield "GATHER_ND", "GATHER_ND", NUMBERS, given, [real(2, 8, 4)]
    yield "REVERSE_V2", "REVERSE_V2", NUMBERS, [x, integers([1])], [x]
    yield "REVERSE_V2 depth", "REVERSE_V2", SOME, [x, integers([3])], [x]
    given = [x, constant(1, 2, 8, 4), integers([0, 1, 0, 0])]
    yield "DYNAMIC_UPDATE_SLICE", "DYNAMIC_UPDATE_SLICE", NUMBERS, given, [x]


def _strided():
    name = "STRIDED_SLICE"
    for label, begin, end, steps, masks, shape in [
        ("", [0, 1, 1, 0], [1, 5, 5, 4], [1, 1, 1, 1], {}, (1, 4, 4, 4)),
        (" steps 2", [0, 0, 0, 0], [1, 8, 8, 4], [1, 2, 2, 1], {}, (1, 4, 4, 4)),
        (" depth steps", [0, 0, 0, 0], [1, 8, 8, 4], [1, 1, 1, 2], {}, (1, 8, 8, 2)),
        (" backwards", [0, 7, 0, 0], [1, -9, 8, 4], [1, -1, 1, 1], {}, SHAPE),
        (" shrink", [0, 1, 0, 0], [1, 2, 8, 4], [1, 1, 1, 1], {"shrinkAxisMask": 2}, (1, 8, 4)),
        (" new axis", [0, 0], [1, 8], [1, 1], {"newAxisMask": 1}, (1, 1, 8, 8, 4)),
        (" ellipsis", [0, 0], [0, 2], [1, 1], {"ellipsisMask": 1}, (1, 8, 8, 2)),
    ]:  # fmt: skip
        given = [real(*SHAPE), integers(begin), integers(end), integers(steps)]
        dtypes = SOME if label else NUMBERS
        built = options("StridedSlice", **masks)
        yield f"{name}{label}", name, dtypes, given, [real(*shape)], built
    given = [real(*SHAPE), plain(4), plain(4), integers([1, 1, 1, 1])]
    yield f"{name} computed", name, SOME, given, [real(1, 4, 4, 4)], options("StridedSlice")


def resizing():
    for name, kind in (
        ("RESIZE_BILINEAR", "ResizeBilinear"),
        ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor"),
    ):
        for size, more in [
            ((16, 16), {}), ((16, 16), {"halfPixelCenters": True}), ((24, 24), {}),
            ((15, 15), {"alignCorners": True}), ((32, 32), {}), ((16, 8), {}), ((4, 4), {}),
            ((8, 8), {}), ((32, 32), {"halfPixelCenters": True}), ((64, 64), {}), ((12, 20), {}),
        ]:  # fmt: skip
            label = f"{name} {size} {' '.join(more)}".strip()
            built = options(kind, **more)
            given = [real(1, 8, 8, 4), integers(size)]
            dtypes = NUMBERS if label.endswith("(16, 16)") else SOME
            yield label, name, dtypes, given, [real(1, *size, 4)], built, 3
        given = [real(1, 8, 8, 4), plain(2)]
        yield f"{name} computed", name, SOME, given, [real(1, 16, 16, 4)], options(kind), 3


def converting():
    shape = SHAPE
    for kinds in [
        ("float32", "int8"), ("float32", "uint8"), ("float32", "int16"), ("int8", "int8"),
        ("int8", "uint8"), ("uint8", "int8"), ("int16", "int8"), ("int8", "int16"),
        ("int16", "int16"), ("uint8", "uint8"), ("int32", "int8"), ("int32", "int16"),
        ("int8", "int32"), ("int16", "int32"),
    ]:  # fmt: skip
        given = real(*shape, dtype=kinds[0], scale=0.05)
        found = real(*shape, dtype=kinds[1], scale=0.1)
        yield f"QUANTIZE {kinds[0]} to", "QUANTIZE", (kinds[1],), [given], [found]
    given = [real(*shape, scale=20.0)]
    yield "QUANTIZE coarse", "QUANTIZE", ("int8", "int16"), given, [real(*shape)]
    for kind in ("int8", "uint8", "int16"):
        given = [real(*shape)]
        yield "DEQUANTIZE " + kind, "DEQUANTIZE", (kind,), given, [plain(*shape, dtype="float32")]
    for given, found in [
        ("int32", "float32"), ("float32", "int32"), ("bool", "float32"), ("int8", "float32"),
        ("int32", "int64"), ("int64", "int32"), ("uint8", "float32"), ("float32", "bool"),
        ("uint32", "int32"), ("int32", "uint32"), ("int32", "int8"), ("int16", "int32"),
        ("float32", "int8"), ("uint32", "float32"), ("int32", "int16"), ("int8", "int32"),
    ]:  # fmt: skip
        parts = [plain(*shape, dtype=given)], [plain(*shape, dtype=found)]
        yield f"CAST {given} to", "CAST", (found,), *parts, options("Cast")


def rest():
    yield from resizing()
    yield from converting()
    x = real(*SHAPE)
    for beta in (1.0, 0.5):
        built = options("Softmax", beta=beta)
        yield (
            f"SOFTMAX of rank 2, {beta}",
            "SOFTMAX",
            QUANTIZED,
            [real(1, 10)],
            [real(1, 10)],
            built,
        )
    built = options("Softmax", beta=1.0)
    yield "SOFTMAX of rank 4", "SOFTMAX", SOME, [x], [x], built
    big = real(1, 300, 300, 2)
    yield "SOFTMAX large", "SOFTMAX", SOME, [big], [big], built
    given = [plain(3), constant(10, 4)]
    yield "EMBEDDING_LOOKUP", "EMBEDDING_LOOKUP", ("float32", "int8"), given, [real(3, 4)]
    given = [plain(3), integers(4), constant(), constant()]
    built = options("OneHot", axis=-1)
    yield "ONE_HOT", "ONE_HOT", ("float32", "int8", "int32"), given, [real(3, 4)], built
    given = [x, x, x]
    yield "ADD_N", "ADD_N", ("float32", "int32"), given, [x], options("AddN")
    given = [integers([[0], [2]]), real(2, 4), integers([8, 4])]
    yield "SCATTER_ND", "SCATTER_ND", NUMBERS, given, [real(8, 4)], options("ScatterNd")
    yield "TOPK_V2", "TOPK_V2", NUMBERS, [real(1, 8), integers(3)], [real(1, 3), plain(1, 3)]


def _unscaled(name):
    """int8 without scales."""
    x, y = real(*SHAPE, scale=0), real(1, 8, 4, 8, scale=0)
    given, found, built = {
        "RESHAPE": ([x, integers([1, 8, 4, 8])], [y], (0, None)),
        "CONCATENATION": ([y, y], [real(1, 8, 8, 8, scale=0)], options("Concatenation", axis=2)),
        "TRANSPOSE": ([x, integers([0, 2, 1, 3])], [x], (0, None)),
        "PAD": ([x, integers([[0, 0]] * 3 + [[1, 1]])], [real(1, 8, 8, 6, scale=0)], (0, None)),
    }[name]
    yield f"{name} unscaled", name, ("int8",), given, found, built
