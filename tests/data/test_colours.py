"""Colours of objects by their pixels, against judgements by eye.

`judged_colours.csv` lists 407 objects of COCO photographs, each the only one of its category there.
Someone looked at crops with the outline drawn in and wrote down the colour terms that were right,
before the rule's word was computed; none where no one term was. `tint_a` and `tint_b` are the
photograph's `tint_of`, empty where that is None or it is in one tone. The rule was last set with
all three groups in view (docs/method.md). `judged_colours.npz` has the pixels of each object, a
little coarser: 40 colours (median cut) and how many thousandths of its pixels have each.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from llava_lens import kinds as kinds_py
from llava_lens.data import coco, prompts
from llava_lens.data import colours as data_colours

HERE = Path(__file__).parent
ROWS = list(csv.DictReader((HERE / "judged_colours.csv").open()))
MEASURED = np.load(HERE / "judged_colours.npz")


def term_of(rgb) -> str:
    return data_colours.TERMS[data_colours.colour_terms(np.array([rgb]))[0]]


def test_lab_has_the_values_of_the_standard():
    """sRGB's primaries, white, black and a gray, as in Bruce Lindbloom's calculator (D65)."""
    rgb = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255] * 3, [0] * 3, [119] * 3]
    lab = [
        [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86],
        [100, 0, 0], [0, 0, 0], [50.03, 0, 0],
    ]  # fmt: skip
    np.testing.assert_allclose(data_colours._lab(np.array(rgb)), lab, atol=0.05)


@pytest.mark.parametrize("term", kinds_py.COLOURS)
def test_the_terms_own_colours_are_named(term):
    """As CSS defines them, but for green and gray at half, all within the term's region."""
    own = {"brown": "saddlebrown", "green": "forestgreen", "pink": "hotpink"}.get(term, term)
    assert term_of(Image.new("RGB", (1, 1), own).getpixel((0, 0))) == term


def test_the_names_that_people_gave_to_colours():
    """The XKCD survey's names whose last word is a basic term, without those with two colours."""
    from matplotlib.colors import XKCD_COLORS, to_rgb

    right = []
    for name, code in XKCD_COLORS.items():
        *before, last = name.removeprefix("xkcd:").replace("grey", "gray").split()
        if last in kinds_py.COLOURS and not any(
            word in kinds_py.COLOURS or word.endswith(("ish", "y")) for word in before
        ):
            right.append(term_of([round(255 * side) for side in to_rgb(code)]) == last)
    print(f"{sum(right)} of {len(right)} names agree")
    assert len(right) > 300 and np.mean(right) > 0.85


def words_of(half: str) -> list[tuple[str, str | None]]:
    """The judged terms and the rule's word of each object."""
    words = []
    rows = zip(ROWS, MEASURED["colours"], MEASURED["thousandths"], strict=True)
    for row, colours, counts in rows:
        if row["half"] == half:
            pixels, word = np.repeat(colours, counts, axis=0), None
            if row["tint_a"]:
                tint = np.array([row["tint_a"], row["tint_b"]], float)
                word = data_colours.colour_of(pixels, tint)
            words.append((row["judged"], word))
    return words


@pytest.mark.parametrize("half, n", [("tuned", 120), ("held out", 120), ("other photographs", 167)])
def test_colours_against_judgements_by_eye(half, n):
    words = words_of(half)
    said = [(judged.split("|"), word) for judged, word in words if word]
    right = sum(word in judged for judged, word in said)
    print(f"{half}: {right} of {len(said)} right, a word for {len(said)} of {len(words)} objects")
    assert len(words) == n and len(said) >= 15 and right / len(said) >= 0.93
    assert len({word for _, word in said}) >= 4 and "gray" not in {word for _, word in said}


def test_what_shade_makes_of_another_colour_is_none():
    """A teal car in shade is not black, a white toilet in the light of the sky not blue, a yellow
    taxi in shade not brown."""
    for rgb in ((12, 34, 34), (128, 150, 182), (140, 105, 30)):
        assert term_of(rgb) == data_colours.UNSURE
        assert data_colours.colour_of(np.full((9, 3), rgb, np.uint8)) is None


