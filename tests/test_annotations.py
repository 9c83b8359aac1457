"""Annotations in other files than COCO's instances: read, or named in one sentence."""

import json

import pytest

from llava_lens.data import annotations as data_annotations

DOG = {"category": "dog", "bbox": [10, 20, 30, 40]}
CAT = {"category": "cat", "bbox": [50, 5, 6, 7]}


def write(folder, name, content) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)


def lines(*entries) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def boxes(folder) -> dict:
    objects, categories, problems = data_annotations.read_annotations(folder)
    assert problems == [] and categories == sorted(
        {o["category"] for v in objects.values() for o in v}
    )
    return {
        file.split("/")[-1]: [(item["category"], item["box"]) for item in items]
        for file, items in sorted(objects.items())
    }


FOUND = {
    "a.jpg": [("dog", [10, 20, 30, 40]), ("cat", [50, 5, 6, 7])],
    "b.jpg": [("cat", [1, 2, 3, 4])],
}
B = {"category": "cat", "bbox": [1, 2, 3, 4]}


def test_instances_under_any_name(tmp_path):
    """As FiftyOne exports them: labels.json beside data/."""
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    categories = [{"id": 0, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "cat"}]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 0, "bbox": DOG["bbox"], "supercategory": "animal"},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": CAT["bbox"], "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": B["bbox"], "area": 12},
    ]
    data = {"info": {}, "images": images, "categories": categories, "annotations": annotations}
    write(tmp_path, "labels.json", data)
    assert boxes(tmp_path) == FOUND


@pytest.mark.parametrize(
    "files",
    [
        # One JSON per image, with its name, or called as the image is.
        {
            "a.json": {"file_name": "a.jpg", "objects": [DOG, CAT]},
            "b.json": {"image": "b.jpg", **B},
        },
        {"a.json": {"annotations": [DOG, CAT]}, "b.json": [B]},
        {"a.json": {"image": {"file_name": "x/a.jpg"}, "annotations": [DOG, CAT]}, "b.json": [B]},
        # JSON lines, per image, per box, and with lists side by side as Hugging Face has them.
        {
            "metadata.jsonl": lines(
                {"file_name": "a.jpg", "objects": [DOG, CAT]},
                {"file_name": "b.jpg", "objects": [B]},
            )
        },
        {
            "boxes.json": lines(
                {"image": "a.jpg", **DOG}, {"image": "a.jpg", **CAT}, {"image": "b.jpg", **B}
            )
        },
        {
            "metadata.jsonl": lines(
                {
                    "file_name": "a.jpg",
                    "objects": {"bbox": [DOG["bbox"], CAT["bbox"]], "categories": ["dog", "cat"]},
                },
                {"file_name": "b.jpg", "objects": {"bbox": [B["bbox"]], "category": ["cat"]}},
            )
        },
        # One list of boxes, other names of the keys.
        {
            "all.json": [
                {"filename": "a.jpg", "label": "dog", "box": DOG["bbox"]},
                {"filename": "a.jpg", "class": "cat", "bounding_box": CAT["bbox"]},
                {"filename": "b.jpg", "category_name": "cat", "bbox": B["bbox"]},
            ]
        },
    ],
)
def test_exports_with_image_category_and_box(tmp_path, files):
    for name, content in [("a.jpg", ""), ("b.jpg", ""), *files.items()]:
        write(tmp_path, name, content)
    assert boxes(tmp_path) == FOUND


def test_sizes_crowds_colours_polygons_and_images_without_objects_are_kept(tmp_path):
    dog = {**DOG, "iscrowd": 1, "color": "brown", "segmentation": [[0, 0, 9, 0, 9, 9]]}
    entry = {"file_name": "a.jpg", "width": 640, "height": 480, "objects": [dog]}
    write(tmp_path, "m.jsonl", lines(entry, {"file_name": "b.jpg", "objects": []}))
    objects, _, problems = data_annotations.read_annotations(tmp_path)
    (found,) = objects["a.jpg"]
    assert (found["image_size"], found["crowd"], found["color"]) == ((640, 480), True, "brown")
    assert found["polygons"] == dog["segmentation"] and objects["b.jpg"] == [] and not problems


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.json", {"objects": [{"category_id": 3, "bbox": [1, 2, 3, 4]}]}, "no category's name"),
        ("a.json", {"shapes": [{"label": "dog", "points": [[1, 2]]}]}, "no category's name"),
        ("a.json", {"objects": [{"label": "dog", "points": [[1, 2], [3, 4]]}]}, "no box"),
        ("x.json", [DOG], "no image's name among 'category', 'bbox'"),
        ("a.json", [{**DOG, "bbox": [0.1, 0.2, 0.3, 0.4]}], "boxes are not in pixels"),
        ("a.json", [{**DOG, "bbox": [9 * n, 5, 9 * n + 20, 30]} for n in range(5)], "two corners"),
        ("m.jsonl", '{"file_name": "a.jpg"\n', "JSONDecodeError"),
        ("a.xml", "<annotation/>", "a.xml"),
        ("a.txt", "0 0.5 0.5 0.1 0.1", "a.txt"),
        ("train_labels.csv", "image,class", "train_labels.csv"),
    ],
)
def test_what_is_not_understood_is_named_in_one_sentence_with_what_was_expected(
    tmp_path, name, content, reason
):
    write(tmp_path, "a.jpg", "")
    write(tmp_path, name, content)
    objects, categories, (problem,) = data_annotations.read_annotations(tmp_path)
    assert objects == {} and categories == [] and problem.startswith(name)
    assert reason in problem and "expected is COCO's instances format" in problem


def test_a_hundred_files_that_are_not_understood_are_one_sentence(tmp_path):
    for number in range(100):
        write(tmp_path, f"{number:03}.json", {"polygons": []})
    (problem,) = data_annotations.read_annotations(tmp_path)[2]
    assert problem.startswith("000.json (") and "and 99 more files" in problem


def test_notes_beside_annotations_that_were_read_are_no_problem(tmp_path):
    write(tmp_path, "README.txt", "labels")
    write(tmp_path, "labels.txt", "dog\ncat\n")
    write(tmp_path, "m.jsonl", lines({"file_name": "a.jpg", "objects": [DOG]}))
    assert list(boxes(tmp_path)) == ["a.jpg"]
