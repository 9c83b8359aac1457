"""COCO's format: what is read, what is left out and named, and what is known to be absent."""

import json

import pytest

from llava_lens.data import coco
from tests.data.test_annotations import annotated, found_for, read, write


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
        ({"color": "r" * 70_000}, "the colour 'rrrrr"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named_and_left_out(
    photographs, tmp_path, change, problem
):
    data = json.loads((photographs / "instances_test.json").read_text())
    data["annotations"].append({**data["annotations"][0], "id": 3, **change})
    write(tmp_path, "instances_odd.json", data)
    found = read(tmp_path, "china.jpg")
    (said,) = found.problems
    assert said.startswith("instances_odd.json, annotation 2: ") and problem in said
    temple, tree = read(photographs, "china.jpg").objects["china.jpg"]
    # A second temple is somewhere: the first counts as a crowd, and is never "the temple".
    temple["crowd"] = not change.keys() & {"category_id", "image_id"}
    assert found.objects == {"china.jpg": [temple, tree]}
    assert found.categories == ["temple", "tree", "umbrella"]


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
    write(tmp_path, "odd.json", data)
    objects, _, categories, (problem,), _ = read(tmp_path, "china.jpg")
    assert objects == {} and categories == [] and problem.startswith("odd.json (")
    assert "not understood as annotations; expected is COCO's instances format" in problem


TOKENS = "</s>", "<s>", "<unk>", "<pad>", "<image>", "<|im_end|>"


@pytest.mark.parametrize("name", ["", " ", *TOKENS, "a <s>", "half \ud800", "a" * 101, 7, None])
def test_a_category_that_cannot_be_asked_about_is_left_out(photographs, tmp_path, name):
    data = json.loads((photographs / "instances_test.json").read_text())
    data["categories"][2]["name"] = name
    write(tmp_path, "instances.json", data)
    objects, _, categories, (problem,), _ = read(tmp_path, "china.jpg")
    assert categories == ["temple", "tree"] and len(objects["china.jpg"]) == 2
    assert "can't be asked about" in problem or "no name" in problem


def test_odd_paths_and_sizes_of_images_are_read_and_crowds_are_kept(tmp_path):
    image = {"id": 1, "file_name": "../gone/missing.jpg", "width": 0, "height": "x"}
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1, "color": 7}
    categories = [{"id": 1, "name": "dog"}]
    write(tmp_path, "a.json", {"images": [image], "annotations": [box], "categories": categories})
    found = read(tmp_path, "missing.jpg")
    dog = {"category": "dog", "box": [0, 0, 5, 5], "crowd": True, "color": None}
    assert found.objects == {"missing.jpg": [{**dog, "polygons": [], "image_size": None}]}
    assert not found.problems


def test_a_broken_file_hides_no_good_one_and_a_bad_entry_no_file(tmp_path):
    bad = {
        "images": [{"id": 7}, 5, {"file_name": "x.png"}, {"id": [1], "file_name": "y.png"}],
        "categories": [{"id": 8}, None, {"name": "x"}, {"id": {}, "name": "y"}],
        "annotations": [None, 3, {"id": [2]}],
    }
    annotated(tmp_path, ["0.png"], "boxes.json", more=bad)
    write(tmp_path, "instances_val.json", "{")
    categories, problems = found_for(tmp_path, ["0.png"])
    assert categories == {"0.png": ["object 0"]} and len(problems) == 1 + 4 + 4 + 3


@pytest.mark.parametrize(
    "change, size, problem",
    [
        ({"bbox": [0.1, 0.1, 0.5, 0.5]}, (90, 60), "fractions"),
        ({"bbox": [100, 10, 20, 20]}, (90, 60), "leaves"),
        ({"bbox": [10, 70, 20, 20]}, (90, 60), "leaves"),
        ({"bbox": [40, 30, 80, 55]}, (90, 60), "leaves the image"),
        ({"bbox": [80, 50, 12, 11]}, (90, 60), None),  # by a little
        ({}, ("90", "60"), None),
        ({}, (90.0, 60.0), None),
        ({"iscrowd": "0"}, (90, 60), None),
    ],
)
def test_odd_boxes_and_sizes_are_read_right_or_named(tmp_path, change, size, problem):
    data = annotated(tmp_path, ["0.png"])
    data["annotations"][0] |= change
    data["images"][0] |= dict(zip(("width", "height"), size, strict=True))
    write(tmp_path, "instances.json", data)
    categories, problems = found_for(tmp_path, ["0.png"])
    assert categories == ({} if problem else {"0.png": ["object 0"]})
    assert len(problems) == bool(problem) and (problem or "") in "".join(problems)
    if not problem:
        (found,) = read(tmp_path, "0.png").objects.values()
        assert found[0]["image_size"] == (90, 60) and found[0]["crowd"] is False


