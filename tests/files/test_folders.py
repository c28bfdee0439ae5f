"""Folders of generated files: all of them or none, and what was there stays or is replaced."""

import os

import pytest

from tfcompress.files.writing import check_new, write_into, write_new

FILES = {"a/b/c.txt": b"1", "d.txt": b"2", "z/e": b"3"}


def content(folder):
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("write", [write_new, write_into])
def test_files_of_the_same_names_are_replaced_and_others_stay(tmp_path, write):
    (tmp_path / "d.txt").write_bytes(b"old")
    (tmp_path / "mine.txt").write_bytes(b"mine")
    write(FILES, tmp_path)
    assert content(tmp_path) == {**FILES, "mine.txt": b"mine"}


@pytest.mark.parametrize("in_the_way", ["a file", "a folder"])
def test_what_was_replaced_comes_back_if_the_rest_cannot_be_written(tmp_path, in_the_way):
    (tmp_path / "secret").write_bytes(b"s")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "d.txt").write_bytes(b"old")
    if in_the_way == "a file":
        (folder / "z").write_bytes(b"no folder")
    else:
        (folder / "z/e").mkdir(parents=True)
    (folder / "a").mkdir()
    (folder / "a/b").mkdir()
    (folder / "a/b/c.txt").symlink_to(tmp_path / "secret")
    before, tree = content(folder), sorted(folder.rglob("*"))
    with pytest.raises(OSError, match="Nothing was changed"):
        write_into(FILES, folder)
    assert content(folder) == before
    assert sorted(folder.rglob("*")) == tree
    assert (tmp_path / "secret").read_bytes() == b"s"


def test_folders_around_a_new_one_are_made_or_taken_away_again(tmp_path):
    check_new(tmp_path / "x/y/out", force=False)
    write_new(FILES, tmp_path / "x/y/out")
    assert content(tmp_path / "x/y/out") == FILES
    with pytest.raises(OSError, match="cannot write"):
        write_new({"a": b"1", "a/b": b"2"}, tmp_path / "z/y/out")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
