"""Samples and what a made-up teacher gives for them, for tests of its cache."""

import json

import numpy as np

from tfcompress.distillation.cache import TeacherCache

SPECS = [((3,), "float32"), ((2, 2), "float16")]


def samples(count, seed=0):
    """Inputs of two kinds, and two outputs that tell the samples apart."""
    random = np.random.default_rng(seed)
    inputs = [
        random.normal(size=(count, 4, 2)).astype("float32"),
        random.integers(-128, 128, count, dtype="int8"),
    ]
    outputs = [random.normal(size=(count, *shape)).astype(dtype) for shape, dtype in SPECS]
    return inputs, outputs


def take(arrays, rows):
    return [array[rows] for array in arrays]


def fill(cache, inputs, outputs, batch=7):
    for start in range(0, len(inputs[0]), batch):
        part = slice(start, start + batch)
        assert not cache.lookup(take(inputs, part))[0]
        cache.store(take(inputs, part), take(outputs, part))


def filled(path, inputs, outputs, whole_epochs=True, **options):
    cache = TeacherCache(path)
    cache.begin("teacher", SPECS, whole_epochs=whole_epochs, **options)
    fill(cache, inputs, outputs)
    cache.end_epoch()
    return cache


def require_found(cache, inputs, outputs):
    hit, rows = cache.lookup(inputs)
    assert hit
    for row, output in zip(rows, outputs, strict=True):
        assert row.dtype == output.dtype
        assert type(row) is np.ndarray
        np.testing.assert_array_equal(row, output)


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arrays_in(path):
    """The header of a cache's file, its keys, their order and the outputs."""
    arrays = []
    with open(path, "rb") as stream:
        while stream.tell() < path.stat().st_size:
            stream.seek(-stream.tell() % 64, 1)
            arrays.append(np.load(stream))
    return [json.loads(arrays[0].tobytes()), *arrays[1:]]


def write_arrays(path, header, *arrays):
    text = json.dumps(header) if isinstance(header, dict) else header
    with open(path, "wb") as stream:
        for array in (np.frombuffer(text.encode(), np.uint8), *arrays):
            stream.seek(-stream.tell() % 64, 1)
            np.save(stream, array)
