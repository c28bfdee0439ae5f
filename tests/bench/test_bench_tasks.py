"""What all tasks of the benchmark have in common."""

import dataclasses
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.bench.tasks import TASKS, cache, glyphs
from tfcompress.bench.tasks.task import require
from tfcompress.tools.environments import Unavailable


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("glyphs", (10, 78_666, 12_501_632)),
        ("keywords", (12, 24_908, 2_656_768)),
        ("wake_word", (3, 47_707, 826_368)),
        ("wake_vision", (2, 221_794, 7_489_664)),
        ("anomaly", (0, 269_992, 264_192)),
    ],
)
def test_the_model_is_the_published_one(name, published):
    """That of MLPerf Tiny: classes, parameters, MACs."""
    import keras
    import tf_keras

    task = TASKS[name]
    assert task.published == published
    classes, parameters, macs = published
    model, twin = task.build(keras, classes), task.build(tf_keras, classes)
    assert model.count_params() == twin.count_params() == parameters
    assert tfc.profile(model).macs == macs
    random = np.random.default_rng(0)
    # Statistics that are not those of an untrained BatchNormalization.
    weights = [
        random.uniform(0.5, 1.5, array.shape) if array.ndim == 1 else array
        for array in model.get_weights()
    ]
    model.set_weights(weights)
    twin.set_weights(weights)
    x = random.uniform(0, 1, (4, *model.input_shape[1:])).astype("float32")
    expected = np.asarray(model(x, training=False))
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(np.asarray(twin(x, training=False)), expected, atol=1e-5, rtol=1e-5)


def test_the_model_of_generated_data_is_the_one_that_is_listed():
    import keras

    classes, parameters, macs = TASKS["glyphs"].generated
    assert classes == len(glyphs.fonts.CHARACTERS) == 36
    model = TASKS["glyphs"].build(keras, classes)
    assert (model.count_params(), tfc.profile(model).macs) == (parameters, macs)


@pytest.mark.parametrize(
    ("name", "full", "long"),
    [
        ("digits", 420, 420),
        ("glyphs", 160, 1000),
        ("keywords", 256, 1000),
        ("wake_word", 256, 1000),
        ("wake_vision", 180, 750),
        ("anomaly", 512, 640),
    ],
)
def test_the_long_form_tunes_half_as_long_as_the_same_float_model_was_trained(name, full, long):
    training, tuning = TASKS[name].trainings("full")
    assert tuning.steps == full
    assert TASKS[name].trainings("long") == (training, dataclasses.replace(training, steps=long))
    assert TASKS[name].trainings("short")[1].steps < full


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A function that takes arrays from the cache, and how often they were made."""
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path))
    made = []

    def make():
        made.append("x")
        return {"x": np.arange(60, dtype="float32").reshape(3, 20), "y": np.arange(3)}

    return lambda: cache.cached("numbers", {"seed": 0}, make), made


DAMAGED = {
    "empty": lambda content: b"",
    "zeros, as after a power loss": lambda content: bytes(len(content)),
    "cut off": lambda content: content[:-7],
    "cut off in its header": lambda content: content[:40],
    "an error in its text": lambda content: content.replace(b": ", b":'", 1),
    "a broken archive": lambda content: b"PK\x03\x04" + content[4:],
    "another value": lambda content: content[:-1] + b"\x01",
    "other text": lambda content: b"[1]",
}


@pytest.mark.parametrize("name", ["x.npy", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_data_in_the_cache_are_made_anew(kept, name, damage):
    take, made = kept
    whole = take()
    assert take().keys() == whole.keys()
    assert len(made) == 1
    [file] = cache.folder().glob(f"numbers-*/{name}")
    file.write_bytes(DAMAGED[damage](file.read_bytes()))
    anew, again = take(), take()
    assert len(made) == 2
    for found in (anew, again):
        for key, array in whole.items():
            np.testing.assert_array_equal(found[key], array)


def test_a_lost_array_is_made_anew(kept):
    take, made = kept
    take()
    [file] = cache.folder().glob("numbers-*/y.npy")
    file.unlink()
    assert take()["y"].tolist() == [0, 1, 2]
    assert len(made) == 2


def test_what_is_moved_into_the_cache_is_on_the_disk(kept, monkeypatch):
    """A move that outlasts a power loss, without what was moved, leaves files of 0 bytes."""
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    rename = Path.rename
    moved = []

    def move(path, target):
        moved.append(list(sizes))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", move)
    kept[0]()
    [place] = cache.folder().glob("numbers-*")
    assert sorted(moved[0]) == sorted(path.stat().st_size for path in place.iterdir())
    assert len(moved[0]) == 3


def test_files_of_the_cache_are_as_they_were(kept):
    """So that what is in caches by now is taken."""
    kept[0]()
    [place] = cache.folder().glob("numbers-*")
    assert place.name == "numbers-de7d7744cc"
    manifest = json.loads((place / "manifest.json").read_text())
    assert list(manifest) == ["name", "settings", "arrays", "digest"]
    expected = io.BytesIO()
    np.save(expected, np.arange(3))
    assert (place / "y.npy").read_bytes() == expected.getvalue()


def test_a_missing_package_is_told_with_how_to_install_it(monkeypatch):
    require("sklearn", "it takes digits of scikit-learn")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    said = r"^it takes digits of scikit-learn, which cannot be imported \(.*sklearn.*\): "
    with pytest.raises(Unavailable, match=said + r"pip install 'tfcompress\[bench\]'$"):
        require("sklearn", "it takes digits of scikit-learn")
