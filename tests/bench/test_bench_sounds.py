"""The sound tasks of the benchmark: spoken words, a made-up machine, and what is taken of them."""

import sys

import numpy as np
import pytest
from scipy import fft

from tfcompress.bench.tasks import anomaly, cache, keywords, sounds, wake_word
from tfcompress.bench.tasks.keywords import CLASSES, SILENCE, TEST, TRAIN, UNKNOWN
from tfcompress.bench.tasks.sounds import Utterance
from tfcompress.tools.environments import Unavailable

RATE = 16_000
SECOND = np.arange(RATE) / RATE


@pytest.fixture(scope="module")
def spoken():
    """Needs eSpeak NG."""
    try:
        sounds.version()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Tiny data sets, in a cache of their own."""
    monkeypatch.setattr(keywords, "TRAIN", TRAIN._replace(each=3, unknowns=5))
    monkeypatch.setattr(keywords, "TEST", TEST._replace(each=2, unknowns=2))
    monkeypatch.setattr(anomaly, "_CLIPS", {"train": 3, "test": 2})
    monkeypatch.setattr(wake_word, "_COUNTS", {"train": 9, "test": 4})
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path))


def test_mfccs_are_those_of_tensorflow():
    import tensorflow as tf

    clips = np.random.default_rng(0).normal(0, 0.1, (3, RATE)).astype("float32")
    # A word does not fill its clip.
    clips[1, :9000] = 0
    clips[2] *= 1e-4
    spectra = tf.abs(tf.signal.stft(clips, 480, 320, 512))
    matrix = tf.signal.linear_to_mel_weight_matrix(40, 257, RATE, 20.0, 4000.0)
    loudness = tf.math.log(tf.tensordot(spectra, matrix, 1) + 1e-6)
    expected = tf.signal.mfccs_from_log_mel_spectrograms(loudness)[..., :10]
    found = sounds.mfcc(clips)
    assert found.shape == (3, 49, 10, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[..., 0], expected, atol=2e-3)


def test_one_frame_of_mfccs_by_hand():
    clip = np.random.default_rng(1).normal(0, 0.2, RATE)
    start, count = 7 * 320, 480
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(count) / count)
    magnitudes = np.abs(np.fft.rfft(clip[start : start + count] * window, 512))
    top, bottom = (2595 * np.log10(1 + f / 700) for f in (4000, 20))
    step = (top - bottom) / 41
    energies = np.zeros(40)
    for k, magnitude in enumerate(magnitudes):
        place = (2595 * np.log10(1 + k * RATE / 512 / 700) - bottom) / step
        for band in range(40):
            energies[band] += magnitude * max(0, 1 - abs(place - band - 1))
    angles = np.pi / 40 * (np.arange(40) + 0.5) * np.arange(10)[:, None]
    expected = np.sqrt(2 / 40) * np.cos(angles) @ np.log(energies + 1e-6)
    found = sounds.mfcc(clip[None].astype("float32"))[0, 7, :, 0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_log_mels_are_those_of_tensorflow():
    import tensorflow as tf

    sound = np.random.default_rng(0).normal(0, 0.1, (2, 3 * RATE)).astype("float32")
    sound[1, RATE:] *= 1e-3
    risen = sound - np.float32(1 - 2**-5) * np.pad(sound, ((0, 0), (1, 0)))[:, :-1]
    window = lambda size, dtype: tf.signal.hamming_window(size, periodic=False, dtype=dtype)  # noqa: E731
    power = tf.square(tf.abs(tf.signal.stft(risen, 1024, 512, window_fn=window))) / 1024
    matrix = tf.signal.linear_to_mel_weight_matrix(40, 513, RATE, 0.0, 8000.0)
    decibels = 10 * np.log10(tf.tensordot(power, matrix, 1))
    found = sounds.log_mels(sound)
    assert found.shape == (2, 92, 40)
    np.testing.assert_allclose(found, np.clip((decibels + 52) / 64, 0, 1), atol=1e-4)
    assert 0 < found.mean() < 1


def test_mfccs_refuse_clips_of_another_length():
    with pytest.raises(ValueError, match=r"expected clips of 16000 samples.*\(2, 8000\)"):
        sounds.mfcc(np.zeros((2, 8000), "float32"))


def test_mel_is_the_inverse_of_hertz():
    assert sounds.mel(1000) == pytest.approx(1000, abs=0.05)
    np.testing.assert_allclose(sounds.hertz(sounds.mel([20, 700, 8000])), [20, 700, 8000])


@pytest.mark.parametrize("frequency", [300, 1000, 5000])
def test_a_tone_is_in_its_band(frequency):
    tone = np.sin(2 * np.pi * frequency * SECOND)
    bands = anomaly.spectrograms(tone[None])[0, 5]
    middles = sounds.mel_edges(0, 8000, 128)[1:-1]
    assert abs(middles[bands.argmax()] / frequency - 1) < 0.04
    # Bands far from it have 40 dB less.
    assert np.all(bands[np.abs(np.log2(middles / frequency)) > 0.5] < bands.max() - 40)


def test_vectors_are_five_frames_each():
    bands = np.random.default_rng(0).normal(size=(2, 9, 128))
    rows = anomaly.vectors(bands)
    assert rows.shape == (2, 5, 640)
    np.testing.assert_array_equal(rows[1, 3], bands[1, 3:8].ravel())


def test_sounds_of_the_machine_follow_from_the_seed():
    first, again, other = (anomaly.machine_sounds(seed, 4, 3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)
    assert first.broken.tolist() == [False] * 3 + [True] * 3
    assert first.train.shape == (4, first.train.shape[1], 640)
    assert abs(first.train.mean()) < 0.05
    assert first.train.std() == pytest.approx(1, abs=0.05)


def test_no_voice_is_on_both_sides():
    for part in (TRAIN, TEST):
        assert len(set(part.variants)) == len(part.variants)
    assert not set(TRAIN.accents) & set(TEST.accents)
    assert not set(TRAIN.variants) & set(TEST.variants)
    # Variants of one name, but for a number, sound much alike; m1 and m2 or f1 and f2 do not.
    train, test = (
        {name.rstrip("0123456789") for name in part.variants if len(name) > 2}
        for part in (TRAIN, TEST)
    )
    assert not train & test
    # The same sounds under other names.
    assert not {"klatt", "klatt6"} & {*TRAIN.variants, *TEST.variants}
    random = np.random.default_rng(0)
    voices = [
        {each.voice for kind in keywords.utterances(part, random) for each in kind}
        for part in (TRAIN, TEST)
    ]
    assert not voices[0] & voices[1]
    assert [len(each) for each in voices] > [250, 55]


def test_each_class_speaks_its_words():
    kinds = keywords.utterances(TEST, np.random.default_rng(0))
    assert [len(kind) for kind in kinds] == [200] * 11
    for label, kind in enumerate(kinds[:UNKNOWN]):
        assert {each.word for each in kind} == {CLASSES[label]}
    others = {each.word for each in kinds[UNKNOWN]}
    assert others == set(TEST.unknown) > set(TRAIN.unknown)
    assert not others & set(CLASSES)


def test_clips_are_balanced_and_follow_from_the_seed(spoken):
    train, test = TRAIN._replace(each=2, unknowns=5), TEST._replace(each=2, unknowns=2)
    first, again, other = (keywords.make(train, test, seed) for seed in (0, 0, 1))
    assert cache.digest(first) == cache.digest(again) != cache.digest(other)
    assert np.bincount(first["y_train"]).tolist() == [2] * 10 + [5, 2]
    assert np.bincount(first["y_test"]).tolist() == [2] * 12
    assert first["x_train"].shape == (27, 49, 10, 1)
    assert np.isfinite(first["x_train"]).all()
    # Noise changes slowly; words do not.
    changes = np.abs(np.diff(first["x_test"][:, :, 0, 0], axis=1)).mean(1)
    silent = first["y_test"] == SILENCE
    assert changes[silent].mean() < changes[~silent].mean()


def test_words_are_kept_in_the_cache(spoken, few, monkeypatch):
    made = keywords.generate()
    assert made.x_train.shape == (3 * 11 + 5, 49, 10, 1)
    assert made.classes == made.y_test.max() + 1 == 12
    monkeypatch.setattr(sounds, "speak", None)  # Nothing may be spoken the second time.
    assert keywords.generate().digest == made.digest


def test_windows_of_a_stream_have_the_word_or_half_of_it():
    """Windows are of 15,872 samples, one every 512."""
    spans = np.array([[2000, 9000], [20_000, 26_000], [0, 0]])
    labels = np.array([wake_word.UNKNOWN, wake_word.WAKE, wake_word.SILENCE])
    found = wake_word.labels_of(spans, labels)
    assert len(found) == wake_word.WINDOWS == 63
    # Half of the wake word is in windows that end at 23,000, all of it in those to 26,000.
    half, whole = np.arange(63) * 512 + 15_872 > 23_000, np.arange(63) * 512 + 15_872 >= 26_000
    begins, middle = np.arange(63) * 512 <= 20_000, np.arange(63) * 512 < 23_000
    np.testing.assert_array_equal(found == wake_word.WAKE, whole & begins)
    np.testing.assert_array_equal(found == -1, half & middle & ~(whole & begins))
    assert found[0] == wake_word.UNKNOWN
    assert found[-1] == wake_word.SILENCE
    silent = wake_word.labels_of(spans[2:], labels[2:])
    assert set(silent) == {wake_word.SILENCE}


def test_streams_are_kept_in_the_cache(spoken, few, monkeypatch):
    made = wake_word.generate()
    assert made.x_train.shape[1:] == (30, 1, 40)
    assert made.x_train.dtype == made.x_test.dtype == np.uint8
    assert len(made.x_train) == len(made.y_train) == 27
    assert set(made.y_train) <= {0, 1, 2}
    assert made.x_test.shape == (4, 63, 30, 1, 40)
    # Windows follow one another by a frame.
    np.testing.assert_array_equal(made.x_test[:, 1:, :-1], made.x_test[:, :-1, 1:])
    assert made.y_test.dtype == bool
    assert made.test_inputs(0, 2).max() <= 1
    monkeypatch.setattr(sounds, "speak", None)
    assert wake_word.generate().digest == made.digest


def test_sounds_are_kept_in_the_cache(few, monkeypatch):
    made = anomaly.generate()
    assert made.x_train.shape == (81, 640)
    assert made.x_test.shape == (4, 27, 640)
    assert made.y_train is None
    assert made.y_test.tolist() == [False, False, True, True]
    monkeypatch.setattr(anomaly, "machine_sounds", None)
    assert anomaly.generate().digest == made.digest


def test_without_what_they_are_scored_with_no_sounds_are_made(few, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr(anomaly, "machine_sounds", None)
    said = r"^anomaly is scored .*scikit-learn, .*pip install 'tfcompress\[bench\]'$"
    with pytest.raises(Unavailable, match=said):
        anomaly.generate()


def test_without_espeak_there_are_no_words(few, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"espeak-ng is not installed.*apt-get install espeak-ng"):
        keywords.generate()


def test_an_espeak_that_lacks_voices_is_refused(spoken, few, monkeypatch):
    monkeypatch.setattr(sounds, "variants", lambda: {*TRAIN.variants, *TEST.variants} - {"zac"})
    with pytest.raises(Unavailable, match=r"lacks the voices zac: 1\.50 or later"):
        keywords.generate()


def test_all_voices_are_there(spoken):
    assert {*TRAIN.variants, *TEST.variants} <= sounds.variants()


def test_speech_is_without_silence_around_it_and_the_same_again(spoken):
    said = [Utterance("yes", "en-us+m3", 120), Utterance("yes", "en-us+m3", 240)]
    slow, fast = sounds.speak(said)
    assert slow.dtype == np.float32
    assert RATE / 8 < len(fast) < 0.8 * len(slow) < RATE
    assert np.abs(slow[: RATE // 100]).max() > 0.005
    np.testing.assert_array_equal(sounds.speak(said)[1], fast)


def test_speech_has_the_pitch_that_is_asked_for(spoken):
    def spacing(pitch):
        [sound] = sounds.speak([Utterance("no", "en-gb+m3", 120, pitch)])
        middle = sound[len(sound) // 3 : len(sound) // 3 + 2048]
        echo = np.correlate(middle, middle, "full")[2047:]
        return echo[40:250].argmax() + 40

    assert spacing(80) < 0.8 * spacing(20)


@pytest.mark.parametrize("each", [Utterance("yes", "xx-none"), Utterance(" ", "en-us")])
def test_what_is_not_spoken_is_told(spoken, each):
    with pytest.raises(Unavailable, match=f"espeak-ng does not speak .*{each.voice}"):
        sounds.speak([each])


def test_words_are_placed_whole_or_cut():
    random = np.random.default_rng(0)
    word, long = np.arange(1, 4001, dtype="float32"), np.arange(20_000, dtype="float32")
    clips = sounds.placed([word, word, long], random)
    starts = [int(np.flatnonzero(clip)[0]) for clip in clips[:2]]
    assert starts[0] != starts[1]
    for clip, start in zip(clips[:2], starts, strict=True):
        np.testing.assert_array_equal(clip[start : start + 4000], word)
        assert np.count_nonzero(clip) == 4000
    assert np.all(np.diff(clips[2]) == 1)


def test_noise_is_as_loud_as_asked_for():
    random = np.random.default_rng(0)
    words = np.zeros((5, RATE), "float32")
    words[:, 3200:7200] = 0.02 * np.sin(2 * np.pi * 440 * SECOND[:4000])
    noise = sounds.noises(random.normal(size=(5, RATE)).astype("float32"), random)
    np.testing.assert_allclose(np.square(noise).mean(1), 1, rtol=1e-3)
    clips = sounds.mixed(words, noise, np.array([0, 5, 10, 20, 60.0]))
    left = np.square(clips[:, 9000:]).mean(1) / np.square(noise[:, 9000:]).mean(1)
    np.testing.assert_allclose(10 * np.log10(left), [0, -5, -10, -20, -60], atol=0.01)
    # The word itself has power 1, whatever it had.
    assert np.square(clips[4, 3200:7200]).mean() == pytest.approx(1, rel=0.02)


def test_noises_are_of_many_kinds():
    random = np.random.default_rng(0)
    noise = sounds.noises(random.normal(size=(64, RATE)).astype("float32"), random)
    spectra = np.abs(fft.rfft(noise)) ** 2
    low = spectra[:, :1000].sum(1) / spectra.sum(1)
    assert low.min() < 0.15
    assert low.max() > 0.9
    loudness = np.square(noise).reshape(64, 40, 400).mean(2)
    swing = loudness.max(1) / loudness.mean(1)
    assert swing.min() < 1.5
    assert swing.max() > 5


def test_rooms_add_echoes_behind_a_sound():
    clips = np.zeros((4, RATE), "float32")
    clips[:, 8000] = 1
    heard = sounds.in_rooms(clips, np.random.default_rng(0))
    assert np.abs(heard).argmax(1).tolist() == [8000] * 4
    power = np.square(heard)
    before, after = power[:, :7500].sum(1), power[:, 8500:].sum(1)
    assert np.all(after > 10 * before)
    # Echoes decay.
    assert np.all(power[:, 8500:10000].sum(1) > power[:, 12000:13500].sum(1))


@pytest.mark.slow
def test_the_autoencoder_finds_most_of_what_is_broken():
    import keras

    keras.utils.set_random_seed(0)
    task, data = anomaly.TASK, anomaly.generate()
    model, training = task.build(keras, 0), task.training
    rates = keras.optimizers.schedules.CosineDecay(training.rate, training.steps)
    model.compile(keras.optimizers.Adam(rates), "mse", jit_compile=False)
    batches = data.batches(training.batch, 0)
    model.fit(batches, steps_per_epoch=training.steps, verbose=0)
    assert 0.85 < task.score(lambda x: model.predict(x, verbose=0), data) < 0.94