def noise(image: Image.Image, spread: int) -> Image.Image:
    """`image` with each channel off by up to `spread`."""
    pixels = np.asarray(image).astype(int)
    pixels += np.random.default_rng(0).integers(-spread, spread + 1, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


RAMP = Image.linear_gradient("L")
SEPIA = Image.merge("RGB", [RAMP.point(lambda v, c=c: int(v * c)) for c in (1, 0.93, 0.82)])


@pytest.mark.parametrize(
    "image", [RAMP.convert("RGB"), noise(RAMP.convert("RGB"), 2), SEPIA, noise(SEPIA, 1)]
)
def test_a_photograph_in_one_tone_has_no_colours(image):
    """Black and white, also after compression, and sepia: only a black or white that was annotated
    holds. One may ask about colour there, but no answer is graded."""
    half = rectangle(0, 200, 256, 256)  # white or black by its pixels
    annotated = {None: None, "red": None, "teal": None, "white": "white", "black": "black"}
    cars = [an_object([half], color=color) for color in annotated]
    found = data_colours.with_colours(cars, image)
    assert data_colours.is_one_tone(image)
    assert [car["color"] for car in found] == [*annotated.values()]
    assert [car["color_from"] for car in found] == ["", "", "", "annotation", "annotation"]
    seen = {**found[1], "visible": 1.0, "share": 0.2, "cut_off": False}
    (asked,) = prompts.make_prompts([seen], [], kinds=["colour"])
    assert "color is the car?" in asked["question"]
    assert (asked["truth"], asked["truth_from"]) == (None, "")
    image.paste("red", (0, 0, 128, 6))  # what is left of a photograph in colour
    image.paste("green", (128, 0, 256, 6))
    assert not data_colours.is_one_tone(image)


def picture(colours: list[str]) -> Image.Image:
    """Vertical stripes of 20 x 100 pixels."""
    stripes = [np.full((100, 20, 3), ImageColor.getrgb(colour), np.uint8) for colour in colours]
    return Image.fromarray(np.concatenate(stripes, axis=1))


def rectangle(x0, y0, x1, y1) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def an_object(polygons, category="car", color=None, crowd=False, size=None) -> dict:
    return {
        "category": category, "box": [0, 0, 9, 9], "crowd": crowd, "color": color,
        "polygons": polygons, "image_size": size,
    }  # fmt: skip


def test_the_pixels_are_those_within_the_shrunk_polygon():
    """A square of 60 whose border of 2 has another colour: the margin, 1.8, is rounded up."""
    image = Image.new("RGB", (100, 100), "white")
    ImageDraw.Draw(image).rectangle((20, 20, 79, 79), fill="red", outline="blue", width=2)
    pixels = data_colours.pixels_within([rectangle(20, 20, 79, 79)], image)
    assert 54**2 <= len(pixels) <= 57**2 and (pixels == [255, 0, 0]).all()
    two = data_colours.pixels_within([rectangle(20, 20, 40, 79), rectangle(60, 20, 79, 79)], image)
    assert len(two) < 0.7 * len(pixels)
    # Partly and wholly outside the image.
    assert len(data_colours.pixels_within([rectangle(-50, -50, 30, 30)], image)) < 31**2
    assert len(data_colours.pixels_within([rectangle(200, 200, 300, 300)], image)) == 0


@pytest.mark.parametrize(
    "pixels, word, less_light",
    [
        (["red"] * 8 + ["blue"] * 2, "red", "red"),
        (["red"] * 6 + ["blue"] * 4, None, None),
        (["white"] * 9 + ["gray"], "white", "white"),
        (["gray"], None, None),
        ([], None, None),
        (["rgb(228, 205, 158)"], "yellow", None),  # light of a lamp on a white sink
    ],
)
def test_a_colour_needs_seven_tenths_and_must_hold_without_the_tint(pixels, word, less_light):
    rgb = np.array([ImageColor.getrgb(colour) for colour in pixels], np.uint8).reshape(-1, 3)
    assert data_colours.colour_of(rgb) == word
    assert data_colours.colour_of(rgb, np.array([2.0, 14.0])) == less_light


LEFT = [rectangle(0, 0, 20, 100)]


@pytest.mark.parametrize(
    "item, color, color_from",
    [
        (an_object(LEFT), "red", "pixels"),
        (an_object(LEFT, color="teal"), "teal", "annotation"),
        (an_object(LEFT, category="person"), None, ""),
        (an_object(LEFT, crowd=True), None, ""),
        (an_object([]), None, ""),
        # Annotated at half the size.
        (an_object([rectangle(0, 0, 10, 50)], size=(100, 50)), "red", "pixels"),
        (an_object([rectangle(10, 0, 100, 50)], size=(100, 50)), "white", "pixels"),
    ],
)
def test_the_annotations_own_colour_goes_first_then_the_pixels(item, color, color_from):
    (found,) = data_colours.with_colours([item], picture(["red"] + ["white"] * 9))
    assert (found["color"], found["color_from"]) == (color, color_from)
    light = picture(["red"] * 10)  # coloured light tells no truth
    (found,) = data_colours.with_colours([item], light)
    assert found["color"] == item["color"] and data_colours.tint_of(light) is None


def test_colour_questions_go_first_to_objects_whose_colour_is_known():
    clear = {"visible": 1.0, "share": 0.1, "crowd": False, "box": [0, 0, 9, 9]}
    known = [("car", None, ""), ("dog", "black", "pixels"), ("bus", None, "")]
    objects = [
        clear | dict(zip(("category", "color", "color_from"), of, strict=True)) for of in known
    ]
    for seed in range(9):
        asked = [p for p in prompts.make_prompts(objects, [], seed) if p["kind"] == "colour"]
        assert [(p["truth"], p["truth_from"]) for p in asked] == [("black", "pixels")]
    assert not data_colours.may_have_colour({**objects[0], "category": "cup"})
    objects.append({**objects[0], "category": "person"})  # never asked about
    asked = [p for p in prompts.make_prompts(objects, [], 0, per_kind=9) if p["kind"] == "colour"]
    assert [p["truth_from"] for p in asked] == ["pixels", "", ""]
    kinds = {p["kind"]: p["truth_from"] for p in prompts.make_prompts(objects, ["cat"], 0)}
    assert kinds["presence"] == "annotation" and kinds["description"] == ""


def test_polygons_are_read_and_masks_and_odd_ones_are_not():
    good = rectangle(0, 0, 9, 9)
    odd = [None, {"counts": [1, 2], "size": [3, 4]}, [good[:5]], [good[:4]], [["a"] * 6], "x"]
    for segmentation in ([good, good], *odd):
        entry = {"bbox": [1, 2, 3, 4], "segmentation": segmentation}
        polygons = coco._read_object(entry, "dog", None)["polygons"]
        assert polygons == ([] if segmentation in odd else segmentation)
