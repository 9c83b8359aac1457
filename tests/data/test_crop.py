"""Where the processor puts an image, boxes in the crop, and the patches that they cover."""

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava_lens.analysis import grounding
from llava_lens.data import crop, images, prompts
from llava_lens.model import load, read


def seen_in_crop(box, image_size, processor) -> dict:
    return crop.objects_in_crop([{"box": box}], image_size, processor)[0]


def test_boxes_for_another_resolution_are_scaled(llava):
    found = {"box": [10.0, 20.0, 30.0, 40.0], "image_size": (200, 100)}
    scaled = {"box": [20.0, 40.0, 60.0, 80.0], "image_size": (400, 200)}
    one, other = crop.objects_in_crop([found, scaled], (400, 200), llava[1].image_processor)
    assert one == other and "image_size" not in one


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3), (3, 50), (100, 1)])
def test_the_smallest_and_longest_images_reach_the_model_whole(tmp_path, llava, size):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    image, asked = images.open_image(tmp_path / "odd.png"), prompts.as_prompts(["What is it?"])
    settings = load.Settings(model="", max_new_tokens=1, top_k=10)
    record, *_ = read.read_image(*llava, image, asked, settings)
    resized = [int(56 * side / min(size)) for side in size]
    expected = Image.fromarray(pixels).resize(resized, Image.Resampling.BICUBIC)
    left, top = (expected.width - 56) // 2, (expected.height - 56) // 2
    expected = np.asarray(expected.crop((left, top, left + 56, top + 56)))
    seen = np.asarray(crop.open_crop(record)).astype(int)
    assert np.abs(seen - expected).mean() < 12  # JPEG


SHORT, SQUARE = {"shortest_edge": 56}, {"height": 56, "width": 56}
PROCESSORS = {
    "crop": CLIPImageProcessor(size=SHORT, crop_size=SQUARE),
    "pad": LlavaImageProcessorPil(size=SHORT, crop_size=SQUARE, do_pad=True),
    "plain": CLIPImageProcessor(size=SQUARE, do_center_crop=False),
    "two sizes": CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE),
}


@pytest.mark.parametrize("way", PROCESSORS)
@pytest.mark.parametrize("size", [(90, 60), (61, 97), (64, 64), (301, 77), (1200, 100)])
@pytest.mark.parametrize("at_corner", [False, True])
def test_boxes_follow_any_processor_that_resizes_crops_or_pads(way, size, at_corner):
    """A white box in black, sent through the processor, is found in its place: in the middle, or at
    a corner, where a crop cuts it."""
    processor = PROCESSORS[way]
    x, y, w, h = size[0] // 2 - 12, size[1] // 5, 24, size[1] // 2
    if at_corner:
        x, y, w = 0, 0, size[0] // 2 + 7
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y : y + h, x : x + w] = 255
    seen, black, white = (
        processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0].mean(axis=0)
        for image in (pixels, 0 * pixels, 255 - 0 * pixels)
    )
    seen = (seen - black) / (white - black).max()  # padding is grey
    found = seen_in_crop((x, y, w, h), size, processor)
    box, visible = found["box"], found["visible"]
    whole = w * h * np.prod(crop.place_image(size, processor).scale)
    assert visible == pytest.approx(seen.sum() / whole, rel=0.1)
    cover = crop.patch_coverage(box, {"grid": [56, 56], "image_size": 56}).reshape(56, 56)
    assert np.abs(cover - seen).mean() < 0.01  # bicubic blur at the edges
    for axis in (0, 1):
        seen_along = seen.sum(axis)
        assert np.abs(cover.sum(axis) - seen_along).max() <= 0.2 * seen_along.max() + 0.5
    assert cover.sum() == pytest.approx(seen.sum(), rel=0.1)


