"""The main job: trains, compresses and verifies on real data, and says what is missing."""

import json
import sys

import pytest

from tfcompress.bench.demo import demo, load_digits
from tfcompress.files.models import load_model
from tfcompress.tflite.inspect import inspect

METHODS = ["float32", "float16", "int8, QAT", "int8, PTQ", "int4 weights, QAT"]


def test_digits_are_split_once_for_all():
    (x_train, y_train), (x_test, y_test) = load_digits()
    assert x_train.shape == (1348, 8, 8, 1)
    assert x_test.shape == (449, 8, 8, 1)
    assert (x_train.min(), x_train.max()) == (0.0, 1.0)
    assert (len(y_train), len(y_test)) == (1348, 449)
    assert set(y_test) == set(range(10))
    assert (load_digits()[1][0] == x_test).all()


def test_missing_scikit_learn_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'tfcompress\[demo\]'"):
        demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"epochs .* received 0"):
        demo(tmp_path / "out", epochs=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        demo(tmp_path / "file")


@pytest.mark.slow
def test_demo(tmp_path):
    stages = []
    result = demo(tmp_path / "out", progress=lambda stage, done, total: stages.append(stage))
    rows = {row.method: row for row in result.rows}
    assert list(rows) == METHODS
    assert all(row.verified for row in result.rows)
    assert rows["float32"].keras_accuracy >= 0.97
    assert rows["int8, QAT"].litert_accuracy >= rows["float32"].keras_accuracy - 0.01
    for row in result.rows:
        assert abs(row.keras_accuracy - row.litert_accuracy) <= 0.01
        assert row.file_bytes == (tmp_path / "out" / row.file).stat().st_size
        assert 0 < row.latency_ms < 100
    sizes = [rows[method].file_bytes for method in METHODS]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[4]
    assert not inspect(tmp_path / "out" / "int8_qat.tflite").float_ops
    assert json.loads((tmp_path / "out" / "demo.json").read_text()) == result.to_dict()
    assert load_model(tmp_path / "out" / "qat_int8.keras").input_shape == (None, 8, 8, 1)
    assert "int4 weights, QAT" in str(result)
    assert {"verify", "benchmark"} <= set(stages)
