"""The colour of an object, from the pixels within its polygon."""

import numpy as np
from PIL import Image, ImageDraw

from llava_lens.kinds import COLOURS
from llava_lens.words import WORDS

# Of linear sRGB, relative to the white point D65 (IEC 61966-2-1).
TO_XYZ = np.array([
    [0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047],
    [0.212671, 0.715160, 0.072169],
    [0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883],
])  # fmt: skip
MARGIN = 0.03  # of the square root of an object's area: annotated outlines are rough
CLEAR_SHARE = 0.7  # of an object's pixels that must have one colour term
# Light of a colour makes yellow of white: the most chroma that an image's mean may have in CIELAB,
# and the share of that mean without which an object's term must be the same.
MOST_CAST, TAKEN_OFF = 12, 0.5
# In one tone, a pixel's colour follows from its lightness: the 99th percentiles of what is left of
# it, and of chroma.
MOST_OF_ONE_TONE, MOST_CHROMA = 6, 30
UNSURE = "unsure"
TERMS = [*COLOURS, UNSURE]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB `[..., 3]` of sRGB pixels `[..., 3]` from 0 to 255."""
    values = rgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def colour_terms(rgb: np.ndarray, tint: np.ndarray | tuple = (0, 0)) -> np.ndarray:
    """The basic colour term of each pixel `[n]`, as an index into TERMS, from sRGB `[n, 3]` less
    `tint` (a, b in CIELAB). The first rule that holds decides.

    Hues were set on the names that people gave to colours in the XKCD survey, the others on the
    objects in `tests/data/judged_colours.csv`. What shade makes of another colour is UNSURE.
    """
    light, a, b = (_lab(rgb) - [0, *tint]).T
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    rules = [
        ("black", (light < 20) & (chroma < 7)),
        (UNSURE, (light < 20) & (chroma < 12)),
        ("white", (light > 62) & (chroma < 16)),
        ("gray", chroma < 11),
        (UNSURE, (hue > 180) & (hue < 310) & (light > 50) & (chroma < 20)),
        ("pink", (hue >= 340) & (light > 45) | (hue < 30) & (light > 57)),
        ("red", (hue >= 350) | (hue < 48) & (chroma > 38)),
        (UNSURE, (hue > 70) & (hue < 92) & (light < 57) & (chroma > 40) & (chroma < 60)),
        ("brown", (hue < 92) & (light < 57) & (chroma < 60)),
        ("orange", hue < 75),
        ("brown", (hue < 90) & (light < 70) & (chroma < 35)),
        ("yellow", hue < 108),
        ("green", hue < 195),
        ("blue", hue < 310),
        ("purple", hue < 350),
    ]
    return np.select([holds for _, holds in rules], [TERMS.index(term) for term, _ in rules])


def pixels_within(polygons: list[list[float]], image: Image.Image) -> np.ndarray:
    """The pixels `[n, 3]` of an image (RGB) within an object's polygons, but for MARGIN."""
    corners = [np.reshape(polygon, (-1, 2)) for polygon in polygons]  # x and y
    left, top = np.maximum(0, np.concatenate(corners).min(axis=0).astype(int))
    right, bottom = np.minimum(image.size, np.concatenate(corners).max(axis=0).astype(int) + 2)
    if right <= left or bottom <= top:
        return np.zeros((0, 3), np.uint8)
    mask = Image.new("1", (right - left, bottom - top))
    draw = ImageDraw.Draw(mask)
    outlines = [list(map(tuple, (points - [left, top]).tolist())) for points in corners]
    for points in outlines:
        draw.polygon(points, fill=1)
    margin = MARGIN * np.sqrt(np.asarray(mask).sum())
    for points in outlines:
        draw.line([*points, *points[:2]], fill=0, width=max(1, round(2 * margin)), joint="curve")
    return np.asarray(image.crop((left, top, right, bottom)))[np.asarray(mask)]


def colour_of(pixels: np.ndarray, tint: np.ndarray | tuple = (0, 0)) -> str | None:
    """The basic colour term of at least CLEAR_SHARE of an object's pixels `[n, 3]`, as they are and
    also less `tint`. Never gray, which shadow makes of white and of black."""
    terms, without = colour_terms(pixels), colour_terms(pixels, tint)
    counts = np.bincount(terms[terms == without], minlength=len(TERMS))[: len(COLOURS)]
    term = COLOURS[counts.argmax()]
    return term if counts.max() >= CLEAR_SHARE * max(1, len(pixels)) and term != "gray" else None


def is_one_tone(image: Image.Image) -> bool:
    """Whether an image has no colours of its objects': black and white, sepia and the like."""
    lab = _some_lab(image)
    # What is left of a and b where they follow from the lightness.
    light = np.vander(lab[:, 0] / 100, 3)
    left = lab[:, 1:] - light @ np.linalg.lstsq(light, lab[:, 1:], rcond=None)[0]
    residual, chroma = (np.percentile(np.hypot(*ab.T), 99) for ab in (left, lab[:, 1:]))
    return bool(residual < MOST_OF_ONE_TONE and chroma < MOST_CHROMA)


def tint_of(image: Image.Image) -> np.ndarray | None:
    """TAKEN_OFF of an image's mean colour, a and b in CIELAB; None above MOST_CAST."""
    mean = _some_lab(image)[:, 1:].mean(axis=0)
    return None if np.hypot(*mean) > MOST_CAST else TAKEN_OFF * mean


def _some_lab(image: Image.Image) -> np.ndarray:
    return _lab(np.asarray(image)[::4, ::4].reshape(-1, 3))


def may_have_colour(item: dict) -> bool:
    """Whether objects of its category often have one colour of their own."""
    return not item["crowd"] and item["category"].lower() not in WORDS["no_colour"]


def with_colours(objects: list[dict], image: Image.Image) -> list[dict]:
    """Objects of `annotate` with their `color`, None where it is not known (docs/method.md), and
    with `color_from`: `annotation`, `pixels` (`colour_of` within the polygons) or empty."""
    one_tone, coloured = is_one_tone(image), []
    tint = None if one_tone else tint_of(image)
    for item in objects:
        color = item["color"]
        if one_tone and color and color.lower() not in ("black", "white", "gray", "grey"):
            color = None
        color_from = "annotation" if color else ""
        if not color and item["polygons"] and may_have_colour(item) and tint is not None:
            scale = np.divide(image.size, item["image_size"] or image.size)
            polygons = [(np.reshape(xy, (-1, 2)) * scale).ravel() for xy in item["polygons"]]
            color = colour_of(pixels_within(polygons, image), tint)
            color_from = "pixels" if color else ""
        coloured.append({**item, "color": color, "color_from": color_from})
    return coloured
