"""Annotations in other files than COCO's instances: read, or named in one sentence."""

import json
from xml.etree import ElementTree

import pytest

from llava_lens.data import annotations, parsers

DOG = {"category": "dog", "bbox": [10, 20, 30, 40]}
CAT = {"category": "cat", "bbox": [50, 5, 6, 7]}


B = {"category": "cat", "bbox": [1, 2, 3, 4]}
FOUND = {
    "a.jpg": [("dog", [10, 20, 30, 40]), ("cat", [50, 5, 6, 7])],
    "b.jpg": [("cat", [1, 2, 3, 4])],
}


def write(folder, name, content) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def read(folder, *files):
    """The annotations of images at these paths under `folder`; they need not be there."""
    found = annotations.annotate(folder, {f.replace("/", "__"): folder / f for f in files})
    assert found.objects.keys() == found.absent.keys()
    return found


def lines(*entries) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def boxes(folder, *files) -> dict:
    objects, _, categories, problems, *_ = read(folder, *files or FOUND)
    named = {item["category"] for items in objects.values() for item in items}
    assert problems == [] and categories == sorted(named)
    return {
        file: [(item["category"], item["box"]) for item in items]
        for file, items in sorted(objects.items())
    }


def found_for(folder, names):
    """Categories by image, and the sentences."""
    found = read(folder, *names)
    by_image = found.objects.items()
    return {name: [item["category"] for item in items] for name, items in by_image}, found.problems


def annotated(folder, file_names, at="instances.json", more=()):
    """A COCO file in `folder` with an object, in a category of its own number, per file name."""
    numbered = [*enumerate(file_names)]
    size, box = {"width": 90, "height": 60}, {"bbox": [1, 2, 30, 40]}
    data = {
        "images": [{"id": n, "file_name": name, **size} for n, name in numbered],
        "annotations": [{"id": n, "image_id": n, "category_id": n, **box} for n, _ in numbered],
        "categories": [{"id": n, "name": f"object {n}"} for n, _ in numbered],
    }
    for key, entries in dict(more).items():
        data[key] += entries
    write(folder, at, data)
    return data


BY_IMAGE = [("a.jpg", [DOG, CAT]), ("b.jpg", [B])]
IMAGES = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
LISTED = [{"id": 0, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "cat"}]
BOXES = [
    {"id": 1, "image_id": 1, "category_id": 0, "bbox": DOG["bbox"], "supercategory": "animal"},
    {"id": 2, "image_id": 1, "category_id": 1, "bbox": CAT["bbox"], "iscrowd": 0},
    {"id": 3, "image_id": 2, "category_id": 1, "bbox": B["bbox"], "area": 12},
]
BESIDE = {"bbox": [DOG["bbox"], CAT["bbox"]], "categories": ["dog", "cat"]}


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
        {"m.jsonl": lines(*({"file_name": name, "objects": items} for name, items in BY_IMAGE))},
        {"m.json": lines(*({"image": name, **item} for name, items in BY_IMAGE for item in items))},
        {
            "m.jsonl": lines({"file_name": "a.jpg", "objects": BESIDE})
            + lines({"file_name": "b.jpg", "objects": {"bbox": [B["bbox"]], "category": ["cat"]}})
        },
        # One list of boxes, other names of the keys.
        {
            "all.json": [
                {"filename": "a.jpg", "label": "dog", "box": DOG["bbox"]},
                {"filename": "a.jpg", "class": "cat", "bounding_box": CAT["bbox"]},
                {"filename": "b.jpg", "category_name": "cat", "bbox": B["bbox"]},
            ]
        },
        # COCO's under any name, with more fields, as FiftyOne exports them.
        {"labels.json": {"info": {}, "images": IMAGES, "categories": LISTED, "annotations": BOXES}},
    ],
)
def test_exports_with_image_category_and_box(tmp_path, files):
    for name, content in files.items():
        write(tmp_path, name, content)
    assert boxes(tmp_path) == FOUND


