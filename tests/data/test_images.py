"""Images are found, named and opened; masks and other files are left out."""

import io
import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from llava_lens import checks
from llava_lens.data import annotations, images
from tests.hostile import PART, RUN, within


def touch(folder, *names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_no_images_and_no_folder_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        images.find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        images.find_images(tmp_path / "missing")


WHITE, BLACK = (Image.new("RGB", (8, 6), colour) for colour in ("white", "black"))
MOVING = {"save_all": True, "append_images": [BLACK, BLACK]}


@pytest.mark.parametrize(
    "name, image, how",
    [
        *(("image.png", WHITE.convert(mode), {}) for mode in ("1", "L", "P", "RGBA")),
        ("image.png", WHITE.convert("L").convert("LA"), {}),
        ("image.tif", WHITE.convert("CMYK"), {}),
        ("clear.png", Image.new("RGBA", (8, 6), (255, 0, 0, 0)), {}),
        # A suffix says nothing.
        ("photo.png", WHITE, {"format": "JPEG"}),
        ("photo.jpg", WHITE, {"format": "PNG"}),
        ("photo.gif", WHITE, {"format": "WEBP"}),
        # Of several frames the first counts.
        ("moving.gif", WHITE, MOVING),
        ("moving.png", WHITE, MOVING),
        ("moving.webp", WHITE, MOVING),
    ],
)
def test_a_white_image_is_white_however_it_is_stored(tmp_path, name, image, how):
    image.save(tmp_path / name, **how)
    seen = images.open_image(tmp_path / name)
    assert seen.mode == "RGB" and np.asarray(seen).shape == (6, 8, 3)
    assert np.asarray(seen).min() >= 254


def test_unreadable_images_are_named(tmp_path, photographs, monkeypatch):
    whole = (photographs / "china.jpg").read_bytes()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file\n%%EOF\n"
    contents = {"empty.jpg": b"", "text.png": b"not an image", "zeros.gif": bytes(5000)}
    contents |= {"truncated.jpg": whole[: len(whole) // 2], "program.png": eps}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=f"{name}.* can't be read .*it. Known formats: JPEG,"):
            images.open_image(tmp_path / name)
    Image.new("L", (20_000, 100)).save(tmp_path / "thin.png")
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "float.tif")
    for name, reason in {
        "thin.png": "20000 x 100, and the model would see next to nothing",
        "float.tif": "floating-point",
    }.items():
        with pytest.raises(OSError, match=f"{name}.*{reason}"):
            images.open_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(OSError, match="china.jpg.*decompression bomb"):
        images.open_image(photographs / "china.jpg")


def halves():
    """40 x 20, left white, right black."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_boxes_agree_on_orientation(tmp_path, orientation):
    """Upright, or as stored where the annotations are for that; a box around the white half is
    around it either way."""
    path = tmp_path / "turned.png"
    tags = Image.Exif()
    tags[0x0112] = orientation
    halves().save(path, exif=tags)
    upright = ImageOps.exif_transpose(Image.open(path))
    np.testing.assert_array_equal(images.open_image(path), upright)
    np.testing.assert_array_equal(images.open_image(path, upright.size), upright)
    twice = (2 * upright.width, 2 * upright.height)
    np.testing.assert_array_equal(images.open_image(path, twice), upright)
    if upright.size != (40, 20):
        np.testing.assert_array_equal(images.open_image(path, (40, 20)), halves())
        with pytest.raises(OSError, match="it is 20 x 40, and its annotations are for 80 x 40"):
            images.open_image(path, (80, 40))


def test_every_image_has_a_name_that_results_take(tmp_path):
    names = ["a/b.jpg", "a__b.jpg", "long/" * 30 + "x" * 200 + ".jpg", "a" * 251 + ".jpg"]
    names += [b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), "кошка.jpg", "c.JPG", "notes.txt"]
    touch(tmp_path, *names)
    (tmp_path / "folder.json").mkdir()
    found = images.find_images(tmp_path)
    assert annotations.annotate(tmp_path, found).objects == {}
    assert sorted(found.values()) == sorted(tmp_path / name for name in names[:-1])
    assert {"кошка.jpg", "c.JPG", "a__b.jpg"} <= found.keys()
    for name in found:
        checks.check_part(PART | {"images": [name]}, RUN)


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
    touch(tmp_path, "a.png", "sub/figures/b.png", "run/results/figures/c.png", "sub/.hidden/f.png")
    touch(tmp_path, "report/figures/d.png", ".ipynb_checkpoints/e-checkpoint.png")
    (tmp_path / "run/results/run.pkl").touch()
    (tmp_path / "report/explorer").mkdir()
    assert list(images.find_images(tmp_path)) == ["a.png", "sub__figures__b.png"]


@pytest.mark.parametrize(
    "names, found",
    [
        # What Macs and network drives leave behind.
        (["photo.jpg", "._photo.jpg", "__MACOSX/._photo.jpg", "@eaDir/photo.jpg"], ["photo.jpg"]),
        (["a.jfif", "b.jpe", "c.JPE"], ["a.jfif", "b.jpe", "c.JPE"]),
        # Masks beside photographs, by folder and by name, as COCO, Cityscapes and VOC have them.
        (["val/1.jpg", "annotations/panoptic_val2017/1.png"], ["val__1.jpg"]),
        (["val/1.jpg", "panoptic_val2017/other.png"], ["val__1.jpg"]),
        (["1.jpg", "1.png", "2.png"], ["1.jpg", "2.png"]),
        (["images/1.png", "masks/1.png"], ["images__1.png"]),
        (["JPEGImages/1.jpg", "SegmentationClass/1.png"], ["JPEGImages__1.jpg"]),
        # No masks.
        (["masks/1.png", "masks/2.png"], ["masks__1.png", "masks__2.png"]),
        (["a/1.jpg", "b/1.png"], ["a__1.jpg", "b__1.png"]),
    ],
)
def test_what_is_a_photograph(tmp_path, names, found):
    touch(tmp_path, *names)
    assert sorted(images.find_images(tmp_path)) == sorted(found)


def test_digests_are_of_content(tmp_path):
    """They cover the image, the objects, what is absent and what was dropped."""
    for name, colour in (("a.png", "red"), ("b.png", "red"), ("c.png", "blue")):
        Image.new("RGB", (9, 9), colour).save(tmp_path / name)
    dog = {"category": "dog", "box": [1.0, 2.0, 3.0, 4.0], "image_size": (5, 6)}
    one = images.digests_of(tmp_path / "a.png", [dog])
    assert one.keys() == {"image_digest", "annotations_digest"}
    assert one == images.digests_of(tmp_path / "b.png", [dict(reversed(dog.items()))], [])
    other = images.digests_of(tmp_path / "c.png", [{**dog, "box": [1.0, 2.0, 3.0, 5.0]}])
    assert not {*one.values()} & {*other.values()}
    known = ([dog], []), ([dog], ["cat"]), ([], []), ([dog], [], [dog])
    digests = [images.digests_of(tmp_path / "a.png", *each) for each in known]
    assert len({each["annotations_digest"] for each in digests}) == 4


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
