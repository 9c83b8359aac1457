"""llava_lens.data.images: pipes, large files, long names; a digest is of content."""

import io
import os
import shutil

import pytest
from PIL import Image

from llava_lens import checks
from llava_lens.data import annotations, images
from tests.hostile import PART, RUN, within


def test_a_pipe_and_a_file_of_gigabytes_are_refused_unread(tmp_path):
    """As an image and as annotations; a link to an image is one."""
    for name in ("a.png", "a.json"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(3 * 2**30)  # takes no room
        for _ in range(2):
            with within():
                if name == "a.png":
                    with pytest.raises(OSError, match="a.png.*(MiB|no file)"):
                        images.open_image(tmp_path / name)
                else:
                    found = annotations.annotate(tmp_path, {"a.png": tmp_path / "a.png"})
                    assert not found.objects and "a.json" in found.problems[0]
            (tmp_path / name).unlink()
            os.mkfifo(tmp_path / name)
        (tmp_path / name).unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("b.png")
    assert images.open_image(tmp_path / "c.png").size == (9, 9)


def progressive(n_scans: int) -> bytes:
    """A JPEG of 64 x 64 whose last scan comes again and again."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG", progressive=True)
    *before, last = file.getvalue().removesuffix(b"\xff\xd9").split(b"\xff\xda")
    return b"\xff\xda".join([*before, *[last] * (n_scans - len(before) + 1)]) + b"\xff\xd9"


def test_what_takes_much_longer_or_much_more_memory_than_a_photograph_is_refused(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(progressive(10))
    assert images.open_image(path).size == (64, 64)
    path.write_bytes(progressive(2500))
    with within(), pytest.raises(OSError, match="a.jpg.*it has 2500 scans, more than 64.*replace"):
        images.open_image(path)
    Image.new("I;16", (13_300, 13_300)).save(tmp_path / "b.png")  # some 300 kB
    with within(), pytest.raises(OSError, match="b.png.*it has 176,890,000 pixels, more than 67"):
        images.open_image(tmp_path / "b.png")


def test_a_name_of_255_bytes_is_shortened_to_one_that_results_take(tmp_path):
    (tmp_path / ("a" * 251 + ".jpg")).touch()
    (short,) = images.find_images(tmp_path)
    checks.check_part(PART | {"images": [short]}, RUN)


def test_digests_are_of_content(tmp_path, photographs):
    dog = {"category": "dog", "box": [1.0, 2.0, 3.0, 4.0], "image_size": (5, 6)}
    shutil.copy(photographs / "china.jpg", tmp_path / "other.png")
    one = images.digests_of(photographs / "china.jpg", [dog])
    assert one == images.digests_of(tmp_path / "other.png", [dict(reversed(dog.items()))])
    other = images.digests_of(photographs / "flower.jpg", [{**dog, "box": [1.0, 2.0, 3.0, 5.0]}])
    assert one.keys() == other.keys() == {"image_digest", "annotations_digest"}
    assert not {*one.values()} & {*other.values()}
