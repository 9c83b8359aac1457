"""Files before they are opened, and the files of a folder."""

import os

import pytest

from llava_lens import files


def test_only_a_plain_file_of_a_bounded_size_is_opened(tmp_path):
    (tmp_path / "a").write_bytes(bytes(2**20))
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    files.check_file(tmp_path / "a", 2**20)
    files.check_file(tmp_path / "link", 2**20)
    with pytest.raises(ValueError, match="a link"):
        files.check_file(tmp_path / "link", 2**20, follow_links=False)
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="no file"):
            files.check_file(tmp_path / name, 2**20)
    with pytest.raises(ValueError, match="more than 0 MiB"):
        files.check_file(tmp_path / "a", 2**20 - 1)
    with pytest.raises(FileNotFoundError):
        files.check_file(tmp_path / "none", 1)


def test_files_are_found_but_not_through_links_nor_in_folders_that_are_left_out(tmp_path):
    for name in ("a", "b/c", "out/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to("b")
    found = files.files_under(tmp_path, lambda folder: folder.name == "out")
    assert sorted(found) == [tmp_path / "a", tmp_path / "b/c"]


def test_a_folder_that_cannot_be_read_is_named_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").touch()
    assert list(files.files_under(tmp_path / "none")) == []

    # Root may read anything.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path / "b"))
    with pytest.raises(PermissionError, match="b' can't be used .*: change its permissions, or"):
        list(files.files_under(tmp_path))


def test_a_file_is_written_whole_and_not_through_a_link(tmp_path, monkeypatch):
    (tmp_path / "precious").write_bytes(b"precious")
    files.write_whole(tmp_path / "new/a", b"1")
    for name in ("a", f"a.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to("precious")
    files.write_whole(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"2" and not (tmp_path / "a").is_symlink()
    with pytest.raises(ValueError, match="b' is a link, which is not followed: remove it"):
        (tmp_path / "b").symlink_to("new")
        files.inside(tmp_path, "b")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="a' can't be used .No space left on device.: make room or"):
        files.write_whole(tmp_path / "a", b"3")
    assert (tmp_path / "a").read_bytes() == b"2" and len(list(tmp_path.iterdir())) == 4
    assert (tmp_path / "precious").read_bytes() == b"precious"
