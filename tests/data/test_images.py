"""Images are found, named and opened; masks and other files are left out."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from llava_lens import pickles, store
from llava_lens.data import annotations, images


def test_images_are_found_by_name_through_subfolders(tmp_path):
    for name in ["b.JPG", "a.png", "sub/a.png", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(images.find_images(tmp_path)) == ["a.png", "b.JPG", "sub__a.png"]


def test_no_images_and_no_folder_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        images.find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        images.find_images(tmp_path / "missing")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (8, 6), "white").convert("L" if mode == "LA" else "RGB").convert(mode).save(
        path
    )
    image = images.open_image(path)
    assert image.mode == "RGB" and np.all(np.array(image) == 255)


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.all(np.array(images.open_image(tmp_path / "clear.png")) == 255)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def halves():
    """40 x 20, left white, right black."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    return Image.fromarray(pixels)


def test_unreadable_images_are_named(tmp_path, photographs, monkeypatch):
    whole = (photographs / "china.jpg").read_bytes()
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file\n%%EOF\n"
    )
    contents = {
        "empty.jpg": b"",
        "text.png": b"not an image",
        "truncated.jpg": whole[: len(whole) // 2],
        "program.png": postscript,
        "zeros.gif": bytes(5000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=f"{name}.* can't be read .*replace or remove it"):
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


@pytest.mark.parametrize(
    "name, encoding", [("photo.png", "JPEG"), ("photo.jpg", "PNG"), ("photo.gif", "WEBP")]
)
def test_a_wrong_extension_does_not_matter(tmp_path, name, encoding):
    halves().save(tmp_path / name, encoding)
    assert (
        np.abs(np.asarray(images.open_image(tmp_path / name)).astype(int)[:, :18] - 255).max() < 12
    )


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp"])
def test_of_an_animated_image_the_first_frame_is_read(tmp_path, name):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("white", "black", "red")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert np.all(np.asarray(images.open_image(tmp_path / name)) >= 254)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_boxes_agree_on_orientation(tmp_path, orientation):
    """Upright, or as stored where the annotations are for that; a box around the white half is
    around it either way."""
    path = tmp_path / "turned.png"
    halves().save(path, exif=exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(path))
    np.testing.assert_array_equal(images.open_image(path), upright)
    np.testing.assert_array_equal(images.open_image(path, upright.size), upright)
    np.testing.assert_array_equal(
        images.open_image(
            path, (80 if upright.width == 40 else 40, 40 if upright.width == 40 else 80)
        ),
        upright,
    )
    if upright.size != (40, 20):
        np.testing.assert_array_equal(images.open_image(path, (40, 20)), halves())
        with pytest.raises(OSError, match="it is 20 x 40, and its annotations are for 80 x 40"):
            images.open_image(path, (80, 40))


def test_every_image_has_a_name_that_a_file_can_have(tmp_path):
    names = [
        "a/b.jpg",
        "a__b.jpg",
        "long/" * 30 + "x" * 200 + ".jpg",
        b"caf\xe9.jpg".decode("utf-8", "surrogateescape"),
        "кошка.jpg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.json").mkdir()
    assert annotations.annotate(tmp_path, images.find_images(tmp_path)).objects == {}
    found = images.find_images(tmp_path)
    assert (
        len(found) == 5
        and sorted(found.values()) == sorted(tmp_path / name for name in names)
        and "кошка.jpg" in found
    )
    for name in found:
        path = store.Results(tmp_path / "results").record_path(name)
        pickles.save(path, {"name": name})
        assert pickles.load(path) == {"name": name}


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
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(images.find_images(tmp_path)) == sorted(found)


def test_digests_cover_the_image_the_objects_and_what_is_absent(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    dog = {"category": "dog", "box": [1.0, 2.0, 3.0, 4.0]}
    digests = [
        images.digests_of(tmp_path / "a.png", *known)["annotations_digest"]
        for known in (([dog],), ([dog], []), ([dog], ["cat"]), ([],))
    ]
    assert digests[0] == digests[1] and len({*digests}) == 3