def test_sizes_crowds_colours_polygons_and_images_without_objects_are_kept(tmp_path):
    dog = {**DOG, "iscrowd": 1, "color": "brown", "segmentation": [[0, 0, 9, 0, 9, 9]]}
    entry = {"file_name": "a.jpg", "width": 640, "height": 480, "objects": [dog]}
    write(tmp_path, "m.jsonl", lines(entry, {"file_name": "b.jpg", "objects": []}))
    objects, _, _, problems, *_ = read(tmp_path, "a.jpg", "b.jpg")
    (found,) = objects["a.jpg"]
    assert (found["image_size"], found["crowd"], found["color"]) == ((640, 480), True, "brown")
    assert found["polygons"] == dog["segmentation"] and len(objects) == 1 and not problems


NOT_COCO = [[], 7, None, {}, {"images": 1, "annotations": 2, "categories": 3}]
NOT_COCO += [
    {"images": [], "annotations": [], "categories": [1]},
    {"images": [{"id": 1}], "annotations": [], "categories": []},
    {"images": {}, "annotations": None, "categories": {}},
]
SIZE, CORNERS = {"width": 90, "height": 60}, [{**DOG, "bbox": [n, 9, 60, 50]} for n in (1, 50)]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.json", {"objects": [{"category_id": 3, "bbox": [1, 2, 3, 4]}]}, "no category's name"),
        ("a.json", {"shapes": [{"label": "dog", "points": [[1, 2]]}]}, "no category's name"),
        ("a.json", {"objects": [{"label": "dog", "points": [[1, 2], [3, 4]]}]}, "no box"),
        ("x.json", [DOG], "no image's name among 'category', 'bbox'"),
        ("a.json", SIZE | {"objects": CORNERS}, "two corners: some leave their image"),
        ("m.jsonl", '{"file_name": "a.jpg"\n', "JSONDecodeError"),
        *(("odd.json", json.dumps(content), "odd.json (") for content in NOT_COCO),
        ("a.xml", "<annotation/>", "a.xml"),
        ("a.txt", "0 0.5 0.5 0.1 0.1", "a.txt"),
        ("instances.JSON.gz", "x", "instances.JSON.gz"),
        ("train_labels.csv", "image,class", "train_labels.csv"),
    ],
)
def test_what_is_not_understood_is_named_with_what_was_expected(tmp_path, name, content, reason):
    write(tmp_path, "README.txt", "Pictures.")
    write(tmp_path, name, content)
    objects, _, categories, (problem,), *_ = read(tmp_path, "a.jpg")
    assert objects == {} and categories == [] and problem.startswith(name)
    assert reason in problem and "expected is COCO's instances format" in problem


def test_a_hundred_files_that_are_not_understood_are_one_sentence(tmp_path):
    for number in range(100):
        write(tmp_path, f"{number:03}.json", {"polygons": []})
    (problem,) = read(tmp_path, "a.jpg").problems
    assert problem.startswith("000.json (") and "and 99 more files" in problem


def test_notes_beside_annotations_that_were_read_are_no_problem(tmp_path):
    write(tmp_path, "README.txt", "labels")
    write(tmp_path, "labels.txt", "dog\ncat\n")
    write(tmp_path, "m.jsonl", lines({"file_name": "a.jpg", "objects": [DOG]}))
    assert list(boxes(tmp_path, "a.jpg")) == ["a.jpg"]


def test_without_annotations(tmp_path):
    assert read(tmp_path, "a.jpg") == ({}, {}, [], [], "", {})
    write(tmp_path, "a.json", [DOG])  # of which of two images?
    assert read(tmp_path, "a.jpg", "a.gif").objects == {}


def test_what_is_named_twice_is_left_out_and_said(photographs, tmp_path):
    """Two images of one id, two categories of one id, two images of one name; but not what two
    files tell alike."""
    data = json.loads((photographs / "instances_test.json").read_text())
    write(tmp_path, "instances.json", data)
    write(tmp_path, "instances_copy.json", data)
    assert len(read(tmp_path, "china.jpg").objects["china.jpg"]) == 2
    write(tmp_path, "instances_less.json", {**data, "annotations": data["annotations"][:1]})
    found = read(tmp_path, "china.jpg")
    assert found.objects == {} and found.problems == [
        "china.jpg: annotated more than once, not alike (china.jpg), left out"
    ]
    data["images"].append({"id": 7, "file_name": "b.jpg"})
    data["categories"].append({"id": 1, "name": "x"})
    write(tmp_path, "odd/instances.json", data)
    objects, _, _, problems, *_ = read(tmp_path / "odd", "china.jpg", "b.jpg")
    assert objects == {} and sum("no id of its own" in said for said in problems) == 4


