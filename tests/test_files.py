"Files that are whole or not there, and errors of one line."

import numpy as np
import pytest

from dreamer4_nb.files import (
    RecordingError,
    atomic_file,
    atomic_folder,
    find_folder,
    one_line,
    read_json,
    read_npz,
    recording_error,
    restore_folder,
    with_checksum,
    write_json,
)


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert read_json(tmp_path / "a.json") == 1
    assert names(tmp_path) == ["a.json"]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path):
    with atomic_folder(tmp_path / "a") as temporary:
        (temporary / "whole").write_text("x")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a") as temporary:
        (temporary / "half").write_text("x")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["whole"]


def test_a_look_up_finds_a_folder_that_was_being_replaced_and_renames_nothing(tmp_path):
    (tmp_path / ".old-a").mkdir()
    assert find_folder(tmp_path / "a") == tmp_path / ".old-a"
    assert names(tmp_path) == [".old-a"]
    (tmp_path / "a").mkdir()
    assert find_folder(tmp_path / "a") == tmp_path / "a"
    assert find_folder(tmp_path / "b") == tmp_path / "b"


def test_a_folder_that_was_being_replaced_is_restored(tmp_path):
    (tmp_path / ".old-a").mkdir()
    (tmp_path / ".old-a" / "whole").write_text("x")
    assert names(restore_folder(tmp_path / "a")) == ["whole"]
    assert names(tmp_path) == ["a"]


def test_processes_of_a_run_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with atomic_file(tmp_path / "a") as temporary:
        assert temporary.name == ".tmp-1-a"
        temporary.write_text("x")
    assert names(tmp_path) == ["a"]


def test_a_name_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="could not be written .* Hint: free some space"):
        write_json(tmp_path / ("a" * 300), {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file/a.json: could not be written"):
        write_json(tmp_path / "file" / "a.json", {})


GOOD = with_checksum(dict(format="demo", version=2, steps=7))


@pytest.mark.parametrize(
    "value, problem",
    [
        ([1], "holds list, not a dictionary"),
        (dict(version=2), "format: None version 2, expected demo version 2"),
        (GOOD | dict(version=1), "format: demo version 1, expected demo version 2"),
        (GOOD | dict(steps=8), "crc32: the file has changed since it was written"),
    ],
)
def test_json_of_another_kind(tmp_path, value, problem):
    path = tmp_path / "a.json"
    write_json(path, value)
    with pytest.raises(RecordingError, match=f"a.json: {problem}. Hint: convert again"):
        read_json(path, format="demo", version=2, hint="convert again", error=RecordingError)
    assert read_json(path) == value


def test_json_that_is_none(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match="a.json: no such file. Hint: train first"):
        read_json(path, hint="train first")
    for content in (b"{", b"\xff\xfe", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.json: not readable as JSON") as error:
            read_json(path)
        assert not isinstance(error.value, UnicodeError)


def test_arrays_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match="a.npz: no such file"):
        read_npz(path)
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="a.npz: archive: cannot be read"):
        read_npz(path)
    np.savez(path, good=np.zeros(2), bad=np.array([{}], dtype=object))
    with pytest.raises(RecordingError, match="a.npz: bad: holds Python objects"):
        read_npz(path, error=RecordingError)
    single = tmp_path / "single.npz"
    with open(single, "wb") as file:
        np.save(file, np.zeros(2))
    with pytest.raises(ValueError, match="single.npz: archive: cannot be read"):
        read_npz(single)


def test_errors_are_one_line():
    error = recording_error("a", "b\nc", "d\0e", "f")
    assert str(error) == "a: b c: d e. Hint: f"
    assert one_line(" a\t\n b ") == "a b"
