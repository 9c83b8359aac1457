"""lens_data: finding data, opening images, the crop, prompts, words to watch."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from llava_lens import pickles, store
from llava_lens.data import annotations, images
from llava_lens.data import crop as data_crop
from llava_lens.data import prompts as data_prompts
from llava_lens.model import load, read


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


def test_annotations(photographs):
    objects, categories, problems = annotations.read_annotations(photographs)
    assert categories == ["temple", "tree", "umbrella"] and not problems
    assert [(o["category"], o["box"], o["crowd"], o["color"]) for o in objects["china.jpg"]] == [
        ("temple", [150, 60, 220, 200], False, None),
        ("tree", [420, 180, 80, 100], False, "green"),
    ]


def test_keypoints_beside_instances_are_not_counted_twice(photographs, tmp_path):
    text = (photographs / "instances_test.json").read_text()
    for name in ["instances_val.json", "person_keypoints_val.json"]:
        (tmp_path / name).write_text(text)
    (tmp_path / "captions_val.json").write_text('{"images": [], "annotations": []}')
    assert len(annotations.read_annotations(tmp_path)[0]["china.jpg"]) == 2


def test_other_files_and_odd_annotations_are_passed_over(photographs, tmp_path):
    """JSON lines, annotations of images that are not listed (a subset), without a box, and twice
    the same."""
    data = json.loads((photographs / "instances_test.json").read_text())
    first = data["annotations"][0]
    data["annotations"] += [
        {**first, "id": 8, "image_id": 99},
        {key: first[key] for key in ("image_id", "category_id")},
        first,
    ]
    (tmp_path / "instances_subset.json").write_text(json.dumps(data))
    (tmp_path / "instances_lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    objects, _, problems = annotations.read_annotations(tmp_path)
    assert len(objects["china.jpg"]) == 2 and len(problems) == 4


def test_without_annotations(tmp_path):
    assert annotations.read_annotations(tmp_path) == ({}, [], [])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (8, 6), "white").convert("L" if mode == "LA" else "RGB").convert(mode).save(
        path
    )
    image = images.open_image(path)
    assert image.mode == "RGB" and np.all(np.array(image) == 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)).save(
        tmp_path / "deep.png"
    )
    assert (
        np.abs(
            np.array(images.open_image(tmp_path / "deep.png"))[..., 0].ravel().astype(int)
            - np.arange(256)
        ).max()
        <= 1
    )


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


def test_boxes_for_another_resolution_are_scaled(llava):
    found = {
        "category": "dog",
        "box": [10.0, 20.0, 30.0, 40.0],
        "crowd": False,
        "color": None,
        "image_size": (200, 100),
    }
    scaled = {**found, "box": [20.0, 40.0, 60.0, 80.0], "image_size": (400, 200)}
    one, other = (
        data_crop.objects_in_crop([item], (400, 200), llava[1].image_processor)
        for item in (found, scaled)
    )
    assert one == other and "image_size" not in one[0]


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3), (3, 50), (100, 1)])
def test_the_smallest_and_longest_images_reach_the_model_whole(tmp_path, llava, size):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    record, _ = read.read_image(
        *llava,
        images.open_image(tmp_path / "odd.png"),
        data_prompts.as_prompts(["What is it?"]),
        load.Settings(model="", max_new_tokens=1, top_k=10),
    )
    expected = Image.fromarray(pixels).resize(
        [int(56 * side / min(size)) for side in size], Image.Resampling.BICUBIC
    )
    left, top = (expected.width - 56) // 2, (expected.height - 56) // 2
    seen = np.asarray(data_crop.open_crop(record)).astype(int)
    assert (
        np.abs(seen - np.asarray(expected.crop((left, top, left + 56, top + 56)))).mean() < 12
    )  # JPEG


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"bbox": [1, 2, 0, 5]}, "width and height above 0"),
        ({"bbox": [1, 2, 5, -1]}, "width and height above 0"),
        ({"bbox": [1, 2, 3]}, "is not x, y"),
        ({"bbox": [1, 2, float("nan"), 3]}, "is not x, y"),
        ({"bbox": None}, "is not x, y"),
        ({"bbox": [1, 2, 10**400, 3]}, "is not x, y"),
        ({"bbox": [-1.7e308, 0, 1.7e308, 10]}, "is not x, y"),
        ({"bbox": "1234"}, "is not x, y"),
        ({"category_id": 77}, "there is no 77"),
        ({"image_id": 99}, "there is no 99"),
        ({"id": 1}, "the id 1 is there twice"),
        ({"category_id": [1]}, "unhashable"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named_and_left_out(
    photographs, tmp_path, change, problem
):
    data = json.loads((photographs / "instances_test.json").read_text())
    data["annotations"].append({**data["annotations"][0], "id": 3, **change})
    (tmp_path / "instances_odd.json").write_text(json.dumps(data))
    objects, categories, (said,) = annotations.read_annotations(tmp_path)
    assert said.startswith("instances_odd.json, annotation 2: ") and problem in said
    assert (objects, categories) == annotations.read_annotations(photographs)[:2]


@pytest.mark.parametrize(
    "data",
    [
        [],
        7,
        None,
        {},
        {"images": 1, "annotations": 2, "categories": 3},
        {"images": [], "annotations": [], "categories": [1]},
        {"images": [{"id": 1}], "annotations": [], "categories": []},
        {"images": {}, "annotations": None, "categories": {}},
    ],
)
def test_a_file_that_is_not_coco_is_named(tmp_path, data):
    (tmp_path / "odd.json").write_text(json.dumps(data))
    objects, categories, problems = annotations.read_annotations(tmp_path)
    assert (
        objects == {}
        and categories == []
        and len(problems) == 1
        and problems[0].startswith("odd.json (")
        and "not understood as annotations; expected is COCO's instances format" in problems[0]
    )


def test_what_is_named_twice_is_left_out_and_said(photographs, tmp_path):
    """Two images of one id, two categories of one id, two images of one name; but not two files
    that count from 1, nor a copy of a file."""
    data = json.loads((photographs / "instances_test.json").read_text())
    for folder in ("one", "copy"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "instances.json").write_text(json.dumps(data))
    other = {**data, "images": [{**data["images"][0], "file_name": "other.jpg"}]}
    (tmp_path / "instances_other.json").write_text(json.dumps(other))
    objects, categories, problems = annotations.read_annotations(tmp_path)
    assert [len(objects[name]) for name in ("copy/china.jpg", "other.jpg")] == [2, 2]
    assert not problems
    third = {**data, "images": [{**data["images"][0], "file_name": "copy/china.jpg"}]}
    (tmp_path / "instances_third.json").write_text(json.dumps(third))
    objects, _, problems = annotations.read_annotations(tmp_path)
    assert "copy/china.jpg" not in objects and problems == [
        "copy/china.jpg: several annotated images have this name, so its objects are left out"
    ]

    odd = tmp_path / "odd"
    odd.mkdir()
    twice = {
        **data,
        "images": data["images"] + [{"id": 7, "file_name": "b.jpg"}],
        "categories": data["categories"] + [{"id": 1, "name": "x"}],
    }
    (odd / "instances.json").write_text(json.dumps(twice))
    objects, _, problems = annotations.read_annotations(odd)
    assert objects == {} and problems[:2] == [
        "instances.json: 2 entries have the id 1, none is used",
        "instances.json: 2 entries have the id 7, none is used",
    ]


@pytest.mark.parametrize("name", ["", " ", "<image>", "half \ud800", 7, None])
def test_a_category_that_cannot_be_asked_about_is_left_out(photographs, tmp_path, name):
    data = json.loads((photographs / "instances_test.json").read_text())
    data["categories"][2]["name"] = name
    (tmp_path / "instances.json").write_text(json.dumps(data))
    objects, categories, problems = annotations.read_annotations(tmp_path)
    assert (
        categories == ["temple", "tree"]
        and len(objects["china.jpg"]) == 2
        and len(problems) == 1
        and "can't be asked about" in problems[0]
    )


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
    assert annotations.read_annotations(tmp_path)[:2] == ({}, [])
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


def test_files_that_annotations_name_need_not_be_there_and_crowds_are_kept(tmp_path):
    image = {"id": 1, "file_name": "../gone/missing.jpg", "width": 0, "height": "x"}
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [0, 0, 5, 5],
        "iscrowd": 1,
        "color": 7,
    }
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "images": [image],
                "annotations": [annotation],
                "categories": [{"id": 1, "name": "dog"}],
            }
        )
    )
    objects, _, problems = annotations.read_annotations(tmp_path)
    assert (
        objects
        == {
            "gone/missing.jpg": [
                {
                    "category": "dog",
                    "box": [0, 0, 5, 5],
                    "crowd": True,
                    "color": None,
                    "polygons": [],
                    "image_size": None,
                }
            ]
        }
        and not problems
    )


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64), (301, 77)])
def test_boxes_follow_the_processor(llava, size):
    """A white box on black, sent through the processor, is found where `box_in_crop` says."""
    processor = llava[1]
    box = (size[0] * 0.1, size[1] * 0.3, size[0] * 0.5, size[1] * 0.6)
    edges = [round(edge) for edge in (box[0], box[1], box[0] + box[2], box[1] + box[3])]
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[edges[1] : edges[3], edges[0] : edges[2]] = 255
    seen = processor.image_processor(images=Image.fromarray(pixels), return_tensors="np")[
        "pixel_values"
    ][0].mean(axis=0)
    rows, columns = np.nonzero(seen > (seen.min() + seen.max()) / 2)
    whole_pixels = (edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1])
    (x, y, w, h), visible = data_crop.box_in_crop(whole_pixels, size, processor.image_processor)
    assert (
        np.abs(
            np.array([x, y, x + w, y + h])
            - [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        ).max()
        <= 1
    )
    scale = 56 / min(size)
    assert visible == pytest.approx(
        w * h / (whole_pixels[2] * whole_pixels[3] * scale**2), rel=0.03
    )


def test_a_box_outside_the_crop_is_not_visible(llava):
    assert data_crop.box_in_crop((0, 0, 10, 50), (200, 50), llava[1].image_processor)[1] == 0


def test_a_box_is_a_list_of_floats(llava):
    """The format of the results has no tuples and no numpy numbers."""
    found = {"category": "dog", "box": [1, 2, 30, 40], "crowd": False, "color": None}
    (seen,) = data_crop.objects_in_crop([found], (90, 60), llava[1].image_processor)
    box, visible = data_crop.box_in_crop((1, 2, 30, 40), (90, 60), llava[1].image_processor)
    assert seen["box"] == box and seen["visible"] == visible and type(box) is list
    assert {type(number) for number in [*box, visible, seen["share"]]} == {float}
