"""llava_lens.data.annotations: paths that could mean several images, broken files, odd boxes."""

import json
from pathlib import Path

import pytest

from llava_lens.data import annotations
from llava_lens.data import images as data_images


def annotated(folder, file_names, at="instances.json", more=()):
    """A COCO file in `folder` with an object, in a category of its own number, per file name."""
    boxes = [*enumerate(file_names)]
    data = {
        "images": [{"id": n, "file_name": name, "width": 90, "height": 60} for n, name in boxes],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n, "bbox": [1, 2, 30, 40]} for n, _ in boxes
        ],
        "categories": [{"id": n, "name": f"object {n}"} for n, _ in boxes],
    }
    for key, entries in dict(more).items():
        data[key] += entries
    (folder / at).parent.mkdir(parents=True, exist_ok=True)
    (folder / at).write_text(json.dumps(data))
    return data


def found_for(folder, images):
    """Categories by image, and the sentences, of images in `folder` made empty."""
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    objects, _, problems = annotations.read_annotations(folder)
    by_image, ambiguous = annotations.match_annotations(objects, data_images.find_images(folder))
    categories = {name: [item["category"] for item in found] for name, found in by_image.items()}
    return categories, problems + ambiguous


@pytest.mark.parametrize(
    "images, file_names, at, expected",
    [
        # One of two is annotated: by a path, or in a way that could mean either.
        (["train/0.png", "val/0.png"], ["train/0.png"], "a.json", {"train__0.png": 0}),
        (["train/0.png", "val/0.png"], ["0.png"], "a.json", {}),
        (["train/0.png", "val/0.png"], ["0.png"], "train/a.json", {"train__0.png": 0}),
        (
            ["train/0.png", "val/0.png"],
            ["val/0.png", "train/0.png"],
            "a.json",
            {"train__0.png": 1, "val__0.png": 0},
        ),
        (["0.png"], ["train/0.png", "val/0.png"], "a.json", {}),
        (["val/0.png"], ["train/0.png", "val/0.png"], "a.json", {"val__0.png": 1}),
        # As COCO's folders are, as an archive of another machine's was, and as links are.
        (["val2017/0.png"], ["0.png"], "annotations/a.json", {"val2017__0.png": 0}),
        (["val/0.png"], ["C:\\data\\val\\0.png"], "a.json", {"val__0.png": 0}),
        (["val/0.png"], ["../data/./val/0.png"], "a.json", {"val__0.png": 0}),
        (["a/b/0.png", "b/0.png", "0.png"], ["b/0.png"], "x.json", {"b__0.png": 0}),
    ],
)
def test_annotations_belong_to_the_longest_path_that_is_unambiguous(
    tmp_path, images, file_names, at, expected
):
    annotated(tmp_path, file_names, at)
    categories, problems = found_for(tmp_path, images)
    assert categories == {name: [f"object {n}"] for name, n in expected.items()}
    assert bool(problems) == (not expected) and all("0.png" in said for said in problems)


def test_a_broken_file_hides_no_good_one_and_a_bad_entry_no_file(tmp_path):
    bad = {
        "images": [{"id": 7}, 5, {"file_name": "x.png"}, {"id": [1], "file_name": "y.png"}],
        "categories": [{"id": 8}, None, {"name": "x"}, {"id": {}, "name": "y"}],
        "annotations": [None, 3, {"id": [2]}],
    }
    annotated(tmp_path, ["0.png"], "boxes.json", more=bad)
    (tmp_path / "instances_val.json").write_text("{")
    categories, problems = found_for(tmp_path, ["0.png"])
    assert categories == {"0.png": ["object 0"]} and len(problems) == 1 + 4 + 4 + 3


@pytest.mark.parametrize(
    "name, content",
    [
        ("labels/0.txt", "0 0.5 0.5 0.2 0.2\n"),
        ("0.xml", "<annotation><object></object></annotation>"),
        ("boxes.csv", "image,xmin,ymin,xmax,ymax\n0.png,1,2,3,4\n"),
        ("instances.JSON.gz", "x"),
        ("annotations.zip", "x"),
    ],
)
def test_annotations_of_other_kinds_are_named(tmp_path, name, content):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    for other, text in {"README.txt": "Pictures.", "a.csv": "a,b\n", "b.xml": "<x/>"}.items():
        (tmp_path / other).write_text(text)
    objects, _, (said,) = annotations.read_annotations(tmp_path)
    assert not objects and Path(name).name in said and "COCO" in said and "README" not in said


def test_a_suffix_in_capitals_is_a_suffix(tmp_path):
    annotated(tmp_path, ["0.png"], "INSTANCES.JSON")
    assert found_for(tmp_path, ["0.png"]) == ({"0.png": ["object 0"]}, [])


@pytest.mark.parametrize(
    "change, size, problem",
    [
        ({"bbox": [0.1, 0.1, 0.5, 0.5]}, (90, 60), "fractions"),
        ({"bbox": [100, 10, 20, 20]}, (90, 60), "outside"),
        ({"bbox": [10, 70, 20, 20]}, (90, 60), "outside"),
        ({"bbox": [40, 30, 80, 55]}, (90, 60), "leaves the image"),
        ({"bbox": [80, 50, 12, 11]}, (90, 60), None),  # by a little
        ({}, ("90", "60"), None),
        ({}, (90.0, 60.0), None),
        ({"iscrowd": "0"}, (90, 60), None),
        ({"iscrowd": "yes"}, (90, 60), "iscrowd"),
    ],
)
def test_odd_boxes_and_sizes_are_read_right_or_named(tmp_path, change, size, problem):
    data = annotated(tmp_path, ["0.png"])
    data["annotations"][0] |= change
    data["images"][0] |= dict(zip(("width", "height"), size, strict=True))
    (tmp_path / "instances.json").write_text(json.dumps(data))
    categories, problems = found_for(tmp_path, ["0.png"])
    assert categories == ({} if problem else {"0.png": ["object 0"]})
    assert len(problems) == bool(problem) and (problem or "") in "".join(problems)
    if not problem:
        (found,) = annotations.read_annotations(tmp_path)[0].values()
        assert found[0]["image_size"] == (90, 60) and found[0]["crowd"] is False
