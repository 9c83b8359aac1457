"""Finding data, opening images, the crop, prompts, tokens."""
import json

import numpy as np
import pytest
from PIL import Image

import lens_utils as lu


def test_images_are_found_by_name_through_subfolders(tmp_path):
    for name in ["b.JPG", "a.png", "sub/a.png", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(lu.find_images(tmp_path)) == ["a.png", "b.JPG", "sub__a.png"]


def test_no_images_and_no_folder_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        lu.find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        lu.find_images(tmp_path / "missing")


def test_annotations(photographs):
    objects, categories = lu.read_annotations(photographs)
    assert categories == ["temple", "tree", "umbrella"]
    assert [(o["category"], o["box"], o["crowd"], o["color"]) for o in objects["china.jpg"]] == [
        ("temple", (150, 60, 220, 200), False, None), ("tree", (420, 180, 80, 100), False, "green"),
    ]


def test_keypoints_beside_instances_are_not_counted_twice(photographs, tmp_path):
    text = (photographs / "instances_test.json").read_text()
    for name in ["instances_val.json", "person_keypoints_val.json"]:
        (tmp_path / name).write_text(text)
    (tmp_path / "captions_val.json").write_text('{"images": [], "annotations": []}')
    assert len(lu.read_annotations(tmp_path)[0]["china.jpg"]) == 2


def test_other_files_and_odd_annotations_are_passed_over(photographs, tmp_path):
    """JSON lines, annotations of images that are not listed (a subset), without a box, and twice the same."""
    data = json.loads((photographs / "instances_test.json").read_text())
    first = data["annotations"][0]
    data["annotations"] += [{**first, "id": 8, "image_id": 99}, {key: first[key] for key in ("image_id", "category_id")}, first]
    (tmp_path / "instances_subset.json").write_text(json.dumps(data))
    (tmp_path / "instances_lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert len(lu.read_annotations(tmp_path)[0]["china.jpg"]) == 2


def test_without_annotations(tmp_path):
    assert lu.read_annotations(tmp_path) == ({}, [])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (8, 6), "white").convert("L" if mode == "LA" else "RGB").convert(mode).save(path)
    image = lu.open_image(path)
    assert image.mode == "RGB" and np.all(np.array(image) == 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)).save(tmp_path / "deep.png")
    assert np.abs(np.array(lu.open_image(tmp_path / "deep.png"))[..., 0].ravel().astype(int) - np.arange(256)).max() <= 1


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.all(np.array(lu.open_image(tmp_path / "clear.png")) == 255)


