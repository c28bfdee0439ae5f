"""The image tasks of the benchmark: characters in the system's fonts."""

import sys

import numpy as np
import pytest

from tfcompress.bench.tasks import TASKS, fonts, glyphs, wake_vision
from tfcompress.tools.environments import Unavailable

UPRIGHT = {"angle": 0.0, "shear": 0.0, "stretch": 1.0}


@pytest.fixture(scope="module")
def files():
    return fonts.font_files()


@pytest.fixture(scope="module")
def sides(files):
    try:
        return fonts.split_designs(files)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("tfcompress.bench.tasks.cache.folder", lambda: tmp_path / "cache")


def test_designs_are_on_one_side(sides):
    names = [[design.name for design in side] for side in sides]
    assert len(names[0]) + len(names[1]) >= fonts.FEWEST_DESIGNS
    assert not set(names[0]) & set(names[1])
    assert len(names[1]) == round(sum(map(len, names)) / 4)
    paths = [{path for design in side for path in design.files} for side in sides]
    assert not paths[0] & paths[1]
    assert all(1 <= len(design.files) <= 6 for side in sides for design in side)


def test_clones_and_styles_are_one_design(files):
    """DejaVu Sans and its Mono by name; a copy under another name by what it looks like."""
    named = {path.name: path for path in files}
    wanted = ["DejaVuSans.ttf", "DejaVuSansMono.ttf"]
    if not all(name in named for name in wanted):
        pytest.skip("needs the fonts of fonts-dejavu-core")
    assert len(fonts.designs([named[name] for name in wanted])) == 1
    _, first = fonts._characters(named["DejaVuSans.ttf"])
    np.testing.assert_allclose((first * first).sum(-1), 1, rtol=1e-5)


def test_a_copied_font_of_another_name_is_the_same_design(sides, monkeypatch):
    read = fonts._characters
    first, second = (design.files[0] for design in sides[0][:2])
    names = iter("abc")
    monkeypatch.setattr(fonts, "_characters", lambda path: (next(names), read(path)[1]))
    assert len(fonts.designs([first, second, first])) == 2


def test_what_is_no_font_is_left_out(tmp_path):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    assert fonts.designs([broken]) == []


def test_a_font_that_lacks_a_letter_is_left_out(sides, monkeypatch):
    file, drawn = sides[0][0].files[0], fonts.cropped
    assert len(fonts.designs([file])) == 1
    # What a font draws for Q is what it draws for all that it does not hold.
    without_q = str.maketrans("Q", "\uffff")
    monkeypatch.setattr(
        fonts, "cropped", lambda path, text, size: drawn(path, text.translate(without_q), size)
    )
    assert fonts.designs([file]) == []


def test_a_font_that_draws_other_things_is_left_out(sides, monkeypatch):
    """Symbols, say, in the place of letters: here each letter in the place of the next."""
    paths, read = [design.files[0] for design in sides[0][:8]], fonts._characters
    symbols = paths[3]

    def characters(path):
        family, shapes = read(path)
        return family, np.roll(shapes, path == symbols, axis=0)

    monkeypatch.setattr(fonts, "_characters", characters)
    used = {path for design in fonts.designs(paths) for path in design.files}
    assert used == {*paths} - {symbols}


@pytest.mark.parametrize(
    "name", ["NotoKufiArabic-Regular.ttf", "D050000L.otf", "LinBiolinum_K.otf"]
)
def test_fonts_of_other_scripts_and_symbols_are_left_out(name, files, sides):
    if not any(path.name == name for path in files):
        pytest.skip(f"needs the font {name}")
    used = {path.name for side in sides for design in side for path in design.files}
    assert used
    assert name not in used


def test_too_few_fonts_say_what_to_install(sides):
    said = r"of 2 designs .* need 24\. .*apt-get install fonts-.*digits, keywords and anomaly"
    with pytest.raises(Unavailable, match=said):
        fonts.split_designs([design.files[0] for design in sides[0][:2]])


def test_without_fonts_or_pillow_a_task_is_unavailable(monkeypatch):
    monkeypatch.setattr(fonts, "font_files", lambda: [])
    for name in ("glyphs", "wake_vision"):
        with pytest.raises(Unavailable, match="of 0 designs"):
            TASKS[name].generate()
    monkeypatch.setitem(sys.modules, "PIL", None)
    for name in ("glyphs", "wake_vision"):
        with pytest.raises(Unavailable, match=r"with Pillow, .*pip install 'tfcompress\[bench\]'"):
            TASKS[name].generate()


