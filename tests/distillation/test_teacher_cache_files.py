"""Files of a teacher's outputs are whole, and of this teacher and these data, or refused."""

import contextlib
import errno
import os
import resource

import h5py
import numpy as np
import pytest
from teacher_samples import (
    SPECS,
    arrays_in,
    fill,
    filled,
    listing,
    require_found,
    samples,
    take,
    write_arrays,
)

from tfcompress.distillation.cache import TeacherCache
from tfcompress.files import writing


@pytest.fixture
def target(tmp_path):
    return tmp_path / "teacher.h5"


def test_other_data_than_those_of_a_complete_file_are_refused(target):
    inputs, outputs = samples(20)
    filled(target, inputs, outputs).close()
    before = listing(target.parent)
    cache = TeacherCache(target)
    cache.begin("teacher", SPECS, whole_epochs=True)
    with pytest.raises(ValueError, match=r"teacher.h5', which holds all 20 .*name another file"):
        cache.lookup(samples(5, seed=1)[0])
    cache.begin("teacher", SPECS, whole_epochs=True)
    match = r"These are float64 \(4, 2\), int8 \(\) per sample, those float32 \(4, 2\), int8 \(\)"
    with pytest.raises(ValueError, match=match):
        cache.lookup([inputs[0].astype("float64"), inputs[1]])
    cache.close()
    assert listing(target.parent) == before


def test_files_of_other_outputs_are_refused(target):
    filled(target, *samples(5)).close()
    before = listing(target.parent)
    cache = TeacherCache(target)
    with pytest.raises(ValueError, match=r"outputs of another teacher, or of other layers.*delete"):
        cache.begin("another", SPECS, whole_epochs=True)
    match = r"holds float32 \(3,\), float16 \(2, 2\) per sample; expected .* float32 \(3,\). Name"
    with pytest.raises(ValueError, match=match):
        cache.begin("teacher", SPECS[:1], whole_epochs=False)
    assert isinstance(cache.error, ValueError)
    assert listing(target.parent) == before


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-40])


def write_text(path):
    path.write_bytes(b"some text")


def write_model(path):
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"


def write_array(path):
    with open(path, "wb") as stream:
        np.save(stream, np.arange(3))


class Harm:
    def __reduce__(self):
        return pytest.fail, ("a file was executed",)


def write_pickle(path):
    write_arrays(path, arrays_in(path)[0], np.array([Harm()], object))


def changed(index, change):
    def damage(path):
        arrays = arrays_in(path)
        arrays[index] = change(arrays[index])
        write_arrays(path, *arrays)

    return damage


raise_version = changed(0, lambda header: {**header, "tfcompress teacher cache": 3})
drop_format = changed(0, lambda header: {"fingerprint": "teacher"})
garble_json = changed(0, lambda header: "{")
garble_specs = changed(0, lambda header: {**header, "specs": [["x"]]})
swap_keys = changed(1, lambda keys: keys[::-1])
repeat_rows = changed(2, lambda order: 0 * order)
lead_outside = changed(2, lambda order: order + 1)
drop_rows = changed(3, lambda rows: rows[:-1])
retype = changed(3, lambda rows: rows.view("int32"))
widen = changed(3, lambda rows: np.repeat(rows, 2, axis=1))


def drop_outputs(path):
    write_arrays(path, *arrays_in(path)[:-1])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (write_text, "is damaged, or no cache"),
        (cut_off, "is damaged, or no cache.*delete it"),
        (swap_keys, "is damaged.*not in order"),
        (repeat_rows, "is damaged.*not in order"),
        (lead_outside, "is damaged.*not in order"),
        (drop_rows, "is damaged.*not as many rows as keys"),
        (drop_outputs, "is damaged, or no cache"),
        (retype, "is damaged, or no cache.*int32.*in place of float32"),
        (widen, r"is damaged, or no cache.*\(6,\) in place of float32 \(3,\)"),
        (drop_format, "is damaged, or no cache"),
        (write_array, "is damaged, or no cache"),
        (write_pickle, "is damaged, or no cache"),
        (garble_specs, "is damaged, or no cache"),
        (garble_json, "is damaged, or no cache"),
        (write_model, "is an HDF5 file, but no cache.*an earlier version.*delete it"),
        (raise_version, "of version 3; expected 2. Name another file, or delete it"),
    ],
)
def test_a_damaged_file_or_another_one_is_refused_and_stays(target, damage, match):
    filled(target, *samples(5)).close()
    damage(target)
    before = listing(target.parent)
    with pytest.raises(ValueError, match=match):
        TeacherCache(target).begin("teacher", SPECS, whole_epochs=True)
    assert listing(target.parent) == before