BOX = [1, 2, 30, 40]


def absent_of(folder, *more, categories=("dog", "cat", "cow"), image=(), first=True):
    """What `1.jpg` is known not to have: `first` a dog is annotated in it, then `more`."""
    data = annotated(folder, ["1.jpg", "2.jpg"])
    for number, entry in enumerate(data["images"], 1):
        entry["id"] = number
    data["images"][0] |= dict(image)
    data["annotations"] = [*[another(0, id=1)] * first, *more]
    data["categories"] = [
        {"id": n, **(entry if isinstance(entry, dict) else {"name": entry})}
        for n, entry in enumerate(categories)
    ]
    write(folder, "instances.json", data)
    return read(folder, "1.jpg", "2.jpg").absent["1.jpg"]


def another(category_id=1, **change):
    return {"id": 2, "image_id": 1, "category_id": category_id, "bbox": BOX} | change


@pytest.mark.parametrize(
    "entry, absent",
    [
        (another(), ["cow"]),
        (another(image_id=2), ["cat", "cow"]),
        # The category is there, whatever is wrong with the rest.
        (another(bbox=[29, 38, 1.03, 0.0]), ["cow"]),
        (another(bbox=[40, 30, 80, 55]), ["cow"]),
        (another(bbox=[0.1, 0.2, 0.3, 0.4]), ["cow"]),
        (another(bbox=None), ["cow"]),
        ({"image_id": 1, "category_id": 1}, ["cow"]),
        (another(iscrowd="maybe"), ["cow"]),
        (another(iscrowd=1), ["cow"]),
        # Nobody knows what it is, or where.
        (another(category_id=77), []),
        (another(category_id=None), []),
        ({"image_id": 1, "bbox": BOX}, []),
        ({"category_id": 1, "bbox": BOX}, []),
        (None, []),
        (another(image_id=[1]), []),
        (another(image_id=float("nan")), []),
        (another(image_id="1.jpg"), []),
        (another(category_id=float("nan")), []),
        (another(category_id=" 1.0"), ["cow"]),
        (another(bbox={"x": 1, "y": 2, "w": 3, "h": 4}), ["cow"]),
        (another(bbox=[9, 9, -3, float("nan")]), ["cow"]),
        # Of an image that is not listed, as in a part of a data set.
        (another(image_id=99), ["cat", "cow"]),
    ],
)
def test_what_of_an_annotation_cannot_be_used_is_not_absent(tmp_path, entry, absent):
    assert absent_of(tmp_path, entry) == absent


@pytest.mark.parametrize(
    "crowd, is_crowd", [(0.0, False), (None, False), (1.0, True), ("1", True), ("yes", True)]
)
def test_crowds_as_exports_write_them(tmp_path, crowd, is_crowd):
    absent_of(tmp_path, another(iscrowd=crowd))
    assert read(tmp_path, "1.jpg", "2.jpg").objects["1.jpg"][1]["crowd"] is is_crowd


KINDS = [
    {"name": name, "supercategory": above}
    for name, above in (
        ("dog", "animal"),
        ("Animal", "being"),
        ("poodle", "dog"),
        ("cat", "animal"),
    )
]


@pytest.mark.parametrize(
    "categories, absent",
    [
        (["dog", "Dog", "dog ", "dogs", "DOGS", "cat"], ["cat"]),
        (["traffic light", "traffic_light", "Traffic-Light", "cat"], ["cat"]),
        (["person", "man", "cat"], ["cat"]),  # by its synonyms
        (["caf\xe9", "cafe\u0301", "cat"], ["cat"]),  # an accent as a character of its own
        # A heading of others, and what is no category.
        ([{"name": "fish", "supercategory": "creatures"}, "creatures", "cat"], ["cat"]),
        ([{"name": "fish", "supercategory": "fish"}, "cat"], ["cat"]),
        (["dog", "cat", "background", "_background_", "__ignore__", "Unlabeled"], ["cat"]),
        # What the dog is a kind of, and the kinds of it: it may be one.
        ([*KINDS, "being"], ["cat"]),
    ],
)
def test_what_may_be_the_same_is_not_absent(tmp_path, categories, absent):
    seen = [another(n, image_id=2) for n in range(1, len(categories))]
    headed = [c for c in categories if c in ("creatures", "being")]
    more = seen[: -1 if headed == ["being"] else None] if headed != ["creatures"] else []
    assert absent_of(tmp_path, *more, categories=categories) == absent


