"""Files before they are opened, and the files of a folder."""

import os
import subprocess
import sys

import pytest

from llava_lens import files, store
from llava_lens.data import images


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


def test_folders_without_end_are_refused(tmp_path):
    make = "for _ in range(3000): os.mkdir('d'); os.chdir('d')"
    try:
        subprocess.run([sys.executable, "-c", f"import os\n{make}"], cwd=tmp_path, check=True)
        for call in (images.find_images, images.data_files, store.Results.find):
            with pytest.raises(ValueError, match="folders .* deep"):
                call(tmp_path)
    finally:  # pytest can't remove them
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
