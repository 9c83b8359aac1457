"""COCO's format: what is read, what is left out and named, and what is known to be absent."""

import pytest

from llava_lens.data import coco, crop, prompts
from tests.data.test_annotations import annotated, found_for, read, write

BOX = [1, 2, 30, 40]


def another(category_id=1, **change):
    return {"id": 2, "image_id": 1, "category_id": category_id, "bbox": BOX} | change


def read_with(folder, *more, categories=("dog", "cat", "cow"), image=(), first=True):
    """What is told of `1.jpg` and `2.jpg`: in the first a dog, with `first`, then `more`."""
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
    return read(folder, "1.jpg", "2.jpg")


def main_of(found, llava) -> list[str]:
    """The main object of `1.jpg`, if one is asked about."""
    objects, _, dropped = found.of("1.jpg")
    seen = crop.objects_in_crop(objects + dropped, (90, 60), llava[1].image_processor)
    return [prompt["truth"] for prompt in prompts.make_prompts(seen, [], kinds=["object"])]


NAN = float("nan")
NOT_FOUR, LEAVES = "is not x, y and a width and height above 0", "leaves the image"


@pytest.mark.parametrize(
    "entry, problem, absent",
    [
        # The category is there, whatever is wrong with the rest.
        (another(bbox=[29, 38, 1.03, 0.0]), NOT_FOUR, ["cow"]),
        (another(bbox=[1, 2, 5, -1]), NOT_FOUR, ["cow"]),
        (another(bbox=[1, 2, 3]), NOT_FOUR, ["cow"]),
        (another(bbox=[1, 2, NAN, 3]), NOT_FOUR, ["cow"]),
        (another(bbox=None), NOT_FOUR, ["cow"]),
        (another(bbox="1234"), NOT_FOUR, ["cow"]),
        (another(bbox={"x": 1, "y": 2, "w": 3, "h": 4}), NOT_FOUR, ["cow"]),
        (another(bbox=[1, 2, 10**400, 3]), "is not x, y", ["cow"]),
        (another(bbox=[-1.7e308, 0, 1.7e308, 10]), NOT_FOUR, ["cow"]),
        (another(bbox=[0.1, 0.1, 0.5, 0.5]), "in fractions of the image", ["cow"]),
        (another(bbox=[92, 10, 5, 5]), LEAVES, ["cow"]),
        (another(bbox=[-5, 10, 4, 20]), LEAVES, ["cow"]),
        (another(bbox=[-20, 10, 60, 20]), LEAVES, ["cow"]),
        (another(bbox=[10, 70, 20, 20]), LEAVES, ["cow"]),
        (another(bbox=[40, 30, 80, 55]), f"{LEAVES}: it should be x, y, width", ["cow"]),
        (another(color="r" * 70_000), "the colour 'rrrrr", ["cow"]),
        # Nobody knows what it is, or where.
        (another(category_id=77), "there is no 77", []),
        (another(category_id=None), "there is no None", []),
        (another(category_id=[1]), "there is no [1]", []),
        (another(category_id=NAN), "there is no nan", []),
        ({"image_id": 1, "bbox": BOX}, "there is no 'category_id'", []),
        ({"category_id": 1, "bbox": BOX}, "there is no 'image_id'", []),
        (None, "there is no 'image_id'", []),
        (another(image_id=[1]), "there is no [1]", []),
        (another(image_id=NAN), "there is no nan", []),
        (another(image_id="1.jpg"), "there is no '1.jpg'", []),
        # Of an image that is not listed, as in a part of a data set.
        (another(image_id=99), "there is no 99", ["cat", "cow"]),
    ],
)
def test_what_is_unusable_is_named_and_is_not_absent(tmp_path, llava, entry, problem, absent):
    found = read_with(tmp_path, entry)
    objects, known_absent, categories, (said,), *_ = found
    assert main_of(found, llava) == ["dog"] * ("cat" in absent)  # it may be as large
    assert said.startswith("instances.json, annotation 1: ") and problem in said
    (dog,) = objects.pop("1.jpg")
    assert (dog["category"], dog["box"], dog["crowd"]) == ("dog", BOX, False) and not objects
    assert known_absent == {"1.jpg": absent} and categories == ["cat", "cow", "dog"]


@pytest.mark.parametrize(
    "change, is_crowd",
    [
        ({}, False),
        ({"category_id": " 1.0"}, False),
        ({"bbox": [80, 50, 12, 11]}, False),  # leaves the image by a little
        ({"iscrowd": "0"}, False),
        ({"iscrowd": 0.0}, False),
        ({"iscrowd": "False"}, False),
        ({"iscrowd": None}, False),
        ({"iscrowd": 1.0}, True),
        ({"iscrowd": "yes"}, True),
    ],
)
@pytest.mark.parametrize("width", [90, "90", 90.0])
def test_annotations_as_exports_write_them(tmp_path, change, is_crowd, width):
    image = {"width": width}
    objects, absent, _, problems, *_ = read_with(tmp_path, another(**change), image=image)
    _, cat = objects["1.jpg"]
    assert (cat["category"], cat["crowd"], cat["image_size"]) == ("cat", is_crowd, (90, 60))
    assert absent == {"1.jpg": ["cow"]} and not problems