def test_a_heading_without_annotations_is_no_category(tmp_path):
    fish = [{"name": "fish", "supercategory": "creatures"}, {"name": "creatures"}]
    absent_of(tmp_path, categories=fish)
    assert read(tmp_path, "1.jpg", "2.jpg").categories == ["fish"]
    absent_of(tmp_path, another(1), categories=fish)
    assert read(tmp_path, "1.jpg", "2.jpg").categories == ["creatures", "fish"]


@pytest.mark.parametrize(
    "image, absent",
    [
        ({"neg_category_ids": [2]}, ["cow"]),
        ({"neg_category_ids": [0, 2, 77], "not_exhaustive_category_ids": [2]}, []),
        ({"not_exhaustive_category_ids": [1]}, ["cow"]),
        ({"neg_category_ids": None}, []),
    ],
)
def test_of_lvis_only_what_was_looked_for_is_absent(tmp_path, image, absent):
    assert absent_of(tmp_path, image=image) == absent


def test_where_lvis_has_not_annotated_all_none_is_the_only_one(tmp_path):
    image = {"not_exhaustive_category_ids": [2]}
    absent_of(tmp_path, another(), categories=("dog", "cat", "Cats"), image=image)
    dog, cat = read(tmp_path, "1.jpg", "2.jpg").objects["1.jpg"]
    assert (dog["crowd"], cat["crowd"]) == (False, True)


def test_where_one_image_says_what_was_looked_for_the_others_of_its_file_know_nothing(tmp_path):
    absent_of(tmp_path, another(image_id=2), image={"neg_category_ids": [2]})
    assert read(tmp_path, "1.jpg", "2.jpg").absent == {"1.jpg": ["cow"], "2.jpg": []}


@pytest.mark.parametrize("ids", [[0] * 3, [1, 1, 2], [None] * 3, [{}] * 3])
def test_an_annotation_needs_no_id(tmp_path, ids):
    """CVAT writes 0 everywhere; other tools count per image. Exact copies count once."""
    found = [another(n % 2, bbox=[n, 2, 30, 40], id=id_) for n, id_ in enumerate(ids)]
    absent_of(tmp_path, *found, found[0] | {"id": 99}, first=False)
    whole = read(tmp_path, "1.jpg", "2.jpg").objects
    boxes = [item["box"] for items in whole.values() for item in items]
    assert boxes == [[0, 2, 30, 40], [1, 2, 30, 40], [2, 2, 30, 40]]


@pytest.mark.parametrize("one, other", [("37777", 37777), (37777, "37777"), (37777, 37777.0)])
def test_an_id_is_the_same_as_text_and_as_number(tmp_path, one, other):
    assert coco.same_id(one) == coco.same_id(other) == 37777
    data = annotated(tmp_path, ["0.png"])
    data["images"][0]["id"], data["annotations"][0]["image_id"] = one, other
    data["categories"][0]["id"], data["annotations"][0]["category_id"] = other, one
    write(tmp_path, "instances.json", data)
    assert found_for(tmp_path, ["0.png"]) == ({"0.png": ["object 0"]}, [])


@pytest.mark.parametrize("keys", [["annotations"], ["images", "annotations", "categories"]])
def test_a_dict_of_entries_is_its_values(tmp_path, keys):
    data = annotated(tmp_path, ["0.png", "1.png"])
    for key in keys:
        data[key] = {str(n): entry for n, entry in enumerate(data[key])}
    write(tmp_path, "instances.json", data)
    both = {"0.png": ["object 0"], "1.png": ["object 1"]}
    assert found_for(tmp_path, both) == (both, [])
    data["categories"] = {"0": "object 0", "1": "object 1"}
    write(tmp_path, "instances.json", data)
    assert found_for(tmp_path, both) == (both, [])