def test_without_scikit_learn_there_are_no_photographs(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(Unavailable, match=r"of scikit-learn, .*pip install 'tfcompress\[bench\]'"):
        wake_vision.regions()


def test_fonts_are_found_without_fontconfig(monkeypatch, tmp_path):
    place = tmp_path / ".fonts" / "deep"
    place.mkdir(parents=True)
    for name in ("a.ttf", "b.OTF", "c.pfb"):
        (place / name).write_bytes(b"x")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = fonts.font_files()
    assert [path.name for path in found if tmp_path in path.parents] == ["a.ttf", "b.OTF"]


def test_the_listing_follows_the_fonts(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"1")
    (tmp_path / "b.ttf").write_bytes(b"1")
    first = fonts.listing([tmp_path / "a.ttf"])
    assert fonts.listing([tmp_path / "b.ttf"]) != first
    (tmp_path / "a.ttf").write_bytes(b"12")
    assert fonts.listing([tmp_path / "a.ttf"]) != first
    assert first["fonts"] == ["a.ttf, 1 bytes"]


def test_a_character_lies_where_its_pose_says(sides):
    """A mask's box: as long as the size, centred; twice as wide when stretched; turned."""
    file = next(design for design in sides[0] if len(design.files) > 2).files[0]
    letter = fonts.CHARACTERS.index("H")

    def box(**pose):
        pose = {**UPRIGHT, "size": 24, "x": 20, "y": 28, **pose}
        mask = fonts.draw_mask(file, letter, fonts.Pose(**pose), 64)
        assert mask.dtype == np.float32
        assert mask.max() > 0.9
        rows, columns = np.flatnonzero(mask.max(1) > 0.5), np.flatnonzero(mask.max(0) > 0.5)
        return columns[0], columns[-1] + 1, rows[0], rows[-1] + 1

    left, right, top, bottom = box()
    assert max(right - left, bottom - top) == pytest.approx(24, abs=1)
    assert (left + right) / 2 == pytest.approx(20, abs=1)
    assert (top + bottom) / 2 == pytest.approx(28, abs=1)
    wide = box(stretch=1.5)
    assert wide[1] - wide[0] == pytest.approx(1.5 * (right - left), abs=1.5)
    turned = box(angle=np.pi / 2)
    assert turned[1] - turned[0] == pytest.approx(bottom - top, abs=1)
    assert turned[3] - turned[2] == pytest.approx(right - left, abs=1)


def test_ink_is_darker_than_paper():
    random = np.random.default_rng(0)
    for _ in range(50):
        ink, paper = fonts.colours(random, 0.3)
        assert (paper - ink) @ [0.299, 0.587, 0.114] >= 0.3


def test_parts_of_photographs_do_not_overlap():
    from sklearn.datasets import load_sample_images

    train, test = wake_vision.regions()
    for left, right, whole in zip(test, train, load_sample_images().images, strict=True):
        np.testing.assert_array_equal(np.concatenate([left, right], 1), whole)
    random = np.random.default_rng(0)
    crops = [wake_vision.draw_crop(random, test, 96) for _ in range(20)]
    assert all(crop.shape == (96, 96, 3) and crop.dtype == np.float32 for crop in crops)
    assert np.std([crop.mean() for crop in crops]) > 0.02


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", ["glyphs", "wake_vision"])
def test_generated_data(name, sides, monkeypatch):
    monkeypatch.setattr(fonts, "split_designs", lambda files: sides)
    for module in (glyphs, wake_vision):
        monkeypatch.setattr(module, "_COUNTS", {"train": 12, "test": 6})
    data = TASKS[name].generate()
    side = {"glyphs": 32, "wake_vision": 96}[name]
    assert data.x_train.shape == (12, side, side, 3)
    assert data.x_test.shape == (6, side, side, 3)
    assert data.x_train.dtype == np.uint8
    assert data.source == "generated"
    assert np.bincount(data.y_train, minlength=data.classes).max() <= 12 / min(12, data.classes)
    assert all(image.std() > 1 for image in data.x_train)
    x, y = next(iter(data.batches(4, 0)))
    assert x.shape == (4, side, side, 3)
    assert 0 <= float(np.min(x)) < float(np.max(x)) <= 1
    assert y.shape == (4,)
    # The same once more, from the cache and made anew.
    assert TASKS[name].generate().digest == data.digest
    monkeypatch.setattr("tfcompress.bench.tasks.cache.cached", lambda name, settings, make: make())
    assert TASKS[name].generate().digest == data.digest


def test_only_a_character_tells_the_classes_apart(sides, monkeypatch):
    """Without a font to draw with, both kinds of images are alike."""
    parts = wake_vision.regions()[0]
    nothing = np.zeros((96, 96), np.float32)
    images = {
        character: wake_vision._image(np.random.default_rng(3), sides[0], parts, character)
        for character in (True, False)
    }
    assert np.abs(images[True].astype(int) - images[False]).max() > 30
    monkeypatch.setattr(fonts, "draw_mask", lambda *arguments: nothing)
    means = [
        [
            wake_vision._image(np.random.default_rng(seed), sides[0], parts, character).mean()
            for seed in range(100)
        ]
        for character in (True, False)
    ]
    # The same crops at least, whose brightness varies much more than what is drawn on them.
    assert np.corrcoef(means)[0, 1] > 0.9
