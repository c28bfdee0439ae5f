"""Folders of generated files: all of them or none, and what was there stays or is replaced."""

import os

import pytest

from tfcompress.files.writing import check_new, differing, write_all

FILES = {"a/b/c.txt": b"1", "d.txt": b"2", "z/e": b"3"}


def content(folder):
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_files_of_the_same_names_are_replaced_and_others_stay(tmp_path):
    (tmp_path / "d.txt").write_bytes(b"old")
    (tmp_path / "mine.txt").write_bytes(b"mine")
    write_all(FILES, tmp_path)
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
        write_all(FILES, folder)
    assert content(folder) == before
    assert sorted(folder.rglob("*")) == tree
    assert (tmp_path / "secret").read_bytes() == b"s"


def test_folders_around_a_new_one_are_made_or_taken_away_again(tmp_path):
    check_new(tmp_path / "x/y/out", force=False)
    write_all(FILES, tmp_path / "x/y/out")
    assert content(tmp_path / "x/y/out") == FILES
    with pytest.raises(OSError, match="cannot write"):
        write_all({"a": b"1", "a/b": b"2"}, tmp_path / "z/y/out")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_files_are_written_together(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    write_all({tmp_path / "a": b"new", tmp_path / "b": b"more"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"new", "b": b"more"}


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize("failing", [1, 2])
def test_if_one_fails_all_are_as_before(tmp_path, monkeypatch, failing, names):
    (tmp_path / "a").write_bytes(b"old")
    real, calls = os.replace, []

    def replace(source, target):
        if str(source).endswith(".new"):
            calls.append(target)
            if len(calls) == failing:
                raise OSError("the disk is gone")
        real(source, target)

    monkeypatch.setattr("tfcompress.files.writing.os.replace", replace)
    with pytest.raises(OSError, match="the disk is gone"):
        write_all({tmp_path / name: b"new" for name in names})
    assert len(calls) == failing
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}


@pytest.mark.parametrize("failing", [False, True])
def test_links_in_a_folder_are_replaced_and_not_followed(tmp_path, monkeypatch, failing):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "out"
    for path in (elsewhere, folder, elsewhere / "b"):
        path.mkdir()
    (elsewhere / "secret").write_bytes(b"s")
    (elsewhere / "b/c.txt").write_bytes(b"c")
    (folder / "a").symlink_to(elsewhere)
    (folder / "d.txt").symlink_to(elsewhere / "secret")
    (folder / "z").symlink_to(tmp_path / "nowhere")
    theirs, ours = content(elsewhere), content(folder)
    assert differing(FILES, folder) == ["a/b/c.txt", "d.txt", "z/e"]
    if failing:
        replace = os.replace

        def fail(source, target):
            if str(target).endswith("e"):
                raise OSError("the disk is gone")
            replace(source, target)

        monkeypatch.setattr("tfcompress.files.writing.os.replace", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            write_all(FILES, folder)
    else:
        write_all(FILES, folder)
    assert content(folder) == (ours if failing else FILES)
    assert content(elsewhere) == theirs
    assert not (tmp_path / "nowhere").exists()
