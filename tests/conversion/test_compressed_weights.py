"""`convert(..., compressed_weights=True)`: equal to the plain file in TFLite Micro, or refused."""

import numpy as np
import pytest
from coded_models import random_net

import tfcompress as tfc
from tfcompress.conversion.settings import settle
from tfcompress.tflite import flatbuffer
from tfcompress.tools import runtimes
from tfcompress.tools.environments import Unavailable


def convert(model, data, path, **options):
    return tfc.convert(
        model, path, calibration=data, target="microcontroller", io_dtype="int8", **options
    )


def outputs(data, count=4):
    file = flatbuffer.read(data)
    graph, random = file.subgraphs[0], np.random.default_rng(7)
    shapes = [graph.tensors[i].shape for i in graph.inputs]
    given = [
        [random.integers(-128, 128, shape).astype(np.int8) for shape in shapes]
        for _ in range(count)
    ]
    return [value for row in runtimes.tflm_outputs(data, given) for value in row]


def assert_equal(model, data, folder, **options):
    plain, coded = folder / "plain.tflite", folder / "coded.tflite"
    convert(model, data, plain, **options)
    report = convert(model, data, coded, compressed_weights=True, **options)
    ours, theirs = outputs(plain.read_bytes()), outputs(coded.read_bytes())
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert report.compressed.file_bytes == len(coded.read_bytes()) == report.file_bytes
    assert report.compressed.plain_bytes == len(plain.read_bytes())
    assert report.compressed.file_bytes < report.compressed.plain_bytes
    return report


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_random_nets_give_the_same_bits(seed, tmp_path):
    model, data = random_net(seed)
    options = {"convolution": "per_tensor"} if seed % 2 else {}
    options |= {"precision": "int4"} if seed % 3 == 2 else {}
    report = assert_equal(model, data, tmp_path, **options)
    assert report.compressed.weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compressed_weights": True}, "received no target; expected one that runs TFLite Micro"),
        ({"compressed_weights": True, "target": "edge_tpu"}, "received target 'edge_tpu'"),
        ({"flash": 9, "target": "ethos_u55"}, "flash=9: received target 'ethos_u55'"),
        ({"flash": 0, "target": "microcontroller"}, "flash must be None or bytes, 1 or more"),
        ({"ram": 2.5, "target": "microcontroller"}, "ram must be None or bytes, 1 or more"),
        (
            {"ram": 9, "target": "microcontroller", "compressed_weights": False},
            "received ram=9 with compressed_weights=False",
        ),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        settle(**options)


def test_budgets_ask_for_codes():
    found = settle(target="microcontroller", flash=10, precision="int4")
    assert (found.compressed_weights, found.precision, found.flash) == (True, "int4", 10)
    assert not settle(target="microcontroller").compressed_weights


def test_without_tflite_micro_nothing_is_converted(monkeypatch, tmp_path):
    def unavailable():
        raise Unavailable("cannot install tflite-micro")

    monkeypatch.setattr(runtimes, "require_tflm", unavailable)
    with pytest.raises(Unavailable, match="cannot install tflite-micro"):
        tfc.convert(None, tmp_path / "x.tflite", target="microcontroller", flash=10)
    assert not list(tmp_path.iterdir())