TWO = [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)]
DEEP = [{"id": 1, "file_name": "x/1.jpg"}]


@pytest.mark.parametrize(
    "files, names",
    [
        # Cats are told by another file, in another folder or of a lower rank; by another path.
        ({"instances_a.json": TWO[:1], "y/instances_b.json": TWO[:1]}, ["1.jpg"]),
        ({"instances.json": TWO[:1], "labels.json": TWO}, ["1.jpg", "2.jpg"]),
        ({"a.json": TWO[:1], "sub/b.json": TWO}, ["1.jpg", "2.jpg"]),
        ({"a.json": TWO[:1], "b.json": DEEP}, ["1.jpg"]),
        # Any of two images may have the cat.
        ({"a.json": DEEP, "b.json": TWO[:1]}, ["x/1.jpg", "y/1.jpg"]),
    ],
)
def test_what_any_file_tells_of_an_image_is_not_absent(tmp_path, files, names):
    categories = [{"id": n, "name": name} for n, name in enumerate(("dog", "cat", "cow"))]
    for number, (name, listed) in enumerate(files.items()):
        found = [{"image_id": 1, "category_id": n, "bbox": DOG["bbox"]} for n in range(number + 1)]
        data = {"images": listed, "annotations": found, "categories": categories}
        write(tmp_path, name, data)
    found, first = read(tmp_path, *names), names[0].replace("/", "__")
    assert len(found.objects[first]) == 1 and found.absent[first] == ["cow"]
    data["annotations"].append({"image_id": 1, "category_id": 7, "bbox": DOG["bbox"]})
    write(tmp_path, name, data)
    objects, absent, dropped = read(tmp_path, *names).of(first)
    assert len(objects) == len(dropped) == 1 and absent == []


@pytest.mark.parametrize(
    "names, file_names, at, expected",
    [
        # One of two is annotated: by a path, or in a way that could mean either.
        (["train/0.png", "val/0.png"], ["train/0.png"], "a.json", {"train__0.png": 0}),
        (["train/0.png", "val/0.png"], ["0.png"], "a.json", {}),
        (["train/0.png", "val/0.png"], ["0.png"], "train/a.json", {"train__0.png": 0}),
        (["t/0.png", "v/0.png"], ["v/0.png", "t/0.png"], "a.json", {"t__0.png": 1, "v__0.png": 0}),
        (["0.png"], ["train/0.png", "val/0.png"], "a.json", {}),
        (["val/0.png"], ["train/0.png", "val/0.png"], "a.json", {"val__0.png": 1}),
        # As COCO's folders are, as an archive of another machine's was, and as links are.
        (["val2017/0.png"], ["0.png"], "annotations/a.json", {"val2017__0.png": 0}),
        (["val/0.png"], ["C:\\data\\val\\0.png"], "a.json", {"val__0.png": 0}),
        (["val/0.png"], ["../data/./val/0.png"], "a.json", {"val__0.png": 0}),
        (["a/b/0.png", "b/0.png", "0.png"], ["b/0.png"], "x.json", {"b__0.png": 0}),
        (["0.png"], ["0.png"], "INSTANCES.JSON", {"0.png": 0}),
        # An accent is one character or two.
        (["\xe9/\xfc.png"], ["e\u0301/u\u0308.png"], "a.json", {"\xe9__\xfc.png": 0}),
        (["e\u0301/u\u0308.png"], ["\xe9/\xfc.png"], "a.json", {"e\u0301__u\u0308.png": 0}),
        (["e\u0301/0.png", "a/0.png"], ["0.png"], "e\u0301/a.json", {"e\u0301__0.png": 0}),
    ],
)
def test_annotations_belong_to_the_longest_unambiguous_path(
    tmp_path, names, file_names, at, expected
):
    annotated(tmp_path, file_names, at)
    categories, problems = found_for(tmp_path, names)
    assert categories == {name: [f"object {n}"] for name, n in expected.items()}
    assert bool(problems) == (not expected) and all("0.png" in said for said in problems)


