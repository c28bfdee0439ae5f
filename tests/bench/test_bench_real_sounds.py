"""Speech Commands and ToyADMOS, from small folders that are laid out like them."""

import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from tfcompress.bench.tasks import TASKS, anomaly, cache, keywords
from tfcompress.bench.tasks.keywords import SILENCE, UNKNOWN, WORDS
from tfcompress.bench.tasks.sounds import mfcc, read_wav
from tfcompress.bench.tasks.task import NotThere
from tfcompress.tools.environments import Unavailable

RATE = 16_000


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "cache"))


def write(path: Path, samples, rate=RATE, width=2, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())


def sound(random, seconds=1.0):
    return random.integers(-3000, 3000, int(seconds * RATE))


@pytest.fixture
def words(tmp_path):
    """Four clips of each word: two to train with, one of each list."""
    root, random = tmp_path / "data" / "commands", np.random.default_rng(0)
    lists = {"testing_list.txt": [], "validation_list.txt": []}
    for word in (*WORDS, "bed", "wow"):
        for speaker in "abcd":
            # Some are shorter than a second, as they are.
            write(root / word / f"{speaker}_nohash_0.wav", sound(random, 0.8 + 0.1 * (word < "m")))
        lists["testing_list.txt"].append(f"{word}/c_nohash_0.wav")
        lists["validation_list.txt"].append(f"{word}/d_nohash_0.wav")
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    write(root / "_background_noise_" / "tap.wav", sound(random, 12))
    write(root / "_background_noise_" / "short.wav", sound(random, 0.5))
    return root