@pytest.mark.parametrize("size", [(640, 480), (427, 640), (333, 500), (4000, 3000), (3, 50)])
def test_what_is_measured_of_the_three_usual_ways_is_exact(size):
    """By the arithmetic that the processors do."""
    (width, height), short, long = size, min(size), max(size)
    new = [int(56 * side / short) for side in size]
    assert crop.place_image(size, PROCESSORS["crop"]) == (
        (new[0] / width, new[1] / height),
        (-((new[0] - 56) // 2), -((new[1] - 56) // 2)),
        (56, 56),
    )
    scale, offset, _ = crop.place_image(size, PROCESSORS["pad"])
    assert scale == (56 / long, 56 / long)
    assert offset == pytest.approx([(long - side) // 2 * 56 / long for side in size])
    assert crop.place_image(size, PROCESSORS["plain"])[:2] == ((56 / width, 56 / height), (0, 0))
    # 64 pixels resized, of which 56 are kept: none of the three, so measured.
    scale, offset, _ = crop.place_image(size, PROCESSORS["two sizes"])
    new = [int(64 * side / short) for side in size]
    assert np.multiply(scale, size) == pytest.approx(new, abs=1)
    assert offset == pytest.approx([-((side - 56) // 2) for side in new], abs=1)


def processor_of(change):
    """A processor that gives `change` of `[channel, row, column]`."""
    return lambda image, **_: {
        "pixel_values": [change(np.asarray(image.resize((56, 56))).transpose(2, 0, 1))]
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels.transpose(0, 2, 1),  # turned
        lambda pixels: pixels[:, :, ::-1],  # mirrored
        lambda pixels: np.stack([pixels, pixels]),  # cut into tiles
    ],
)
def test_a_processor_that_does_more_is_refused(change):
    with pytest.raises(ValueError, match="Boxes can't be placed .* more than resize, crop and pad"):
        seen_in_crop((1, 2, 3, 4), (90, 60), processor_of(change))


def test_a_box_is_a_list_of_floats(llava):
    """The format of the results has no tuples and no numpy numbers."""
    seen = seen_in_crop((1, 2, 30, 40), (90, 60), llava[1].image_processor)
    assert type(seen["box"]) is list and type(seen["cut_off"]) is bool
    numbers = [*seen["box"], seen["visible"], seen["share"]]
    assert {type(number) for number in numbers} == {float}
    outside = seen_in_crop((0, 0, 10, 50), (200, 50), llava[1].image_processor)
    assert outside["visible"] == outside["share"] == 0 and outside["cut_off"]


def test_a_grid_need_not_be_square():
    """Two rows of 30 pixels and three columns of 20."""
    run = {"grid": [2, 3], "image_size": 60}
    np.testing.assert_allclose(crop.patch_coverage([0.0, 0.0, 60.0, 60.0], run), [1] * 6)
    covered = crop.patch_coverage([50.0, 15.0, 10.0, 30.0], run)
    np.testing.assert_allclose(covered, [0, 0, 0.25, 0, 0, 0.25])


def test_what_lies_past_the_last_patch_is_outside_the_crop():
    """Of 56 pixels patches of 10 cover 50, as SigLIP's patches of 14 cover 378 of 384."""
    plain = PROCESSORS["plain"]
    boxes = [{"box": [51.0, 0.0, 5.0, 50.0]}, {"box": [40.0, 0.0, 16.0, 50.0]}]
    past, across = crop.objects_in_crop(boxes, (56, 56), plain, side=50)
    assert past["visible"] == past["share"] == 0
    assert across["box"] == [40, 0, 10, 50] and across["visible"] == 10 / 16
    assert across["share"] == 0.2 and across["cut_off"]


FOUR_BY_FOUR = {"grid": [4, 4], "image_size": 40}


def an_object(category, box, crowd=False):
    return {"category": category, "box": box, "crowd": crowd}


def test_patches_of_the_objects_and_as_many_outside_all_their_boxes():
    # A grid of 4 x 4 patches of 10 pixels.
    objects = [
        an_object("dog", [0.0, 0.0, 11.0, 10.0]),  # patch 0, and a tenth of 1
        an_object("dog", [0.0, 30.0, 10.0, 10.0]),  # patch 12
        an_object("cat", [32.0, 32.0, 1.0, 1.0]),  # a hundredth of patch 15
        an_object("tree", [20.0, 0.0, 10.0, 10.0]),
        an_object("car", [0.0, 0.0, 30.0, 40.0]),  # 12 patches
        an_object("bird", [40.0, 0.0, 0.0, 10.0]),  # outside the crop
    ]

    def cut(*categories, seed=0):
        prompt = {"categories": list(categories), "question": "?"}
        return crop.patches_to_cut(prompt, objects, FOUR_BY_FOUR, seed)

    assert cut("dog")["object"] == [0, 1, 12]
    assert cut("dog", "cat")["object"] == [0, 1, 12, 15]
    drawn = [cut("dog", "cat", seed=seed) for seed in range(50)]
    assert all(len(set(one["background"])) == 4 for one in drawn)
    assert set().union(*(one["background"] for one in drawn)) == set(range(16)) - {0, 1, 12, 15}
    assert cut("dog", seed=3) == cut("dog", seed=3)
    assert cut() == cut("dog", "horse") == cut("horse") == cut("bird") == {}
    assert cut("car") == {}  # four patches are left, and twelve needed


def test_a_crowd_gives_no_patches():
    """Neither where it is alone, nor beside a single object: the crowd would still be seen."""
    crowd, dog = (an_object("dog", [0.0, 0.0, 36.0, 40.0], True), an_object("dog", [0, 0, 10, 10]))
    prompt = {"categories": ["dog"], "question": "?"}
    assert crop.patches_to_cut(prompt, [crowd], FOUR_BY_FOUR) == {}
    assert crop.patches_to_cut(prompt, [dog, crowd], FOUR_BY_FOUR) == {}
    assert crop.patches_to_cut(prompt, [dog], FOUR_BY_FOUR)["object"] == [0]
    record, run = {"objects": [crowd, dog]}, FOUR_BY_FOUR
    assert not grounding.patches_of(record, run, "dog").any()
    assert grounding.patches_of({"objects": [dog]}, run, "dog").tolist() == [True] + 15 * [False]