def test_good_boxes_near_the_corner_are_no_two_corners(tmp_path):
    """A width may be larger than x in every box."""
    good = [{**DOG, "bbox": [9 * n, 5, 9 * n + 20, 30]} for n in range(5)]
    write(tmp_path, "a.json", SIZE | {"objects": good})
    assert [box for _, box in boxes(tmp_path, "a.jpg")["a.jpg"]] == [item["bbox"] for item in good]


def parse_voc(content, image):
    """What a newcomer writes to have Pascal VOC."""
    root = ElementTree.fromstring(content)
    file, found = root.findtext("filename"), []
    for item in root.iter("object"):
        corners = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = map(float, corners)
        place = {"image_id": file, "category_id": item.findtext("name")}
        found.append({**place, "bbox": [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]})
    return {"images": [{"id": file, "file_name": file}], "annotations": found}


def test_a_format_more_is_one_parser(tmp_path, monkeypatch):
    monkeypatch.setitem(parsers.PARSERS, ".xml", parse_voc)
    for name, category in (("0", "dog"), ("1", "cat")):
        box = "<xmin>2</xmin><ymin>3</ymin><xmax>11</xmax><ymax>22</ymax>"
        item = f"<object><name>{category}</name><bndbox>{box}</bndbox></object>"
        voc = f"<annotation><filename>{name}.jpg</filename>{item}</annotation>"
        write(tmp_path, f"{name}.xml", voc)
    found = read(tmp_path, "0.jpg", "1.jpg")
    assert found.objects["0.jpg"][0]["box"] == [1, 2, 10, 20] and found.problems == []
    assert found.absent == {"0.jpg": ["cat"], "1.jpg": ["dog"]}


def test_what_is_called_otherwise_on_disk_is_said_in_one_sentence(tmp_path):
    annotated(tmp_path, ["COCO_val2014_01.jpg", "2.JPG", "3.jpg"])
    found = read(tmp_path, "01.jpg", "2.jpg", "3.jpg")
    assert list(found.objects) == ["3.jpg"] and found.problems == [
        "2 annotated names without an image, as COCO_val2014_01.jpg; "
        "2 images without annotations, as 01.jpg"
    ]
    # Of a subset of COCO every image has annotations: nothing to say.
    assert read(tmp_path, "3.jpg").problems == []


def test_files_are_read_until_every_image_is_named_and_it_is_said_which(tmp_path):
    """Instances of other images hide no annotations of these; keypoints add nothing to them."""
    annotated(tmp_path, ["other.jpg"], "instances_val2017.json")
    annotated(tmp_path, ["other.jpg", "mine.jpg"], "labels.json")
    found = read(tmp_path, "mine.jpg")
    assert [item["category"] for item in found.objects["mine.jpg"]] == ["object 1"]
    assert found.files == "Annotations were read from instances_val2017.json and 1 more file"
    found = read(tmp_path, "other.jpg")
    assert [item["category"] for item in found.objects["other.jpg"]] == ["object 0"]
    assert found.files == (
        "Annotations were read from instances_val2017.json"
        "; not opened, as these name every image: labels.json"
    )


def test_categories_of_another_file_were_not_looked_for(tmp_path):
    annotated(tmp_path, ["a.jpg"], "a.json")
    data = annotated(tmp_path, ["b.jpg", "c.jpg"], "b.json")
    data["categories"] = [{**entry, "name": "x" + entry["name"]} for entry in data["categories"]]
    write(tmp_path, "b.json", data)
    found = read(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert found.categories == ["object 0", "xobject 0", "xobject 1"]
    assert found.absent == {"a.jpg": [], "b.jpg": ["xobject 1"], "c.jpg": ["xobject 0"]}


def test_masks_are_said(tmp_path):
    annotated(tmp_path, ["1.jpg"])
    write(tmp_path, "1.jpg", ""), write(tmp_path, "1.png", "")
    found = read(tmp_path, "1.jpg", "1.png")
    assert list(found.objects) == ["1.jpg"] and found.problems == [
        "1.png: left out, as masks of other images"
    ]
