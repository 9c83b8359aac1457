"""COCO's format: what is read, what is left out and named, and what is known to be absent."""

import json

import pytest

from llava_lens.data import annotations
from tests.data.test_annotations import annotated, found_for


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
        ({"category_id": [1]}, "there is no [1]"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named_and_left_out(
    photographs, tmp_path, change, problem
):
    data = json.loads((photographs / "instances_test.json").read_text())
    data["annotations"].append({**data["annotations"][0], "id": 3, **change})
    (tmp_path / "instances_odd.json").write_text(json.dumps(data))
    objects, _, categories, (said,), _ = annotations.read_annotations(tmp_path)
    assert said.startswith("instances_odd.json, annotation 2: ") and problem in said
    whole = annotations.read_annotations(photographs)
    assert (objects, categories) == (whole.objects, whole.categories)


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
    objects, _, categories, problems, _ = annotations.read_annotations(tmp_path)
    assert (
        objects == {}
        and categories == []
        and len(problems) == 1
        and problems[0].startswith("odd.json (")
        and "not understood as annotations; expected is COCO's instances format" in problems[0]
    )


@pytest.mark.parametrize("name", ["", " ", "<image>", "half \ud800", 7, None])
def test_a_category_that_cannot_be_asked_about_is_left_out(photographs, tmp_path, name):
    data = json.loads((photographs / "instances_test.json").read_text())
    data["categories"][2]["name"] = name
    (tmp_path / "instances.json").write_text(json.dumps(data))
    objects, _, categories, problems, _ = annotations.read_annotations(tmp_path)
    assert (
        categories == ["temple", "tree"]
        and len(objects["china.jpg"]) == 2
        and len(problems) == 1
        and "can't be asked about" in problems[0]
    )


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
    objects, _, _, problems, _ = annotations.read_annotations(tmp_path)
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


def test_a_category_with_a_long_name_cannot_be_asked_about(photographs, tmp_path):
    data = json.loads((photographs / "instances_test.json").read_text())
    data["categories"][2]["name"] = "a" * 101
    (tmp_path / "instances.json").write_text(json.dumps(data))
    assert annotations.read_annotations(tmp_path).categories == ["temple", "tree"]


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
