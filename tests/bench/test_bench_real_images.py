"""Real images in place of generated ones: CIFAR-10 and Visual Wake Words."""

import sys

import numpy as np
import pytest
from PIL import Image

from tfcompress.bench.running.child import prepare
from tfcompress.bench.running.turns import find_sources, make_plan
from tfcompress.bench.tasks import TASKS, glyphs, wake_vision
from tfcompress.bench.tasks.task import NotThere
from tfcompress.tools.environments import Unavailable


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("tfcompress.bench.tasks.cache.folder", lambda: tmp_path / "cache")


def cifar_records(labels, seed=0):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (len(labels), 3, 32, 32), np.uint8)
    rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels.reshape(len(labels), -1)], 1)
    return rows, pixels


def write_cifar(place):
    place.mkdir(parents=True)
    every = {}
    for number in range(1, 7):
        rows, pixels = cifar_records([number, 9, 0], number)
        name = "test_batch.bin" if number == 6 else f"data_batch_{number}.bin"
        (place / name).write_bytes(rows.tobytes())
        every[name] = pixels
    return every


@pytest.mark.parametrize("given", ["own", "holding"])
def test_cifar10_is_read(tmp_path, given):
    place = tmp_path / "cifar-10-batches-bin"
    pixels = write_cifar(place)
    data = TASKS["glyphs"].read(place if given == "own" else tmp_path)
    assert data.x_train.shape == (15, 32, 32, 3)
    np.testing.assert_array_equal(data.y_train, [1, 9, 0, 2, 9, 0, 3, 9, 0, 4, 9, 0, 5, 9, 0])
    np.testing.assert_array_equal(data.y_test, [6, 9, 0])
    np.testing.assert_array_equal(
        data.x_train[4], np.moveaxis(pixels["data_batch_2.bin"][1], 0, -1)
    )
    np.testing.assert_array_equal(data.x_test[2], np.moveaxis(pixels["test_batch.bin"][2], 0, -1))
    assert (data.classes, data.source, data.scale) == (10, "CIFAR-10", 1 / 255)
    assert data.test_inputs().max() <= 1


def test_pickled_cifar10_is_not_opened(tmp_path):
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    (place / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for folder in (tmp_path, place):
        with pytest.raises(ValueError, match=r"Python version.*pickle.*cifar-10-binary\.tar\.gz"):
            glyphs.read_cifar10(folder)


def test_a_binary_version_beside_a_pickled_one_is_taken(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "a-pickled-one").mkdir()
    (tmp_path / "a-pickled-one" / "data_batch_1").write_bytes(b"")
    assert len(glyphs.read_cifar10(tmp_path).x_test) == 3


def test_wrong_folders_say_what_was_found(tmp_path):
    with pytest.raises(NotThere, match=r"nowhere' is not there; expected .*test_batch\.bin"):
        glyphs.read_cifar10(tmp_path / "nowhere")
    with pytest.raises(NotThere, match=r"holds nothing; expected .*Visual Wake Words"):
        wake_vision.read_visual_wake_words(tmp_path)
    for name in ("cats", "person"):
        (tmp_path / name).mkdir()
    with pytest.raises(NotThere, match=r"holds cats/, person/; .* non_person .*Get .*http"):
        wake_vision.read_visual_wake_words(tmp_path)
    write_cifar(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"lacks data_batch_3\.bin; expected .*Get .*http"):
        glyphs.read_cifar10(tmp_path)


def test_a_damaged_cifar10_file_is_named(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin")
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_4\.bin' has 9218 bytes; .*multiple of 3073"):
        glyphs.read_cifar10(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="has 0 bytes"):
        glyphs.read_cifar10(tmp_path)
    file.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(ValueError, match="the label 10; expected 0 to 9"):
        glyphs.read_cifar10(tmp_path)


def write_people(place, count=40, side=96):
    for label, kind in enumerate(("non_person", "person")):
        (place / kind).mkdir(parents=True)
        for number in range(count):
            # Grey for all of them: JPEG keeps it.
            colour = (2 * number + 100 * label,) * 3
            Image.new("RGB", (side, side), colour).save(place / kind / f"{number}.jpg")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("given", ["own", "holding"])
def test_visual_wake_words_are_read(tmp_path, given, monkeypatch):
    place = tmp_path / "vw_coco2014_96"
    write_people(place)
    data = TASKS["wake_vision"].read(place if given == "own" else tmp_path)
    assert len(data.x_train) + len(data.x_test) == 80
    assert 2 <= len(data.x_test) <= 20
    x = np.concatenate([data.x_train, data.x_test])
    y = np.concatenate([data.y_train, data.y_test])
    # Each once, and persons are 1: their colours are 100 to 178, by steps of 2.
    greys = x[:, 48, 48, 0].astype(int)
    assert np.abs(np.sort(greys[y == 0]) - np.arange(0, 80, 2)).max() <= 1
    assert np.abs(np.sort(greys[y == 1]) - np.arange(100, 180, 2)).max() <= 1
    # Mixed, since calibration takes the first.
    assert 0 < data.y_train[:20].mean() < 1
    again = TASKS["wake_vision"].read(tmp_path)
    assert again.digest == data.digest
    monkeypatch.setattr(wake_vision, "_WAKE_MOST", {"train": 10, "test": 2})
    some = TASKS["wake_vision"].read(tmp_path)
    assert (len(some.x_train), len(some.x_test)) == (10, 2)
    np.testing.assert_array_equal(some.x_train, data.x_train[:10])


@pytest.mark.usefixtures("own_cache")
def test_bad_images_are_named(tmp_path):
    place = tmp_path / "vw_coco2014_96"
    write_people(place)
    file = place / "person" / "7.jpg"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"no image", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"7\.jpg' cannot be used: .*Get .* anew"):
            wake_vision.read_visual_wake_words(tmp_path)
    Image.new("RGB", (100, 96)).save(file)
    with pytest.raises(ValueError, match=r"7\.jpg'.* 100 x 96 pixels, expected 96 x 96"):
        wake_vision.read_visual_wake_words(tmp_path)
    file.write_bytes(whole)
    for image in (place / "person").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match="too few images, not one of each kind"):
        wake_vision.read_visual_wake_words(tmp_path)


@pytest.mark.usefixtures("own_cache")
def test_without_pillow_photographs_are_not_read(tmp_path, monkeypatch):
    write_people(tmp_path / "vw_coco2014_96")
    monkeypatch.setitem(sys.modules, "PIL", None)
    said = r"wake_vision reads photographs with Pillow, .*: pip install 'tfcompress\[bench\]'$"
    with pytest.raises(Unavailable, match="^" + said):
        TASKS["wake_vision"].read(tmp_path)
    plan = make_plan(["wake_vision"], None, 1, False)
    with pytest.raises(Unavailable, match="^task 'wake_vision' cannot run: " + said):
        find_sources(plan, tmp_path, prepare, lambda *told: None)