def test_a_bad_path_is_found_before_training(tmp_path):
    with pytest.raises(TypeError, match="its path or None, received bool"):
        TeacherCache(True)
    for path, match in [(tmp_path / "no" / "a.h5", "there is no folder"), (tmp_path, "a folder")]:
        with pytest.raises(OSError, match=match):
            TeacherCache(path).begin("teacher", SPECS, whole_epochs=True)


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_epoch_leaves_everything_as_it_was(target, existing):
    inputs, outputs = samples(20)
    if existing:
        part = take(inputs, slice(8)), take(outputs, slice(8))
        filled(target, *part, whole_epochs=False).close()
    before = listing(target.parent)
    cache = TeacherCache(target)
    cache.begin("teacher", SPECS, whole_epochs=True)
    fill(cache, take(inputs, slice(8, 20)), take(outputs, slice(8, 20)))
    assert listing(target.parent) == before
    cache.close()
    assert listing(target.parent) == before
    cache.begin("teacher", SPECS, whole_epochs=True)
    assert cache.samples == 8 * existing


def open_named_only(path, flags, *arguments, open_as_usual=os.open, **options):
    """Like the file systems that know no files without a name."""
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")
    return open_as_usual(path, flags, *arguments, **options)


@contextlib.contextmanager
def limited(target, unfinished=writing.unfinished):
    """A new file that takes 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with unfinished(target) as opened:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            yield opened
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_changes_nothing(target, monkeypatch, named, step, existing):
    inputs, outputs = samples(20)
    if named:
        monkeypatch.setattr(os, "open", open_named_only)
    if existing:
        part = take(inputs, slice(8)), take(outputs, slice(8))
        filled(target, *part, whole_epochs=False).close()
    before = listing(target.parent)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = TeacherCache(target)
    cache.begin("teacher", SPECS, whole_epochs=True)
    fill(cache, take(inputs, slice(8, 20)), take(outputs, slice(8, 20)))
    with monkeypatch.context() as patched:
        if step == "write":  # Files of this process are limited, as a full disk would.
            patched.setattr(writing, "unfinished", limited)
        else:
            patched.setattr(os, step, full)
        why = "file too large" if step == "write" else "no space left.*Free some space"
        with pytest.raises(OSError, match=rf"teacher.h5'.*{why}"):
            cache.end_epoch()
    assert listing(target.parent) == before
    assert cache.samples == 8 * existing
    fill(cache, take(inputs, slice(8, 20)), take(outputs, slice(8, 20)))
    cache.end_epoch()
    require_found(cache, take(inputs, slice(8, 20)), take(outputs, slice(8, 20)))
    assert list(listing(target.parent)) == ["teacher.h5"]


def test_a_file_keeps_its_permissions(target):
    filled(target, *samples(8), whole_epochs=False).close()
    target.chmod(0o640)
    filled(target, *samples(8, seed=1), whole_epochs=True).close()
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_complete_file_may_be_on_a_read_only_disk(target, monkeypatch):
    filled(target, *samples(8), whole_epochs=True).close()

    def refuse(path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tfcompress.files.writing.unfinished", refuse)
    cache = TeacherCache(target)
    cache.begin("teacher", SPECS, whole_epochs=True)
    require_found(cache, *samples(8))
    with pytest.raises(OSError, match="read-only"):
        cache.begin("teacher", SPECS, whole_epochs=False)
