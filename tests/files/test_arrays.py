"""Arrays and images read from disk against what was written."""

import numpy as np
import pytest
from PIL import Image
from refusals import refusals_of

from tfcompress.files.arrays import load_arrays, load_inputs, load_labelled

X = np.arange(24, dtype=np.float32).reshape(4, 6)


def save_image(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8), mode).save(path)


def test_npy_and_npz(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.testing.assert_array_equal(load_arrays(tmp_path / "a.npy"), X)
    np.savez(tmp_path / "one.npz", image=X)
    np.testing.assert_array_equal(load_arrays(tmp_path / "one.npz"), X)
    np.savez_compressed(tmp_path / "named.npz", image=X, age=X[0])
    found = load_arrays(tmp_path / "named.npz")
    assert list(found) == ["image", "age"]
    np.testing.assert_array_equal(found["age"], X[0])
    np.savez(tmp_path / "numbered.npz", *[X + i for i in range(11)])
    found = load_arrays(tmp_path / "numbered.npz")
    assert [array[0, 0] for array in found] == list(range(11))


def test_images_are_read_in_order_and_scaled(tmp_path):
    for i, name in enumerate(["b/2.PNG", "a/9.bmp", "a/10.png"]):
        save_image(tmp_path / name, np.full((2, 3, 3), 51 * (i + 1)))
    save_image(tmp_path / ".hidden.png", np.zeros((9, 9)))
    (tmp_path / "notes.txt").write_text("no image")
    found = load_arrays(tmp_path)
    assert found.shape == (3, 2, 3, 3)
    assert found.dtype == np.float32
    assert found[:, 0, 0, 0].tolist() == [153, 102, 51]  # a/10, a/9, b/2
    found = load_arrays(tmp_path, scaling="0_1", channels=1)
    assert found.shape == (3, 2, 3, 1)
    np.testing.assert_allclose(found[:, 0, 0, 0], [0.6, 0.4, 0.2], rtol=1e-6)
    found = load_arrays(tmp_path, scaling="-1_1", size=(4, 5))
    assert found.shape == (3, 4, 5, 3)
    np.testing.assert_allclose(found[:, 0, 0, 0], [0.2, -0.2, -0.6], rtol=1e-5)


def test_colours_keep_their_order(tmp_path):
    save_image(tmp_path / "a.png", [[[255, 100, 0]]])
    assert load_arrays(tmp_path)[0, 0, 0].tolist() == [255, 100, 0]
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B.
    assert load_arrays(tmp_path, channels=1)[0, 0, 0].tolist() == [135]


def test_a_limit_takes_some_of_each_folder(tmp_path):
    for label in range(3):
        for i in range(4):
            save_image(tmp_path / f"{label}/{i}.png", np.full((1, 1), 10 * label + i))
    seen = []
    found = load_arrays(tmp_path, channels=1, limit=6, progress=lambda *a: seen.append(a))
    assert found.ravel().tolist() == [0, 2, 10, 12, 20, 22]
    assert seen == [(i, 6) for i in range(1, 7)]
    assert len(load_arrays(tmp_path, channels=1, limit=100)) == 12


def test_images_take_the_size_of_the_model(tmp_path):
    save_image(tmp_path / "a.png", np.zeros((5, 6)))
    assert load_inputs(tmp_path, [(None, 3, 2, 1)]).shape == (1, 3, 2, 1)
    assert load_inputs(tmp_path, [(None, None, None, 3)]).shape == (1, 5, 6, 3)
    assert load_inputs(tmp_path, [(None, 3, 2, 1)], size=(8, 9)).shape == (1, 8, 9, 1)
    assert load_inputs(tmp_path, []).shape == (1, 5, 6, 3)
    for shapes in ([(None, 4)], [(None, 3, 2, 1)] * 2):
        with pytest.raises(ValueError, match=r"one image as its input; this one takes \(None"):
            load_inputs(tmp_path, shapes)
    with pytest.raises(ValueError, match="images have 1 or 3 channels; the model takes 4"):
        load_inputs(tmp_path, [(None, 3, 2, 4)])


def test_folders_of_classes_are_numbered_by_their_names(tmp_path):
    for name, value in (("cat", 10), ("bird", 20), ("dog", 30)):
        for number in range(2):
            save_image(tmp_path / name / f"{number}.png", np.full((4, 4), value + number))
    x, y = load_labelled(tmp_path, [(None, 4, 4, 1)], scaling="none")
    assert x[:, 0, 0, 0].tolist() == [20, 21, 10, 11, 30, 31]
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="must hold a folder of images for each class"):
        load_labelled(tmp_path / "cat", [(None, 4, 4, 1)], scaling="none")


def test_bad_files_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", image=np.array([{}], object))
    np.save(tmp_path / "whole.npy", X)
    np.savez(tmp_path / "whole.npz", image=X)
    for ending, size in (("npy", 150), ("npy", 30), ("npz", 100)):
        content = (tmp_path / f"whole.{ending}").read_bytes()
        (tmp_path / f"half{size}.{ending}").write_bytes(content[:size])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("1,2,3")
    (tmp_path / "folder").mkdir()
    import zipfile

    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("config.json", "{}")
    for name, message in {
        "gone.npy": "no file at '.*gone.npy'; expected a .npy file",
        "objects.npy": "holds Python objects.*numeric dtype",
        "objects.npz": "holds Python objects.*numeric dtype",
        "half150.npy": "damaged or cut off: .*length",
        "half30.npy": "damaged or cut off",
        "half100.npz": "damaged or cut off: File is not a zip file",
        "empty.npy": "is empty; expected",
        "text.npy": "starts with b'1,2,3'; expected .*Save the data with np.save",
        "other.npz": "holds something else than arrays",
        "folder": "no images in the folder '.*folder'; expected files that end in .png",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_arrays(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_bad_images_and_options_are_refused(tmp_path):
    save_image(tmp_path / "a.png", np.zeros((5, 6)))
    save_image(tmp_path / "b.png", np.zeros((6, 5)))
    with pytest.raises(ValueError, match=r"b.png' has 6x5 pixels, the first one, .*a.png', 5x6"):
        load_arrays(tmp_path)
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png': it has more than 8 bits per channel"):
        load_arrays(tmp_path)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"cannot read the image '.*b.png'.*take it out"):
        load_arrays(tmp_path)
    with pytest.raises(ValueError, match="one of none, 0_1, -1_1; received '0_255'"):
        load_arrays(tmp_path, scaling="0_255")
    with pytest.raises(ValueError, match="limit must be at least 1; received 0"):
        load_arrays(tmp_path, limit=0)


def test_without_pillow_the_error_says_what_to_install(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", np.zeros((5, 6)))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ValueError, match=r"pip install 'tfcompress\[images\]'"):
        load_arrays(tmp_path)


def test_damaged_archives_give_only_clear_errors(tmp_path):
    np.savez(tmp_path / "whole.npz", image=X, age=X[0])
    content = (tmp_path / "whole.npz").read_bytes()
    assert len(refusals_of(load_arrays, content, tmp_path / "fuzz.npz")) > 80