def test_unreadable_images_are_named(tmp_path, photographs):
    whole = (photographs / "china.jpg").read_bytes()
    for name, content in {"empty.jpg": b"", "text.png": b"not an image", "truncated.jpg": whole[: len(whole) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=name):
            lu.open_image(tmp_path / name)


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64), (301, 77)])
def test_boxes_follow_the_processor(llava, size):
    """A white box on black, sent through the processor, is found where `to_crop` says."""
    processor = llava[1]
    box = (size[0] * 0.1, size[1] * 0.3, size[0] * 0.5, size[1] * 0.6)
    edges = [round(edge) for edge in (box[0], box[1], box[0] + box[2], box[1] + box[3])]
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[edges[1] : edges[3], edges[0] : edges[2]] = 255
    seen = processor.image_processor(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"][0].mean(axis=0)
    rows, columns = np.nonzero(seen > (seen.min() + seen.max()) / 2)
    whole_pixels = (edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1])
    (x, y, w, h), visible = lu.to_crop(whole_pixels, size, processor.image_processor)
    assert np.abs(np.array([x, y, x + w, y + h]) - [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).max() <= 1
    scale = 56 / min(size)
    assert visible == pytest.approx(w * h / (whole_pixels[2] * whole_pixels[3] * scale**2), rel=0.03)


def test_a_box_outside_the_crop_is_not_visible(llava):
    assert lu.to_crop((0, 0, 10, 50), (200, 50), llava[1].image_processor)[1] == 0


def item(category, box, crowd=False, color=None, visible=1.0, crop=336):
    return {"category": category, "box": box, "crowd": crowd, "color": color, "visible": visible, "share": box[2] * box[3] / crop**2}


def kinds(prompts):
    return {(prompt["kind"], prompt["question"].split("\n")[0], prompt["truth"]) for prompt in prompts}


def test_prompts_of_all_kinds():
    objects = [item("dog", (0, 100, 150, 150), color="brown"), item("cat", (200, 110, 60, 60))]
    prompts = kinds(lu.make_prompts(objects, ["cat", "dog", "umbrella"], per_kind=9))
    assert prompts == {
        ("object", "What is the main object in the image?", "dog"),
        ("presence", "Is there a dog in the image?", "yes"), ("presence", "Is there a cat in the image?", "yes"),
        ("presence", "Is there an umbrella in the image?", "no"),
        ("colour", "What color is the dog?", "brown"), ("colour", "What color is the cat?", None),
        ("relation", "Where is the dog relative to the cat: left, right, above or below?", "left"),
        ("relation", "Where is the cat relative to the dog: left, right, above or below?", "right"),
        ("description", "Describe the image.", None),
    }


def test_prompts_are_capped_and_seeded():
    objects = [item(name, (100 * i, 0, 50, 50)) for i, name in enumerate("abc")]
    prompts = lu.make_prompts(objects, list("abcdef"), seed="s")
    assert [prompt["kind"] for prompt in prompts] == ["presence", "presence", "colour", "relation", "description"]
    assert prompts == lu.make_prompts(objects, list("abcdef"), seed="s")
    assert any(prompts != lu.make_prompts(objects, list("abcdef"), seed=seed) for seed in range(9))


def test_all_but_the_description_ask_for_a_short_answer():
    objects = [item("dog", (0, 100, 150, 150)), item("cat", (200, 110, 60, 60))]
    for prompt in lu.make_prompts(objects, ["dog", "cat"]):
        assert prompt["question"].endswith(lu.SHORT_ANSWER) == (prompt["kind"] != "description")


@pytest.mark.parametrize("other", [
    item("dog", (200, 100, 20, 20)), item("dog", (200, 100, 90, 90), crowd=True), item("dog", (200, 100, 9, 9), visible=0.1),
])
def test_what_occurs_twice_is_asked_neither_colour_nor_relation(other):
    objects = [item("dog", (0, 100, 150, 150)), other, item("cat", (300, 0, 30, 30), visible=0.2)]
    assert {kind for kind, _, _ in kinds(lu.make_prompts(objects, ["dog", "cat"]))} == {"object", "presence", "description"}


def test_what_is_outside_the_crop_is_neither_present_nor_absent():
    objects = [item("dog", (0, 100, 150, 150)), item("cat", (330, 0, 6, 60), visible=0.1)]
    questions = [prompt["question"] for prompt in lu.make_prompts(objects, ["dog", "cat"], per_kind=9)]
    assert not any("cat" in question for question in questions)


def test_no_main_object_where_none_is_clearly_the_largest():
    objects = [item("dog", (0, 0, 100, 100)), item("cat", (150, 0, 90, 90))]
    assert "object" not in {prompt["kind"] for prompt in lu.make_prompts(objects, ["dog", "cat"])}


def test_prompts_without_annotations():
    assert [prompt["kind"] for prompt in lu.make_prompts([], [])] == ["object", "description"]


@pytest.mark.parametrize("a, b, relation", [
    ((0, 0, 10, 10), (20, 2, 10, 10), "left"), ((20, 2, 10, 10), (0, 0, 10, 10), "right"),
    ((0, 0, 10, 10), (2, 20, 10, 10), "above"), ((2, 20, 10, 10), (0, 0, 10, 10), "below"),
    ((0, 0, 10, 10), (20, 20, 10, 10), None),  # diagonal
    ((0, 0, 30, 10), (20, 0, 30, 10), None),  # overlapping
])
def test_relation(a, b, relation):
    assert lu.relation_of(a, b) == relation


@pytest.mark.parametrize("prompts, message", [([""], "Prompt 0 is empty"), (["a", " \n"], "Prompt 1 is empty"), (["What is <image>?"], "own <image>"),
    ("What is it?", "put it into a list"), ([{"question": None}], "Prompt 0 is empty"), ([{"question": "a", "kind": "color"}], "kind 'color'"),
])
def test_bad_prompts(prompts, message):
    with pytest.raises(ValueError, match=message):
        lu.own_prompts(prompts)


def test_token_labels_are_unique_and_keep_the_leading_space(llava):
    bridge, processor = llava
    labels = lu.token_labels(processor.tokenizer, bridge.cfg.d_vocab)
    assert len(labels) == bridge.cfg.d_vocab == len(set(labels))
    assert {"▁dog", "<0x0A>", "<s>", "<image>", "▁狗", f"<row{bridge.cfg.d_vocab - 1}>"} <= set(labels)
    for i in range(len(processor.tokenizer)):
        assert processor.tokenizer.convert_tokens_to_ids(labels[i]) == i