def test_where_more_may_be_there_none_is_the_only_one(tmp_path):
    """As in a crowd: where a box can't be used, and where LVIS has not annotated all."""

    def crowds(*more, **change):
        found = read_with(tmp_path, *more, categories=("dog", "cat", "Cats"), **change)
        return [item["crowd"] for item in found.objects["1.jpg"]]

    assert crowds(another(), another(0, bbox=None)) == [True, False]
    assert crowds(another(), another(2, bbox=None), another(77)) == [False, True]
    assert crowds(another(), image={"not_exhaustive_category_ids": [2]}) == [False, True]


@pytest.mark.parametrize("color, category_id", [("r" * 101, 1), (None, 77)])
@pytest.mark.parametrize("box, main", [([50, 2, 9, 9], ["dog"]), ([50, 2, 40, 50], []), (None, [])])
def test_the_main_object_is_told_where_what_was_dropped_is_known_to_be_smaller(
    tmp_path, llava, color, category_id, box, main
):
    """Without a box it could fill the image."""
    found = read_with(tmp_path, another(category_id, bbox=box, color=color))
    assert main_of(found, llava) == main


TOKENS = "</s>", "<s>", "<unk>", "<pad>", "<image>", "<|im_end|>"


@pytest.mark.parametrize("name", ["", " ", *TOKENS, "a <s>", "half \ud800", "a" * 101, 7, None])
def test_a_category_that_cannot_be_asked_about_is_left_out(tmp_path, name):
    found = read_with(tmp_path, categories=("dog", {"name": name}))
    (problem,) = found.problems
    assert found.categories == ["dog"] and len(found.objects["1.jpg"]) == 1
    assert "can't be asked about" in problem or "no name" in problem


@pytest.mark.parametrize("width", [0, "x", None, 10**400])
def test_odd_paths_and_sizes_of_images_are_read_and_crowds_are_kept(tmp_path, width):
    image = {"id": 1, "file_name": "../gone/missing.jpg", "width": width, "height": 9}
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1, "color": 7}
    categories = [{"id": 1, "name": "dog"}]
    write(tmp_path, "a.json", {"images": [image], "annotations": [box], "categories": categories})
    found = read(tmp_path, "missing.jpg")
    dog = {"category": "dog", "box": [0, 0, 5, 5], "crowd": True, "color": None}
    assert found.objects == {"missing.jpg": [{**dog, "polygons": [], "image_size": None}]}
    assert not found.problems


def test_a_broken_file_hides_no_good_one_and_a_bad_entry_no_file(tmp_path):
    bad = {
        "images": [{"id": 7}, 5, *({"id": i, "file_name": "x.png"} for i in (None, [1], NAN))],
        "categories": [{"id": 8}, None, {"name": "x"}, {"id": {}, "name": "y"}],
        "annotations": [None, 3, {"id": [2]}],
    }
    annotated(tmp_path, ["0.png"], "boxes.json", more=bad)
    write(tmp_path, "instances_val.json", "{")
    categories, problems = found_for(tmp_path, ["0.png"])
    assert categories == {"0.png": ["object 0"]} and len(problems) == 1 + 5 + 4 + 3


KINDS = [("dog", "animal"), ("Animal", "being"), ("poodle", "dog"), ("cat", "animal")]
KINDS = [{"name": name, "supercategory": above} for name, above in KINDS]


@pytest.mark.parametrize(
    "categories, n_seen",  # the first ones are annotated
    [
        (["dog", "Dog", "dog ", "dogs", "DOGS", "cat"], 6),
        (["traffic light", "traffic_light", "Traffic-Light", "cat"], 4),
        (["person", "man", "cat"], 3),  # by its synonyms
        (["caf\xe9", "cafe\u0301", "cat"], 3),  # an accent as a character of its own
        # A heading of others, and what is no category.
        ([{"name": "fish", "supercategory": "creatures"}, "creatures", "cat"], 1),
        (["dog", {"name": "cat", "supercategory": "cat"}], 1),
        (["dog", "cat", "background", "_background_", "__ignore__", "__hidden__", "Unlabeled"], 7),
        # What the dog is a kind of, and the kinds of it: it may be one.
        ([*KINDS, "being"], 4),
    ],
)
def test_what_may_be_the_same_is_not_absent(tmp_path, categories, n_seen):
    seen = [another(n, image_id=2) for n in range(1, n_seen)]
    assert read_with(tmp_path, *seen, categories=categories).absent["1.jpg"] == ["cat"]


def test_a_heading_without_annotations_is_no_category(tmp_path):
    fish = [{"name": "fish", "supercategory": "creatures"}, {"name": "creatures"}]
    assert read_with(tmp_path, categories=fish).categories == ["fish"]
    assert read_with(tmp_path, another(1), categories=fish).categories == ["creatures", "fish"]


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
    assert read_with(tmp_path, image=image).absent["1.jpg"] == absent


def test_where_one_image_says_what_was_looked_for_the_others_of_its_file_know_nothing(tmp_path):
    found = read_with(tmp_path, another(image_id=2), image={"neg_category_ids": [2]})
    assert found.absent == {"1.jpg": ["cow"], "2.jpg": []}


@pytest.mark.parametrize("ids", [[0] * 3, [1, 1, 2], [None] * 3, [{}] * 3])
def test_an_annotation_needs_no_id(tmp_path, ids):
    """CVAT writes 0 everywhere; other tools count per image. Exact copies count once."""
    found = [another(n % 2, bbox=[n, 2, 30, 40], id=id_) for n, id_ in enumerate(ids)]
    whole = read_with(tmp_path, *found, found[0] | {"id": 99}, first=False).objects
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