@pytest.fixture
def cars(tmp_path):
    root, random = tmp_path / "dev_data" / "ToyCar", np.random.default_rng(0)
    for i in range(3):
        write(root / "train" / f"normal_id_01_0000000{i}.wav", sound(random, 9))
    for i in range(2):
        write(root / "test" / f"normal_id_01_0000000{i}.wav", sound(random, 9))
    write(root / "test" / "anomaly_id_01_00000000.wav", sound(random, 9) // 8)
    return root


def features(path: Path) -> np.ndarray:
    clip = np.zeros((1, RATE), "float32")
    samples = read_wav(path)[:RATE]
    clip[0, : len(samples)] = samples
    return mfcc(clip)[0]


def test_samples_are_read_as_they_are(tmp_path):
    write(tmp_path / "a.wav", [0, 16384, -32768, 32767])
    found = read_wav(tmp_path / "a.wav")
    assert found.dtype == np.float32
    assert found.tolist() == [0, 0.5, -1, 32767 / 32768]


def cut_off(path):
    write(path, np.arange(1000))
    path.write_bytes(path.read_bytes()[:-500])


DAMAGED = {
    "cut off": (cut_off, "holds 750 of 1,000 samples"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read: it ends too early"),
    "no samples": (lambda path: write(path, []), "holds 0 of 0 samples"),
    "text": (lambda path: path.write_text("no sound at all"), "cannot be read: .*RIFF"),
    "a folder": (Path.mkdir, "cannot be read: .*[Ii]s a directory"),
    "8 bits": (lambda path: write(path, [1, 2], width=1), "has 8 bits, channels: 1, rate: 16000"),
    "stereo": (lambda path: write(path, [1, 2], channels=2), "has 16 bits, channels: 2"),
    "44.1 kHz": (lambda path: write(path, [1, 2], rate=44_100), "has .* rate: 44100 Hz"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_told_by_name(tmp_path, kind):
    spoil, message = DAMAGED[kind]
    spoil(tmp_path / "bad.wav")
    whole = f"bad.wav' {message}.*; expected a WAV file of 16-bit PCM, mono, 16000 Hz"
    refused(whole, lambda: read_wav(tmp_path / "bad.wav"))


def test_a_header_that_announces_gigabytes_takes_no_memory(tmp_path):
    path = tmp_path / "huge.wav"
    write(path, np.arange(1000))
    content = bytearray(path.read_bytes())
    content[40:44] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content)
    refused("huge.wav' holds 1,000 of 2,147,483,647 samples", lambda: read_wav(path))


def test_words_are_read_and_split_by_the_lists(words):
    data = TASKS["keywords"].read(words)
    assert (data.source, data.classes) == ("Speech Commands v0.02", 12)
    assert np.bincount(data.y_train).tolist() == [2] * 12
    assert np.bincount(data.y_test).tolist() == [1] * 12
    for label, word in enumerate(WORDS):
        [row] = data.x_test[data.y_test == label]
        np.testing.assert_allclose(row, features(words / word / "c_nohash_0.wav"), atol=1e-5)
    [other] = data.x_test[data.y_test == UNKNOWN]
    expected = [features(words / word / "c_nohash_0.wav") for word in ("bed", "wow")]
    assert any(np.allclose(other, row, atol=1e-5) for row in expected)
    assert data.digest == TASKS["keywords"].read(words).digest


def test_words_to_train_with_are_shifted_and_among_noise(words):
    data = TASKS["keywords"].read(words)
    rows = data.x_train[data.y_train == WORDS.index("yes")]
    plain = [features(words / "yes" / f"{speaker}_nohash_0.wav") for speaker in "ab"]
    for row in rows:
        assert not any(np.allclose(row, other, atol=1e-3) for other in plain)


def test_of_the_noise_the_end_is_kept_for_testing(words):
    loud, soft = np.full(8 * RATE, 3000), np.full(2 * RATE, 3)
    for path in (words / "_background_noise_").iterdir():
        path.unlink()
    write(words / "_background_noise_" / "tap.wav", [*loud, *soft])
    data = TASKS["keywords"].read(words)
    train = data.x_train[data.y_train == SILENCE][..., 0, 0].max()
    test = data.x_test[data.y_test == SILENCE][..., 0, 0].max()
    assert test < train - 5


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_folder_may_be_one_that_holds_the_data_set(words, up):
    folder = [words, *words.parents][up]
    assert TASKS["keywords"].read(folder).source == "Speech Commands v0.02"


def test_what_is_read_is_kept_until_a_file_changes(words, monkeypatch):
    first = TASKS["keywords"].read(words)
    with monkeypatch.context() as patched:
        patched.setattr(keywords, "read_wav", None)
        assert TASKS["keywords"].read(words).digest == first.digest
    write(words / "yes" / "c_nohash_0.wav", np.arange(9000))
    assert TASKS["keywords"].read(words).digest != first.digest


def test_folders_of_words_that_lack_something_are_refused(words, tmp_path):
    read = TASKS["keywords"].read
    source = r"expected Speech Commands v0\.02.*Get it from http.*\.tar\.gz"
    holds = source.replace("expected", "expected a folder that holds")
    refused(f"none' is not there; {holds}", lambda: read(tmp_path / "none"), NotThere)
    (tmp_path / "other" / "cats").mkdir(parents=True)
    refused(f"other' holds cats/; {source}", lambda: read(tmp_path / "other"), NotThere)
    (words / "validation_list.txt").unlink()
    for path in (words / "go").iterdir():
        path.unlink()
    refused(f"lacks validation_list.txt, go/.*wav; {source}", lambda: read(words), unless="yes/a")


def test_lists_that_leave_a_class_without_clips_are_refused(words):
    (words / "testing_list.txt").write_text("yes/c_nohash_0.wav\nbed/c_nohash_0.wav\n")
    message = "has no clips of no, up, down, left, .* to test with, by testing_list.txt"
    refused(message, lambda: TASKS["keywords"].read(words))
    (words / "testing_list.txt").write_bytes(b"\xff\xfe\x00yes")
    refused("testing_list.txt' cannot be read", lambda: TASKS["keywords"].read(words))


def test_a_damaged_word_is_named_and_nothing_is_kept(words):
    cut_off(words / "left" / "a_nohash_0.wav")
    refused("left/a_nohash_0.wav' holds 750", lambda: TASKS["keywords"].read(words))
    assert not list(cache.folder().glob("speech*"))


@pytest.mark.parametrize("up", [0, 1, 2])
def test_cars_are_read(cars, up):
    data = TASKS["anomaly"].read([cars, *cars.parents][up])
    assert (data.source, data.classes, data.y_train) == ("ToyADMOS ToyCar", 0, None)
    assert data.y_test.tolist() == [False, False, True]
    assert data.x_test.shape == (3, 25, 640)
    assert data.x_train.mean() == pytest.approx(0, abs=1e-3)
    assert data.x_train.std() == pytest.approx(1, abs=1e-3)
    # The broken one is softer by a factor of 8, 18 dB.
    spread = np.concatenate([bands(path) for path in sorted(cars.glob("train/*.wav"))]).std()
    softer = (data.x_test[:2].mean() - data.x_test[2].mean()) * spread
    assert softer == pytest.approx(20 * np.log10(8), abs=0.1)


@pytest.mark.parametrize(("start", "given"), [(".", "."), ("train", "..")])
def test_cars_are_found_from_within_their_folder(cars, monkeypatch, start, given):
    monkeypatch.chdir(cars / start)
    assert len(TASKS["anomaly"].read(Path(given)).y_test) == 3


@pytest.mark.parametrize(("name", "link"), [("cars", "ToyCar"), ("ToyCar", "cars")])
def test_cars_may_be_behind_a_link(cars, tmp_path, name, link):
    (tmp_path / "far").mkdir()
    (tmp_path / "links").mkdir()
    cars.rename(tmp_path / "far" / name)
    (tmp_path / "links" / link).symlink_to(tmp_path / "far" / name)
    assert len(TASKS["anomaly"].read(tmp_path / "links").y_test) == 3


def test_without_what_they_are_scored_with_no_cars_are_read(cars, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr(anomaly, "read_wav", None)
    said = r"^anomaly is scored .*scikit-learn, .*pip install 'tfcompress\[bench\]'$"
    refused(said, lambda: TASKS["anomaly"].read(cars), Unavailable)
    # Where there are none, that is what is told: then another task's data may be there.
    refused("commands' .*expected", lambda: TASKS["anomaly"].read(tmp_path / "commands"), NotThere)


@pytest.fixture
def locked(monkeypatch, tmp_path):
    """A folder that looks like none of a data set, as nobody may look into it.

    Tests may run as root, who may read everything.
    """
    folder = tmp_path / "disk" / "lost+found"
    folder.mkdir(parents=True)
    listed, stat = Path.iterdir, Path.stat

    def iterdir(path):
        if path == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    def look(path, **settings):
        if folder in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **settings)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(Path, "stat", look)
    return folder


def test_folders_that_cannot_be_read_are_passed_over(cars, words, locked, tmp_path):
    shutil.move(cars, locked.parent)
    shutil.move(words, locked.parent)
    # Beside the data sets, and one level below.
    for folder in (locked.parent, tmp_path):
        assert TASKS["anomaly"].read(folder).source == "ToyADMOS ToyCar"
        assert TASKS["keywords"].read(folder).source == "Speech Commands v0.02"
    shutil.rmtree(locked.parent / "ToyCar")
    said = r"disk' holds commands/, lost\+found/; expected ToyADMOS"
    refused(said, lambda: TASKS["anomaly"].read(locked.parent), NotThere)


def test_the_folder_that_is_given_must_be_readable(locked):
    refused("Permission denied", lambda: TASKS["keywords"].read(locked), PermissionError)


def bands(path):
    return anomaly.vectors(anomaly.spectrograms(read_wav(path)[None])[:, 50:250])[0]


def test_vectors_of_cars_are_those_of_the_middle_of_clips(cars):
    data = TASKS["anomaly"].read(cars)
    trained = np.concatenate([bands(path) for path in sorted(cars.glob("train/*.wav"))])
    assert data.x_train.shape == trained.shape == (3 * 196, 640)
    tested = bands(cars / "test" / "normal_id_01_00000001.wav")
    expected = (tested[[0, -1]] - trained.mean()) / trained.std()
    np.testing.assert_allclose(data.x_test[1, [0, -1]], expected, atol=1e-3)


def test_of_many_cars_only_so_many_vectors_are_kept(cars, monkeypatch):
    monkeypatch.setattr(anomaly, "TRAIN_VECTORS", 31)
    data = TASKS["anomaly"].read(cars)
    assert data.x_train.shape == (31, 640)
    assert len(np.unique(data.x_train[:, 0])) == 31


def test_folders_of_cars_that_lack_something_are_refused(cars, tmp_path):
    read = TASKS["anomaly"].read
    source = r"expected ToyADMOS of DCASE 2020.*Get dev_data_ToyCar\.zip from https"
    (tmp_path / "other").mkdir()
    refused(f"other' holds nothing; {source}", lambda: read(tmp_path / "other"), NotThere)
    (cars / "test" / "anomaly_id_01_00000000.wav").unlink()
    refused(
        f"lacks test/anomaly_id_.*wav; {source}", lambda: read(cars), unless="train/normal_id_.wav"
    )


def test_damaged_cars_are_named(cars):
    write(cars / "train" / "normal_id_01_00000001.wav", np.arange(100))
    refused("normal_id_01_00000001.wav' holds 100 samples", lambda: TASKS["anomaly"].read(cars))
    cut_off(cars / "train" / "normal_id_01_00000001.wav")
    refused("normal_id_01_00000001.wav' holds 750 of", lambda: TASKS["anomaly"].read(cars))
