"""llava_lens.data.images: images of odd depths, and what among them is no image."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from llava_lens import checks
from llava_lens.data import annotations, images
from tests.hostile import PART, RUN, Within


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_images_of_fewer_bits_than_their_file_has_are_not_dark(tmp_path, bits):
    ramp = np.linspace(0, 2**bits - 1, 256).round().reshape(16, 16)
    for name, kind in (("deep.png", np.uint16), ("deep.tif", np.int32)):
        Image.fromarray(ramp.astype(kind)).save(tmp_path / name)
        pixels = np.asarray(images.open_image(tmp_path / name))[..., 0].ravel().astype(int)
        assert np.abs(pixels - np.arange(256)).max() <= 1, name


@pytest.mark.parametrize("value", [-1, 2**16, 2**31 - 1])
def test_whole_numbers_of_an_unknown_range_are_refused(tmp_path, value):
    Image.fromarray(np.full((9, 9), value, np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(OSError, match="deep.tif.* of an unknown range"):
        images.open_image(tmp_path / "deep.tif")


def test_results_reports_and_checkpoints_among_images_are_not_images(tmp_path):
    for name in (
        "a.png",
        "sub/figures/b.png",
        "run/results/figures/c.png",
        "report/figures/d.png",
        ".ipynb_checkpoints/e-checkpoint.png",
        "sub/.hidden/f.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "run/results/run.pkl").touch()
    (tmp_path / "report/explorer").mkdir()
    assert list(images.find_images(tmp_path)) == ["a.png", "sub__figures__b.png"]


def test_a_pipe_and_a_file_of_gigabytes_are_refused_unread(tmp_path):
    """As an image and as annotations; a link to an image is one."""
    for name in ("a.png", "a.json"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(3 * 2**30)  # takes no room
        for _ in range(2):
            with Within():
                if name == "a.png":
                    with pytest.raises(OSError, match="a.png.*(MiB|no file)"):
                        images.open_image(tmp_path / name)
                else:
                    objects, _, problems = annotations.read_annotations(tmp_path)
                    assert not objects and "a.json" in problems[0]
            (tmp_path / name).unlink()
            os.mkfifo(tmp_path / name)
        (tmp_path / name).unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("b.png")
    assert images.open_image(tmp_path / "c.png").size == (9, 9)


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
